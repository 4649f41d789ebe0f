// The operators of fake quantization on the CPU (declared in fxptq/quant/operators.py): shapes and threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "fakequant.h"

namespace fxptq {
namespace fakequant {

using at::Tensor;

// Values as runs that share a grid: [outer, ranges, inner], cut into pieces that do not depend on the number of threads, so
// that sums do not either.
struct Runs {
  static constexpr int64_t kPiece = 1 << 14;

  int64_t outer, ranges, inner, pieces;
  const float *x, *scale, *offset;
  float levels;

  Runs(const Tensor& values, const Tensor& scales, const Tensor& offsets, int64_t largest) : levels((float)largest) {
    TORCH_CHECK(values.dim() == 3 && values.is_contiguous() && values.scalar_type() == at::kFloat,
                "fake quantization takes contiguous float32 values [outer, ranges, inner]");
    for (const Tensor* t : {&scales, &offsets}) {
      TORCH_CHECK(t->dim() == 1 && t->size(0) == values.size(1) && t->is_contiguous() && t->scalar_type() == at::kFloat,
                  "a scale and an offset in float32 for each of ", values.size(1), " ranges");
    }
    outer = values.size(0), ranges = values.size(1), inner = values.size(2);
    pieces = (inner + kPiece - 1) / kPiece;
    x = values.const_data_ptr<float>(), scale = scales.const_data_ptr<float>(), offset = offsets.const_data_ptr<float>();
  }

  int64_t count() const { return outer * ranges * pieces; }

  // Calls work(piece, first element, elements, grid) for every piece.
  template <class Work>
  void each(Work work) const {
    const int64_t grain = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, std::min(inner, kPiece)));
    at::parallel_for(0, count(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t run = piece / pieces, start = piece % pieces * kPiece, range = run % ranges;
        work(piece, run * inner + start, std::min(kPiece, inner - start),
             Grid(scale[range], offset[range], levels));
      }
    });
  }
};

inline Tensor values_of(const Tensor& x, const Tensor& scale, const Tensor& offset, int64_t levels) {
  const Runs runs(x, scale, offset, levels);
  Tensor out = at::empty_like(x);
  float* to = out.mutable_data_ptr<float>();
  runs.each([&](int64_t, int64_t first, int64_t count, const Grid& grid) {
    fake_quantize(runs.x + first, to + first, count, grid);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor> gradients_of(const Tensor& x, const Tensor& grad, const Tensor& scale,
                                                   const Tensor& offset, int64_t levels, bool of_values) {
  const Runs runs(x, scale, offset, levels);
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.is_contiguous() && grad.scalar_type() == at::kFloat,
              "a gradient of the shape and type of the values");
  Tensor of_x = of_values ? at::empty_like(x) : at::empty({0}, x.options());
  Tensor of_scale = at::empty_like(scale), of_offset = at::empty_like(offset);
  float* to = of_values ? of_x.mutable_data_ptr<float>() : nullptr;
  const float* from = grad.const_data_ptr<float>();
  std::vector<GridGradient> parts(runs.count());
  runs.each([&](int64_t piece, int64_t first, int64_t count, const Grid& grid) {
    parts[piece] = fake_quantize_backward(runs.x + first, from + first, to ? to + first : nullptr, count, grid);
  });
  for (int64_t range = 0; range < runs.ranges; ++range) {
    GridGradient sum;
    for (int64_t o = 0; o < runs.outer; ++o) {
      const GridGradient* own = parts.data() + (o * runs.ranges + range) * runs.pieces;
      for (int64_t p = 0; p < runs.pieces; ++p) sum.scale += own[p].scale, sum.offset += own[p].offset;
    }
    of_scale.mutable_data_ptr<float>()[range] = (float)sum.scale;
    of_offset.mutable_data_ptr<float>()[range] = (float)sum.offset;
  }
  return {of_x, of_scale, of_offset};
}

}  // namespace fakequant
}  // namespace fxptq

TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("fake_quantize", &fxptq::fakequant::values_of);
  m.impl("fake_quantize_backward", &fxptq::fakequant::gradients_of);
}

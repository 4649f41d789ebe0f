// Fake quantization and its gradients (declared in fxptq/quant/operators.py).
#include "../fakequant.h"
#include "common.h"

namespace fxptq {
namespace {

// Values as runs that share a grid: [outer, ranges, inner], cut into pieces that do not depend on the number of threads, so
// that sums do not either.
struct Runs {
  static constexpr int64_t kPiece = 1 << 14;

  int64_t outer, ranges, inner, pieces;  // pieces of a run
  const float *x, *scale, *offset;
  float levels;

  Runs(const Tensor& values, const Tensor& scales, const Tensor& offsets, int64_t largest) : levels((float)largest) {
    FXPTQ_CHECK(values.dim() == 3 && values.is_contiguous(), "fake quantization takes contiguous runs [outer, ranges, inner]");
    for (const Tensor* t : {&scales, &offsets}) {
      FXPTQ_CHECK(t->dim() == 1 && t->size(0) == values.size(1) && t->is_contiguous(), "a scale and an offset for each of ",
                  values.size(1), " ranges");
    }
    outer = values.size(0), ranges = values.size(1), inner = values.size(2);
    pieces = (inner + kPiece - 1) / kPiece;
    x = data<float>(values), scale = data<float>(scales), offset = data<float>(offsets);
  }

  int64_t count() const { return outer * ranges * pieces; }

  // Calls work(piece, first element, elements, grid) for every piece.
  template <class Work>
  void each(Work work) const {
    const int64_t grain = kPiece / std::clamp<int64_t>(inner, 1, kPiece);
    parallel_for(count(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t run = piece / pieces, start = piece % pieces * kPiece, range = run % ranges;
        work(piece, run * inner + start, std::min(kPiece, inner - start), fakequant::Grid(scale[range], offset[range], levels));
      }
    });
  }
};

Tensor values_of(const Tensor& x, const Tensor& scale, const Tensor& offset, int64_t levels) {
  const Runs runs(x, scale, offset, levels);
  Tensor out = empty(x.sizes(), Element<float>::number());
  float* to = writable<float>(out);
  runs.each([&](int64_t, int64_t first, int64_t count, const fakequant::Grid& grid) {
    fake_quantize(runs.x + first, to + first, count, grid);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gradients_of(const Tensor& x, const Tensor& grad, const Tensor& scale, const Tensor& offset,
                                                int64_t levels, bool of_values) {
  const Runs runs(x, scale, offset, levels);
  FXPTQ_CHECK(std::ranges::equal(grad.sizes(), x.sizes()) && grad.is_contiguous(), "a gradient of the shape of the values");
  const int64_t none[] = {0};
  const int32_t type = Element<float>::number();
  Tensor of_x = of_values ? empty(x.sizes(), type) : empty(none, type);
  Tensor of_scale = empty(scale.sizes(), type), of_offset = empty(scale.sizes(), type);
  const float* from = data<float>(grad);
  float *to = of_values ? writable<float>(of_x) : nullptr, *to_scale = writable<float>(of_scale);
  float* to_offset = writable<float>(of_offset);
  std::vector<fakequant::GridGradient> parts(runs.count());
  runs.each([&](int64_t piece, int64_t first, int64_t count, const fakequant::Grid& grid) {
    parts[piece] = fake_quantize_backward(runs.x + first, from + first, to ? to + first : nullptr, count, grid);
  });
  for (int64_t range = 0; range < runs.ranges; ++range) {
    fakequant::GridGradient sum;
    for (int64_t o = 0; o < runs.outer; ++o) {
      const fakequant::GridGradient* own = parts.data() + (o * runs.ranges + range) * runs.pieces;
      for (int64_t p = 0; p < runs.pieces; ++p) sum.scale += own[p].scale, sum.offset += own[p].offset;
    }
    to_scale[range] = (float)sum.scale;
    to_offset[range] = (float)sum.offset;
  }
  return {of_x, of_scale, of_offset};
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&values_of));
  m.impl("fake_quantize_backward", TORCH_BOX(&gradients_of));
}

}  // namespace
}  // namespace fxptq

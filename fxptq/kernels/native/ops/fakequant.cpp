// Fake quantization and its gradients (declared in fxptq/quant/operators.py).
#include "../fakequant.h"
#include "common.h"

namespace fxptq {
namespace {

constexpr int64_t kPiece = 1 << 14;  // elements: runs are cut into pieces that do not depend on the number of threads, so that
                                    // sums do not either

int64_t pieces_of(int64_t run) { return (run + kPiece - 1) / kPiece; }

// Calls work(piece, run, first element in the run, elements) for every piece of `runs` runs of `inner` elements.
template <class Work>
void each_piece(int64_t runs, int64_t inner, Work work) {
  const int64_t pieces = pieces_of(inner), grain = kPiece / std::clamp<int64_t>(inner, 1, kPiece);
  parallel_for(runs * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t start = piece % pieces * kPiece;
      work(piece, piece / pieces, start, std::min(kPiece, inner - start));
    }
  });
}

// Values as runs that share a grid: [outer, ranges, inner].
struct Runs {
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
    pieces = pieces_of(inner);
    x = data<float>(values), scale = data<float>(scales), offset = data<float>(offsets);
  }

  int64_t count() const { return outer * ranges * pieces; }

  // Calls work(piece, first element, elements, grid) for every piece.
  template <class Work>
  void each(Work work) const {
    each_piece(outer * ranges, inner, [&](int64_t piece, int64_t run, int64_t start, int64_t elements) {
      const int64_t range = run % ranges;
      work(piece, run * inner + start, elements, fakequant::Grid(scale[range], offset[range], levels));
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

// Values behind a map, all on one grid: [outer, heads, rows, channels], with a factor and a center for each of [heads,
// channels].
class MappedRuns {
 public:
  MappedRuns(const Tensor& values, const Tensor& scale, const Tensor& offset, const Tensor& factor, const Tensor& center,
             int64_t levels) {
    FXPTQ_CHECK(values.dim() == 4 && values.is_contiguous(),
                "mapped fake quantization takes contiguous values [outer, heads, rows, channels]");
    FXPTQ_CHECK(scale.numel() == 1 && offset.numel() == 1, "one scale and one offset");
    heads_ = values.size(1), channels_ = values.size(3);
    runs_ = values.size(0) * heads_, inner_ = values.size(2) * channels_;
    for (const Tensor* t : {&factor, &center}) {
      FXPTQ_CHECK(t->dim() == 2 && t->size(0) == heads_ && t->size(1) == channels_ && t->is_contiguous(),
                  "a factor and a center for each of ", heads_, " heads of ", channels_, " channels");
    }
    x_ = data<float>(values), factors_ = data<float>(factor), centers_ = data<float>(center);
    grid_ = {data<float>(scale)[0], data<float>(offset)[0], (float)levels};
    if (channels_ > 1) repeat_maps();
  }

  int64_t pieces() const { return runs_ * pieces_of(inner_); }

  // Calls work(piece, first element, elements, values, grid, map) for every piece.
  template <class Work>
  void each(Work work) const {
    const fakequant::Grid grid(grid_[0], grid_[1], grid_[2]);
    each_piece(runs_, inner_, [&](int64_t piece, int64_t run, int64_t start, int64_t elements) {
      const int64_t head = run % heads_, first = run * inner_ + start;
      if (channels_ == 1) {
        work(piece, first, elements, x_ + first, grid, fakequant::ConstantMap(factors_[head], centers_[head]));
      } else {
        const int64_t length = fakequant::RepeatedMap::length(channels_);
        const float *factors = tables_.data() + 2 * head * length, *centers = factors + length;
        work(piece, first, elements, x_ + first, grid,
             fakequant::RepeatedMap(factors, centers, fakequant::RepeatedMap::period(channels_), start % channels_));
      }
    });
  }

 private:
  void repeat_maps() {
    const int64_t length = fakequant::RepeatedMap::length(channels_);
    tables_.resize(2 * heads_ * length);
    float* to = tables_.data();
    for (int64_t head = 0; head < heads_; ++head) {
      for (const float* from : {factors_ + head * channels_, centers_ + head * channels_}) {
        for (int64_t i = 0; i < length; ++i) *to++ = from[i % channels_];
      }
    }
  }

  int64_t heads_, channels_, runs_, inner_;
  const float *x_, *factors_, *centers_;
  std::array<float, 3> grid_;  // scale, offset, levels
  std::vector<float> tables_;  // factors and centers of each head, as RepeatedMap takes them
};

Tensor mapped_values_of(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& factor, const Tensor& center,
                        int64_t levels) {
  const MappedRuns runs(x, scale, offset, factor, center, levels);
  Tensor out = empty(x.sizes(), Element<float>::number());
  float* to = writable<float>(out);
  runs.each([&](int64_t, int64_t first, int64_t count, const float* from, const fakequant::Grid& grid, const auto& map) {
    fake_quantize(from, to + first, count, grid, map);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> mapped_gradients_of(const Tensor& x, const Tensor& grad, const Tensor& scale,
                                                       const Tensor& offset, const Tensor& factor, const Tensor& center,
                                                       int64_t levels, bool of_values) {
  const MappedRuns runs(x, scale, offset, factor, center, levels);
  FXPTQ_CHECK(std::ranges::equal(grad.sizes(), x.sizes()) && grad.is_contiguous(), "a gradient of the shape of the values");
  const int64_t none[] = {0};
  const int32_t type = Element<float>::number();
  Tensor of_x = of_values ? empty(x.sizes(), type) : empty(none, type);
  Tensor of_scale = empty(scale.sizes(), type), of_offset = empty(scale.sizes(), type);
  const float* upstream = data<float>(grad);
  float* to = of_values ? writable<float>(of_x) : nullptr;
  std::vector<fakequant::GridGradient> parts(runs.pieces());
  runs.each([&](int64_t piece, int64_t first, int64_t count, const float* from, const fakequant::Grid& grid, const auto& map) {
    parts[piece] = fake_quantize_backward(from, upstream + first, to ? to + first : nullptr, count, grid, map);
  });
  fakequant::GridGradient sum;
  for (const fakequant::GridGradient& part : parts) sum.scale += part.scale, sum.offset += part.offset;
  *writable<float>(of_scale) = (float)sum.scale;
  *writable<float>(of_offset) = (float)sum.offset;
  return {of_x, of_scale, of_offset};
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&values_of));
  m.impl("fake_quantize_backward", TORCH_BOX(&gradients_of));
  m.impl("mapped_fake_quantize", TORCH_BOX(&mapped_values_of));
  m.impl("mapped_fake_quantize_backward", TORCH_BOX(&mapped_gradients_of));
}

}  // namespace
}  // namespace fxptq

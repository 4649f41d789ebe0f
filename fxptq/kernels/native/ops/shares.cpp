// Rows as shares of their sum, and their gradients (declared in fxptq/quant/operators.py).
#include "../shares.h"
#include "common.h"

namespace fxptq {
namespace {

constexpr int64_t kPiece = 1 << 14;  // elements: pieces do not depend on the number of threads, so that sums do not either

// Rows of runs that share a factor: [outer, ranges, rows, length].
class SharedRuns {
 public:
  SharedRuns(const Tensor& values, const Tensor& factors, int64_t levels) : levels_((float)levels) {
    FXPTQ_CHECK(values.dim() == 4 && values.is_contiguous(), "shares are of contiguous rows [outer, ranges, rows, length]");
    FXPTQ_CHECK(factors.dim() == 1 && factors.size(0) == values.size(1) && factors.is_contiguous(), "a factor for each of ",
                values.size(1), " ranges");
    runs_ = values.size(0) * values.size(1), ranges_ = values.size(1), rows_ = values.size(2), length_ = values.size(3);
    FXPTQ_CHECK(length_ * levels < 1 << 24, "codes of rows of ", length_, " values have no exact sum");
    at_once_ = std::max<int64_t>(1, kPiece / std::max<int64_t>(length_, 1));
    pieces_ = (rows_ + at_once_ - 1) / at_once_;
    x_ = data<float>(values), factors_ = data<float>(factors);
  }

  int64_t pieces() const { return runs_ * pieces_; }

  int64_t range_of(int64_t piece) const { return piece / pieces_ % ranges_; }

  // Calls work(piece, first element, row) for every row.
  template <class Work>
  void each(Work work) const {
    parallel_for(length_ ? pieces() : 0, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t run = piece / pieces_, start = piece % pieces_ * at_once_, last = std::min(rows_, start + at_once_);
        for (int64_t row = run * rows_ + start; row < run * rows_ + last; ++row) {
          work(piece, row * length_, shares::Row(x_ + row * length_, length_, factors_[run % ranges_], levels_));
        }
      }
    });
  }

 private:
  int64_t runs_, ranges_, rows_, length_, at_once_, pieces_;
  const float *x_, *factors_;
  float levels_;
};

Tensor values_of(const Tensor& x, const Tensor& factor, int64_t levels) {
  const SharedRuns runs(x, factor, levels);
  Tensor out = empty(x.sizes(), Element<float>::number());
  float* to = writable<float>(out);
  runs.each([&](int64_t, int64_t first, const shares::Row& row) { row.values(to + first); });
  return out;
}

std::tuple<Tensor, Tensor> gradients_of(const Tensor& x, const Tensor& grad, const Tensor& factor, int64_t levels,
                                        bool of_values) {
  const SharedRuns runs(x, factor, levels);
  FXPTQ_CHECK(std::ranges::equal(grad.sizes(), x.sizes()) && grad.is_contiguous(), "a gradient of the shape of the values");
  const int64_t none[] = {0};
  const int32_t type = Element<float>::number();
  Tensor of_x = of_values ? empty(x.sizes(), type) : empty(none, type), of_factor = empty(factor.sizes(), type);
  const float* from = data<float>(grad);
  float *to = of_values ? writable<float>(of_x) : nullptr, *to_factor = writable<float>(of_factor);
  std::vector<double> parts(runs.pieces());
  runs.each([&](int64_t piece, int64_t first, const shares::Row& row) {
    parts[piece] += row.gradients(from + first, to ? to + first : nullptr);
  });
  std::vector<double> sums(factor.size(0));
  for (int64_t piece = 0; piece < runs.pieces(); ++piece) sums[runs.range_of(piece)] += parts[piece];
  for (size_t range = 0; range < sums.size(); ++range) to_factor[range] = (float)sums[range];
  return {of_x, of_factor};
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("shares", TORCH_BOX(&values_of));
  m.impl("shares_backward", TORCH_BOX(&gradients_of));
}

}  // namespace
}  // namespace fxptq

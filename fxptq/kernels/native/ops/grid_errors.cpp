// Errors of many grids on the values that quantizers see (declared in fxptq/quant/operators.py).
#include "../grid_errors.h"
#include "common.h"

namespace fxptq {
namespace {

constexpr int64_t kEnough = 1 << 12;  // thresholds for a thread

Tensor errors_of(const Tensor& values, const Tensor& counts, const Tensor& sums, const Tensor& squares, const Tensor& center,
                 const Tensor& lower, const Tensor& upper, int64_t levels) {
  FXPTQ_CHECK(values.dim() == 2 && values.size(1) > 0 && values.is_contiguous(), "errors of grids take values [ranges, support]");
  const int64_t ranges = values.size(0), n = values.size(1);
  for (const Tensor* t : {&counts, &sums, &squares}) {
    FXPTQ_CHECK(t->dim() == 2 && t->size(0) == ranges && t->size(1) == n + 1 && t->is_contiguous(), "sums of [", ranges, ", ",
                n + 1, "] values");
  }
  FXPTQ_CHECK(center.dim() == 1 && center.size(0) == ranges && center.is_contiguous(), "a center for each of ", ranges, " ranges");
  FXPTQ_CHECK(lower.dim() == 2 && lower.size(0) == ranges && lower.is_contiguous(), "bounds are [ranges, candidates]");
  FXPTQ_CHECK(std::ranges::equal(lower.sizes(), upper.sizes()) && upper.is_contiguous(), "an upper bound for each lower one");
  FXPTQ_CHECK(levels > 0, "a grid has a step or more, not ", levels);
  const int64_t candidates = lower.size(1);
  const double *support = data<double>(values), *count = data<double>(counts), *sum = data<double>(sums);
  const double *square = data<double>(squares), *origin = data<double>(center);
  const double *low = data<double>(lower), *high = data<double>(upper);
  Tensor errors = empty(lower.sizes(), Element<double>::number());
  double* to = writable<double>(errors);
  parallel_for(ranges * candidates, std::max<int64_t>(1, kEnough / levels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t range = i / candidates, row = range * (n + 1);
      const grid_errors::Values own{support + range * n, count + row, sum + row, square + row, origin[range], n};
      to[i] = own.error(low[i], high[i], levels);
    }
  });
  return errors;
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) { m.impl("grid_errors", TORCH_BOX(&errors_of)); }

}  // namespace
}  // namespace fxptq

// Squared errors of rounding sorted values to grids, from sums over the values below each threshold.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fxptq {
namespace grid_errors {

// Statistics of sorted values. counts[i], sums[i] and squares[i] are of the values before number i; the sums are about
// `center`, and the last of the n + 1 entries is of all values.
struct Values {
  const double *values, *counts, *sums, *squares;
  double center;
  int64_t n;

  // The number of values below a threshold, which is not below that of `from`, an earlier and smaller threshold. The
  // search doubles its distance from there, because neighbouring thresholds lie near to each other.
  int64_t below(double threshold, int64_t from, int64_t stride) const {
    int64_t first = from, end = from;
    while (end < n && values[end] < threshold) {
      first = end + 1;
      end = std::min(n, end + stride);
      stride *= 2;
    }
    return std::lower_bound(values + first, values + end, threshold) - values;
  }

  // The error of a grid with `levels` steps from `lower` to `upper`.
  double error(double lower, double upper, int64_t levels) const {
    const double step = (upper - lower) / (double)levels;
    const int64_t stride = std::max<int64_t>(1, n / (levels + 1));
    double bends = 0.0;
    for (int64_t j = 0, i = 0; j < levels; ++j) {
      const double threshold = lower + step * ((double)j + 0.5);
      i = below(threshold, i, stride);
      bends += sums[i] - (threshold - center) * counts[i];
    }
    const double top = upper - center;
    const double clipped_to_top = squares[n] - 2 * top * sums[n] + top * top * counts[n];
    return std::max(0.0, clipped_to_top + 2 * step * bends);
  }
};

}  // namespace grid_errors
}  // namespace fxptq

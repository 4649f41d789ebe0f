// Counts, sums and sums of squares of values in bins whose width is a power of two.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fxptq {
namespace histogram {

// What a bin holds. One cache line serves two bins, and one vector both sums.
struct Bin {
  double sum, squares;
  int64_t count, unused;
};

// Adds values to bins first .. first + bins - 1 of a table; bin i begins at i / scale. Products with a power of two and the
// floor are exact in double, so a value's bin does not depend on rounding. Returns whether every value had its bin.
inline bool add(const float* x, int64_t n, double scale, double first, int64_t bins, Bin* table) {
  constexpr int64_t kRun = 512;  // the bins of a run are found in vectors, ahead of the scattered sums
  int32_t index[kRun];
  const double end = (double)bins;
  int32_t strays = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t count = std::min(kRun, n - begin);
    const float* run = x + begin;
    for (int64_t i = 0; i < count; ++i) {
      const double bin = std::floor(run[i] * scale) - first;
      const bool inside = bin >= 0 && bin < end;  // false for NaN
      strays += !inside;
      index[i] = (int32_t)(inside ? bin : 0.0);
    }
    for (int64_t i = 0; i < count; ++i) {
      Bin& bin = table[index[i]];
      const double value = run[i];
      bin.sum += value;
      bin.squares += value * value;
      ++bin.count;
    }
  }
  return strays == 0;
}

}  // namespace histogram
}  // namespace fxptq

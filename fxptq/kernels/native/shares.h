// Rows as shares of their sum, with their gradients: the codes of a row on a grid of its own, over the sum of these codes, in
// one pass over memory each way.
//
// Values equal the plain form (fxptq/quant/operators.py) bit for bit: codes are whole numbers, whose sums are exact as long
// as they are below 2^24, and everything else is rounded on its own.
#pragma once

#include "fakequant.h"

namespace fxptq {
namespace shares {

using namespace fakequant;

inline float largest_of(Values v) {
  float largest = v[0];
  for (int i = 1; i < kWidth; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

inline float sum_of(Values v) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
}

// A vector of a row, with zeros behind the row's end.
inline Values load_part(const float* row, int64_t count) {
  if (count >= kWidth) return load_values(row);
  float part[kWidth] = {};
  std::memcpy(part, row, count * sizeof(float));
  return load_values(part);
}

inline void store_part(float* row, Values v, int64_t count) {
  if (count >= kWidth) return store_values(row, v);
  std::memcpy(row, &v, count * sizeof(float));
}

// A row and its grid: code = round(clip(factor * x / largest of the row, 0, levels)).
class Row {
 public:
  Row(const float* x, int64_t count, float factor, float levels)
      : x_(x), count_(count), factor_(Values{} + factor), levels_(Values{} + levels) {
    Values largest = Values{} + 1e-30f;  // the smallest divisor, for rows without a positive value
    for (int64_t i = 0; i < count; i += kWidth) largest = at_least(largest, part(x, i));
    largest_ = largest_of(largest);
  }

  Values part(const float* row, int64_t i) const { return load_part(row + i, count_ - i); }

  // x / largest of the row; zeros behind the end.
  Values ratio(int64_t i) const { return part(x_, i) / (Values{} + largest_); }

  Values place(Values ratio) const { return rounded(ratio * factor_); }

  Values clipped(Values z) const { return at_most(at_least(z, Values{}), levels_); }

  Values code(int64_t i) const { return nearest_integer(clipped(place(ratio(i)))); }

  void values(float* out) const {
    Values codes = {};
    for (int64_t i = 0; i < count_; i += kWidth) {
      const Values code = this->code(i);
      store_part(out + i, code, count_ - i);
      codes += code;
    }
    const Values sum = divisor(sum_of(codes));
    for (int64_t i = 0; i < count_; i += kWidth) store_part(out + i, part(out, i) / sum, count_ - i);
  }

  // The gradient of the factor, and that of x into `gx`, unless it is null, for the upstream gradient `g`.
  float gradients(const float* g, float* gx) const {
    Values codes = {}, products = {}, of_factor = {};
    for (int64_t i = 0; i < count_; i += kWidth) {
      const Values code = this->code(i);
      codes += code;
      products += code * part(g, i);
    }
    // A row whose codes are all 0 has the divisor 1, and no gradient of it.
    const Values sum = divisor(sum_of(codes)), mean = (Values{} + sum_of(products)) / sum;
    const Values back = factor_ / (Values{} + largest_), zero = {};
    for (int64_t i = 0; i < count_; i += kWidth) {
      const Values own = ratio(i), z = place(own);
      const Values of_place = z != clipped(z) ? zero : (part(g, i) - mean) / sum;
      of_factor += of_place * own;  // 0 behind the end, where the ratio is
      if (gx) store_part(gx + i, of_place * back, count_ - i);
    }
    return sum_of(of_factor);
  }

 private:
  static Values divisor(float sum) { return Values{} + (sum < 1 ? 1.0f : sum); }

  const float* x_;
  int64_t count_;
  Values factor_, levels_;
  float largest_;
};

}  // namespace shares
}  // namespace fxptq

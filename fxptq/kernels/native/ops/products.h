// What products of two activations share.
#pragma once

#include "../attention.h"
#include "common.h"

namespace fxptq {

// A sum of more products of two 8-bit codes than this could exceed 32 bits; a multiple of four, the depth of one step.
constexpr int64_t kDepth = 1 << 16;

inline Centre centre_of(int64_t bits) {
  // Up to 7 bits the odd integers 2 code - (2^bits - 1) are centred on zero; 8 bits have room for code - 128 only.
  return bits < 8 ? Centre{2, (uint8_t)((1 << bits) - 1)} : Centre{1, 128};
}

// Numbers [planes, heads or 1, places or 1] of a product, float64, read as [planes, heads, places].
class Numbers {
 public:
  Numbers(const Tensor& t, int64_t planes, int64_t heads, int64_t places) : values_(data<double>(t)) {
    const auto fits = [&](int64_t axis, int64_t size) { return t.size(axis) == 1 || t.size(axis) == size; };
    FXPTQ_CHECK(t.dim() == 3 && t.is_contiguous() && t.size(0) == planes && fits(1, heads) && fits(2, places), "numbers of ",
                shown(t.sizes()), " do not fit ", heads, " heads of ", places);
    place_ = t.size(2) > 1, head_ = t.size(1) > 1 ? t.size(2) : 0, plane_ = t.size(1) * t.size(2);
  }

  double at(int64_t plane, int64_t head, int64_t place) const { return values_[plane * plane_ + head * head_ + place * place_]; }
  bool varies() const { return place_ != 0; }  // from place to place

 private:
  const double* values_;
  int64_t plane_, head_, place_;
};

}  // namespace fxptq

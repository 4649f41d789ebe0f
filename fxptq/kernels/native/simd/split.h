// Sixteen lanes in two registers of eight, for processors whose registers have 256 bits.
//
// GCC keeps a 64-byte vector in memory where no register holds it, so that every operation would load and store. Two 32-byte
// vectors in a struct stay in registers. The operators are those of the vector extensions, for both halves.
#pragma once

#include <cstdint>

namespace fxptq::split {

template <class T>
struct Split {
  typedef T Half __attribute__((vector_size(32)));
  static constexpr int kCount = 64 / sizeof(T);
  Half low, high;

  Split() = default;
  // Gcc would copy a struct in pieces of sixteen bytes.
  FXPTQ_INLINE Split(const Split& other) : low(other.low), high(other.high) {}
  FXPTQ_INLINE Split& operator=(const Split& other) {
    low = other.low, high = other.high;
    return *this;
  }
  FXPTQ_INLINE Split(Half first, Half second) : low(first), high(second) {}
  FXPTQ_INLINE Split(T x) : low(x - Half{}), high(x - Half{}) {}  // NOLINT: a number stands for equal lanes, as in the extensions
  template <class U>
  FXPTQ_INLINE explicit Split(const Split<U>& bits) : low((Half)bits.low), high((Half)bits.high) {}

  FXPTQ_INLINE T operator[](int i) const { return i < kCount / 2 ? low[i] : high[i - kCount / 2]; }

  friend FXPTQ_INLINE Split operator+(Split a, Split b) { return {a.low + b.low, a.high + b.high}; }
  friend FXPTQ_INLINE Split operator-(Split a, Split b) { return {a.low - b.low, a.high - b.high}; }
  friend FXPTQ_INLINE Split operator*(Split a, Split b) { return {a.low * b.low, a.high * b.high}; }
  friend FXPTQ_INLINE Split operator/(Split a, Split b) { return {a.low / b.low, a.high / b.high}; }
  friend FXPTQ_INLINE Split operator&(Split a, Split b) { return {a.low & b.low, a.high & b.high}; }
  friend FXPTQ_INLINE Split operator|(Split a, Split b) { return {a.low | b.low, a.high | b.high}; }
  friend FXPTQ_INLINE Split operator^(Split a, Split b) { return {a.low ^ b.low, a.high ^ b.high}; }
  friend FXPTQ_INLINE Split operator<<(Split a, int n) { return {a.low << n, a.high << n}; }
  friend FXPTQ_INLINE Split operator>>(Split a, int n) { return {a.low >> n, a.high >> n}; }
  friend FXPTQ_INLINE Split operator-(Split a) { return {-a.low, -a.high}; }
  FXPTQ_INLINE Split& operator+=(Split b) { return *this = *this + b; }
  FXPTQ_INLINE Split& operator|=(Split b) { return *this = *this | b; }

  // As in the extensions, -1 where the relation holds and 0 elsewhere.
  friend FXPTQ_INLINE Split<int32_t> operator!=(Split a, Split b) { return compared(a.low != b.low, a.high != b.high); }
  friend FXPTQ_INLINE Split<int32_t> operator<(Split a, Split b) { return compared(a.low < b.low, a.high < b.high); }
  friend FXPTQ_INLINE Split<int32_t> operator>(Split a, Split b) { return compared(a.low > b.low, a.high > b.high); }

 private:
  template <class M>
  static FXPTQ_INLINE Split<int32_t> compared(M a, M b) {
    typedef int32_t Lanes __attribute__((vector_size(32)));
    static_assert(sizeof(T) == 4, "lanes of 32 bits");
    return {(Lanes)a, (Lanes)b};
  }
};

}  // namespace fxptq::split

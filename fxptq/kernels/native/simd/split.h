// Sixteen lanes in registers of FXPTQ_SPLIT bytes, for processors whose registers have 256 or 128 bits.
//
// GCC keeps a 64-byte vector in memory where no register holds it, so that every operation would load and store. Vectors of
// the size of a register in a struct stay in registers. The operators are those of the vector extensions, for both halves;
// a half is a register, or split once more.
#pragma once

#include <cstdint>

namespace fxptq::split {

template <class T, int kBytes>
struct Split;

template <class T, int kBytes>
struct Part {
  using Type = Split<T, kBytes>;
};

template <class T>
struct Part<T, FXPTQ_SPLIT> {
  typedef T Type __attribute__((vector_size(FXPTQ_SPLIT)));
};

template <class T, int kBytes = 64>
struct Split {
  using Half = typename Part<T, kBytes / 2>::Type;
  using Mask = Split<int32_t, kBytes>;  // of a comparison of lanes of 32 bits
  static constexpr int kCount = kBytes / sizeof(T);
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
  FXPTQ_INLINE explicit Split(const Split<U, kBytes>& bits) : low((Half)bits.low), high((Half)bits.high) {}

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
  friend FXPTQ_INLINE Mask operator!=(Split a, Split b) { return masks(a.low != b.low, a.high != b.high); }
  friend FXPTQ_INLINE Mask operator<(Split a, Split b) { return masks(a.low < b.low, a.high < b.high); }
  friend FXPTQ_INLINE Mask operator>(Split a, Split b) { return masks(a.low > b.low, a.high > b.high); }

 private:
  template <class M>
  static FXPTQ_INLINE Mask masks(M first, M second) {
    static_assert(sizeof(T) == 4, "lanes of 32 bits");
    return {(typename Mask::Half)first, (typename Mask::Half)second};
  }
};

// Register by register: a copy of the whole struct would put it in memory.
template <class V>
FXPTQ_INLINE V read(const void* from) {
  if constexpr (requires(V v) { v.low; }) {
    return {read<typename V::Half>(from), read<typename V::Half>((const char*)from + sizeof(V) / 2)};
  } else {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
}

template <class V>
FXPTQ_INLINE void write(void* to, const V& v) {
  if constexpr (requires { v.low; }) {
    write(to, v.low);
    write((char*)to + sizeof(V) / 2, v.high);
  } else {
    std::memcpy(to, &v, sizeof v);
  }
}

}  // namespace fxptq::split

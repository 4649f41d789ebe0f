// The operations on vectors in the form that every processor has; their comments say what each operation does.
#pragma once

#include "vectors.h"

namespace fxptq::portable {

// The first n lanes (1 <= n <= 16); the others are zero, and their memory is not touched.
FXPTQ_INLINE Floats load_first(const float* p, int n) {
  if (n == kLanes) return load<Floats>(p);
  Floats v = {};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
}

// The first n lanes as they are, the others zero.
FXPTQ_INLINE Floats keep_first(Floats v, int n) {
  for (int i = n; i < kLanes; ++i) v[i] = 0.0f;
  return v;
}

template <class V, class T>
FXPTQ_INLINE void store_first(T* p, V v, int n) {
  if (n == kLanes) {
    store(p, v);
    return;
  }
  std::memcpy(p, &v, n * sizeof(T));
}

FXPTQ_INLINE Floats maximum(Floats a, Floats b) {
  return a > b ? a : b;
}

FXPTQ_INLINE Floats minimum(Floats a, Floats b) {
  return a < b ? a : b;
}

// Nearest integer, ties to even, for |v| < 2^22.
FXPTQ_INLINE Ints nearest(Floats v) {
  // Adding 1.5 * 2^23 leaves the integer in the low bits of the significand, rounded as the sum is.
  const Floats magic = splat(12582912.0f);
  return (Ints)(v + magic) - (Ints)magic;
}

FXPTQ_INLINE float sum(Floats v) {
  for (int half = 8; half; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
}

FXPTQ_INLINE int32_t sum(Ints v) {
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// Lane i: the sum of v[i].
FXPTQ_INLINE Floats sum_rows(const Floats (&v)[kLanes]) {
  Floats sums;
  for (int i = 0; i < kLanes; ++i) sums[i] = sum(v[i]);
  return sums;
}

FXPTQ_INLINE Floats square_root(Floats v) {
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

// The first n of 64 values as codes: nearest integer, ties to even, below 0 raised to 0; values are at most 255.
FXPTQ_INLINE void store_codes(uint8_t* p, const Floats y[4], int n) {
  for (int v = 0; v < 4 && v * kLanes < n; ++v) {
    const Ints codes = nearest(maximum(y[v], splat(0.0f)));
    for (int i = 0; i < kLanes && v * kLanes + i < n; ++i) p[v * kLanes + i] = (uint8_t)codes[i];
  }
}

// Each lane: acc + the sum of four products, bytes of `a` unsigned, of `b` signed. Exact: nothing saturates on the way.
FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  for (int i = 0; i < 4; ++i) {
    acc += (Ints)((a >> (8 * i)) & 255u) * ((Ints)(b << (24 - 8 * i)) >> 24);
  }
  return acc;
}

// As dot4, for bytes whose products, two neighbours added, fit 16 bits.
FXPTQ_INLINE Ints dot4_small(Ints acc, Words a, Words b) { return dot4(acc, a, b); }

// Whether one instruction computes dot4.
constexpr bool kDotBytes = false;

// Whether one or two instructions compute dot2.
constexpr bool kDotPairs = false;

// One register of 32-bit lanes, each also a pair of 16-bit integers.
constexpr int kRegister = 16;
typedef uint32_t Pairs __attribute__((vector_size(kRegister)));

// Each lane: acc + the sum of two products of signed 16-bit integers, modulo 2^32.
FXPTQ_INLINE Pairs dot2(Pairs acc, Pairs a, Pairs b) {
  typedef int32_t Signed __attribute__((vector_size(kRegister)));
  const Signed low = ((Signed)(a << 16) >> 16) * ((Signed)(b << 16) >> 16), high = ((Signed)a >> 16) * ((Signed)b >> 16);
  return acc + (Pairs)low + (Pairs)high;
}

typedef int16_t Shorts __attribute__((vector_size(kRegister)));

// The 16-bit integers of a and b in turns: in each 128 bits, the first four of both, or the last four.
FXPTQ_INLINE Pairs zip_first(Shorts a, Shorts b) { return (Pairs)__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
FXPTQ_INLINE Pairs zip_last(Shorts a, Shorts b) { return (Pairs)__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// Makes the compiler hold sums in registers at this point, where it would rather hold what comes next.
FXPTQ_INLINE void keep(Pairs&) {}
FXPTQ_INLINE void keep(Ints&) {}

// Sum of n bytes.
FXPTQ_INLINE int32_t sum_bytes(const uint8_t* p, int64_t n) {
  int32_t total = 0;
  int64_t i = 0;
  for (; i < n; ++i) total += p[i];
  return total;
}

// Four runs of sixteen bytes side by side.
FXPTQ_INLINE Bytes join(Bytes16 a, Bytes16 b, Bytes16 c, Bytes16 d) {
  Bytes all;
  const Bytes16 parts[4] = {a, b, c, d};
  std::memcpy(&all, parts, sizeof all);
  return all;
}

// From four rows of sixteen bytes: the first words of all rows, then the second ones, ...
FXPTQ_INLINE Words by_word(Bytes rows) {
  const Words w = (Words)rows;
  return __builtin_shufflevector(w, w, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

// For each run of sixteen signed bytes, two numbers that add up to the sum of the run.
FXPTQ_INLINE Sums row_sums(Bytes codes) {
  Sums sums = {};
  for (int i = 0; i < 64; ++i) sums[i / 8] += (int8_t)codes[i];
  return sums;
}

// Transposes each run of sixteen bytes as a 4 x 4 matrix.
FXPTQ_INLINE Bytes turn_fours(Bytes b) {
  Bytes turned;
  for (int i = 0; i < 64; ++i) turned[i] = b[i / 16 * 16 + i % 4 * 4 + i % 16 / 4];
  return turned;
}

// Four codes in each lane, the first of the four vectors in the lowest byte: nearest integers clipped to 0 .. levels.
// Values must be below 2^31.
FXPTQ_INLINE Words four_codes(const Floats y[4], uint8_t levels) {
  Words four = {};
  for (int i = 0; i < 4; ++i) {
    four |= (Words)nearest(minimum(maximum(y[i], splat(0.0f)), splat((float)levels))) << (8 * i);
  }
  return four;
}

// Stores the sixteen bytes of each lane of four vectors one after the other, lane i at to + 16 * i.
FXPTQ_INLINE void rows_of_words(const Words words[4], uint8_t* to) {
  for (int i = 0; i < kLanes; ++i) {
    for (int w = 0; w < 4; ++w) std::memcpy(to + 16 * i + 4 * w, (const uint32_t*)&words[w] + i, 4);
  }
}

// ---- elementary functions -----------------------------------------------------------------------------------------

// These functions take several vectors at once and go through them step by step, because a processor can overlap the steps
// of independent vectors, but not the steps of one.

// 2^x for x <= 127, to a relative error of 2e-7 above 2^-125 and nearly zero below it. For larger x the result is only
// large; callers need no more.
template <int N>
FXPTQ_INLINE void exp2(Floats (&x)[N]) {
  // Least maximum relative error on [0, 1], degree 5, by weighted least squares.
  static const float c[] = {9.99999940e-01f, 6.93153083e-01f, 2.40153611e-01f, 5.58263175e-02f, 8.98934063e-03f};
  Floats f[N], p[N];
  Ints n[N];
  for (int i = 0; i < N; ++i) {
    x[i] = minimum(maximum(x[i], splat(-125.0f)), splat(127.0f));
    n[i] = nearest(x[i] - 0.5f);
    f[i] = x[i] - to_floats(n[i]);
  }
  for (int i = 0; i < N; ++i) p[i] = splat(1.87757669e-03f);
  for (int k = 4; k >= 0; --k) {
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + c[k];
  }
  for (int i = 0; i < N; ++i) {
    x[i] = (Floats)((Ints)p[i] + (n[i] << 23));
  }
}

// x * Phi(x), absolute error below 1e-6: Phi(u) - 1/2 as u times a polynomial of degree 13 in u^2, |u| <= 5.5 (least maximum
// error by weighted least squares; the polynomial is in 2 u^2 / 5.5^2 - 1 so that its coefficients stay small).
template <int N>
FXPTQ_INLINE void gelu(Floats (&x)[N]) {
  static const float c[] = {1.28551945e-01f,  -6.41719773e-02f, 4.77355830e-02f,  -3.88047136e-02f, 3.21139880e-02f,
                            -2.59419121e-02f, 2.00271960e-02f,  -1.53723033e-02f, 1.14313848e-02f,  -6.29635993e-03f,
                            2.46822368e-03f,  -2.51315697e-03f, 2.59530405e-03f};
  Floats u[N], t[N], p[N];
  for (int i = 0; i < N; ++i) u[i] = minimum(maximum(x[i], splat(-5.5f)), splat(5.5f));
  for (int i = 0; i < N; ++i) t[i] = u[i] * u[i] * (2.0f / 30.25f) - 1.0f;
  for (int i = 0; i < N; ++i) p[i] = splat(-9.14128788e-04f);
#pragma GCC unroll 13
  for (int k = 12; k >= 0; --k) {
    for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + c[k];
  }
  for (int i = 0; i < N; ++i) x[i] = x[i] * (u[i] * p[i] + 0.5f);
}

}  // namespace fxptq::portable

// The operations of portable.h on ARM's NEON, in fours of 128-bit registers.
//
// Products of bytes come in three kinds. With i8mm one instruction multiplies unsigned by signed bytes. With dotprod both
// factors of `sdot` are signed: codes are taken as code - 128 (`shifted`), and sums start at 128 times the sum of the
// weights. Without either, bytes are multiplied to 16 bits, again both signed. `dot` is the product of a shifted vector.
#pragma once

#include <arm_neon.h>

#include "vectors.h"

namespace fxptq::neon {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kDotBytes = true;
constexpr int kCodeShift = 0;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kDotBytes = true;
constexpr int kCodeShift = 128;
#else
constexpr bool kDotBytes = false;
constexpr int kCodeShift = 128;
#endif

// Applies a function to the registers of vectors, one of each at a time.
template <class To, class Function, class... From>
FXPTQ_INLINE To each(Function function, const From&... v) {
  using Register = typename To::Half::Half;
  return {{(Register)function(v.low.low...), (Register)function(v.low.high...)},
          {(Register)function(v.high.low...), (Register)function(v.high.high...)}};
}

template <class V, class R>
FXPTQ_INLINE V joined(R a, R b, R c, R d) {
  using Register = typename V::Half::Half;
  return {{(Register)a, (Register)b}, {(Register)c, (Register)d}};
}

template <class R, class V>
FXPTQ_INLINE void registers(const V& v, R (&to)[4]) {
  to[0] = (R)v.low.low, to[1] = (R)v.low.high, to[2] = (R)v.high.low, to[3] = (R)v.high.high;
}

// The first n lanes of a register; n may also be below 0 or above 4.
FXPTQ_INLINE float32x4_t load_lanes(const float* p, int n) {
  if (n >= 4) return vld1q_f32(p);
  const float32x4_t zero = vdupq_n_f32(0.0f);
  if (n <= 0) return zero;
  if (n == 1) return vld1q_lane_f32(p, zero, 0);
  const float32x4_t two = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
  return n == 2 ? two : vld1q_lane_f32(p + 2, two, 2);
}

FXPTQ_INLINE Floats load_first(const float* p, int n) {
  if (n == kLanes) return load<Floats>(p);
  return joined<Floats>(load_lanes(p, n), load_lanes(p + 4, n - 4), load_lanes(p + 8, n - 8), load_lanes(p + 12, n - 12));
}

FXPTQ_INLINE Floats keep_first(Floats v, int n) {
  static const int32_t set[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  return (Floats)((Ints)v & load<Ints>(set + 16 - n));
}

// The first n bytes of a register, n < 16, in whole pieces.
FXPTQ_INLINE void store_bytes(uint8_t* p, uint8x16_t v, int n) {
  if (n & 8) {
    vst1_u8(p, vget_low_u8(v));
    v = vextq_u8(v, v, 8), p += 8;
  }
  if (n & 4) {
    vst1q_lane_u32((uint32_t*)p, vreinterpretq_u32_u8(v), 0);
    v = vextq_u8(v, v, 4), p += 4;
  }
  if (n & 2) {
    vst1q_lane_u16((uint16_t*)p, vreinterpretq_u16_u8(v), 0);
    v = vextq_u8(v, v, 2), p += 2;
  }
  if (n & 1) vst1q_lane_u8(p, v, 0);
}

template <class V, class T>
FXPTQ_INLINE void store_first(T* p, V v, int n) {
  static_assert(sizeof(T) == 4, "lanes of 32 bits");
  if (n == kLanes) {
    store(p, v);
    return;
  }
  uint8x16_t part[4];
  registers(v, part);
  uint8_t* to = (uint8_t*)p;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, n -= 4, to += 16) {
    if (n >= 4) {
      vst1q_u8(to, part[i]);
    } else {
      if (n > 0) store_bytes(to, part[i], 4 * n);
      return;
    }
  }
}

FXPTQ_INLINE Floats maximum(Floats a, Floats b) {
  // A number wins over NaN.
  return each<Floats>([](auto x, auto y) { return vmaxnmq_f32((float32x4_t)x, (float32x4_t)y); }, a, b);
}

FXPTQ_INLINE Floats minimum(Floats a, Floats b) {
  return each<Floats>([](auto x, auto y) { return vminnmq_f32((float32x4_t)x, (float32x4_t)y); }, a, b);
}

FXPTQ_INLINE Ints nearest(Floats v) {
  return each<Ints>([](auto x) { return vcvtnq_s32_f32((float32x4_t)x); }, v);
}

FXPTQ_INLINE float sum(Floats v) {
  return vaddvq_f32((float32x4_t)((v.low.low + v.low.high) + (v.high.low + v.high.high)));
}

FXPTQ_INLINE int32_t sum(Ints v) {
  return vaddvq_s32((int32x4_t)((v.low.low + v.low.high) + (v.high.low + v.high.high)));
}

FXPTQ_INLINE Floats sum_rows(const Floats (&v)[kLanes]) {
  const auto four = [&](int r) { return (float32x4_t)((v[r].low.low + v[r].low.high) + (v[r].high.low + v[r].high.high)); };
  const auto rows = [&](int r) { return vpaddq_f32(vpaddq_f32(four(r), four(r + 1)), vpaddq_f32(four(r + 2), four(r + 3))); };
  return joined<Floats>(rows(0), rows(4), rows(8), rows(12));
}

FXPTQ_INLINE Floats square_root(Floats v) {
  return each<Floats>([](auto x) { return vsqrtq_f32((float32x4_t)x); }, v);
}

// Sixteen values of at most 255 as bytes: nearest integers, below 0 raised to 0.
FXPTQ_INLINE uint8x16_t codes_of(Floats y) {
  uint16x8_t v[4];
  registers(each<Words>([](auto x) { return vcvtnq_u32_f32((float32x4_t)x); }, y), v);
  return vuzp1q_u8(vreinterpretq_u8_u16(vuzp1q_u16(v[0], v[1])), vreinterpretq_u8_u16(vuzp1q_u16(v[2], v[3])));
}

FXPTQ_INLINE void store_codes(uint8_t* p, const Floats y[4], int n) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v, n -= 16, p += 16) {
    if (n >= 16) {
      vst1q_u8(p, codes_of(y[v]));
    } else {
      if (n > 0) store_bytes(p, codes_of(y[v]), n);
      return;
    }
  }
}

constexpr bool kDotPairs = false;
constexpr int kRegister = 16;
typedef uint32_t Pairs __attribute__((vector_size(kRegister)));

FXPTQ_INLINE Pairs dot2(Pairs acc, Pairs a, Pairs b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
  return acc + (Pairs)vpaddq_s32(low, high);
}

typedef int16_t Shorts __attribute__((vector_size(kRegister)));

FXPTQ_INLINE Pairs zip_first(Shorts a, Shorts b) { return (Pairs)vzip1q_s16((int16x8_t)a, (int16x8_t)b); }
FXPTQ_INLINE Pairs zip_last(Shorts a, Shorts b) { return (Pairs)vzip2q_s16((int16x8_t)a, (int16x8_t)b); }

FXPTQ_INLINE void keep(Pairs& sum) { asm volatile("" : "+w"(sum)); }

FXPTQ_INLINE void keep(Ints& v) {
  asm volatile("" : "+w"(v.low.low), "+w"(v.low.high), "+w"(v.high.low), "+w"(v.high.high));
}

// Bytes of `a` unsigned, or signed where kCodeShift is 128; bytes of `b` signed.
FXPTQ_INLINE int32x4_t dot(int32x4_t acc, uint8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(acc, a, b);
#elif defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, vreinterpretq_s8_u8(a), b);
#else
  const int8x16_t s = vreinterpretq_s8_u8(a);
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(s), vget_low_s8(b))), high = vpaddlq_s16(vmull_high_s8(s, b));
  return vaddq_s32(acc, vpaddq_s32(low, high));
#endif
}

FXPTQ_INLINE Ints dot(Ints acc, Words a, Words b) {
  return each<Ints>([](auto s, auto x, auto y) { return dot((int32x4_t)s, (uint8x16_t)x, (int8x16_t)y); }, acc, a, b);
}

#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
// The product with one word of `b`.
template <int kWord>
FXPTQ_INLINE Ints dot_word(Ints acc, Words a, int8x16_t b) {
  const auto product = [b](auto s, auto x) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return vusdotq_laneq_s32((int32x4_t)s, (uint8x16_t)x, b, kWord);
#else
    return vdotq_laneq_s32((int32x4_t)s, (int8x16_t)x, b, kWord);
#endif
  };
  return each<Ints>(product, acc, a);
}
#endif

FXPTQ_INLINE Words shifted(Words a) { return kCodeShift ? a ^ Words(0x80808080u) : a; }

FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  if constexpr (kCodeShift != 0) {
    const Words half(0x40404040u);  // twice 64 is the shift
    acc = dot(dot(acc, half, b), half, b);
  }
  return dot(acc, shifted(a), b);
}

FXPTQ_INLINE Ints dot4_small(Ints acc, Words a, Words b) { return dot4(acc, a, b); }

FXPTQ_INLINE int32_t sum_bytes(const uint8_t* p, int64_t n) {
  uint32x4_t acc = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) acc = vpadalq_u16(acc, vpaddlq_u8(vld1q_u8(p + i)));
  for (; i + 4 <= n; i += 4) {
    uint32_t word;
    std::memcpy(&word, p + i, 4);
    acc = vaddw_u16(acc, vget_low_u16(vmovl_u8(vcreate_u8(word))));
  }
  int32_t total = (int32_t)vaddvq_u32(acc);
  for (; i < n; ++i) total += p[i];
  return total;
}

FXPTQ_INLINE Words splat_word(const void* p) {
  const uint32x4_t word = vld1q_dup_u32((const uint32_t*)p);
  return joined<Words>(word, word, word, word);
}

// Sums of products of the same codes with N words that lie one after the other, read by fours or twos where an instruction
// takes one of them.
template <int N, int kFirst = 0>
FXPTQ_INLINE void dot_words(Ints (&acc)[N], Words codes, const uint8_t* words) {
  constexpr int kLeft = N - kFirst;
#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
  constexpr int kRead = kLeft >= 4 ? 4 : kLeft >= 2 ? 2 : kLeft;
#else
  constexpr int kRead = kLeft > 0 ? 1 : 0;
#endif
  const int8_t* at = (const int8_t*)words + 4 * kFirst;
  if constexpr (kRead == 1) acc[kFirst] = dot(acc[kFirst], codes, splat_word(at));
#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
  if constexpr (kRead > 1) {
    const int8x16_t read = kRead == 4 ? vld1q_s8(at) : vcombine_s8(vld1_s8(at), vdup_n_s8(0));
    acc[kFirst] = dot_word<0>(acc[kFirst], codes, read);
    acc[kFirst + 1] = dot_word<1>(acc[kFirst + 1], codes, read);
    if constexpr (kRead == 4) {
      acc[kFirst + 2] = dot_word<2>(acc[kFirst + 2], codes, read);
      acc[kFirst + 3] = dot_word<3>(acc[kFirst + 3], codes, read);
    }
  }
#endif
  if constexpr (kLeft > kRead) dot_words<N, kFirst + kRead>(acc, codes, words);
}

FXPTQ_INLINE Bytes join(Bytes16 a, Bytes16 b, Bytes16 c, Bytes16 d) { return joined<Bytes>(a, b, c, d); }

FXPTQ_INLINE Words by_word(Bytes rows) {
  uint32x4_t r[4];
  registers(rows, r);
  const uint32x4_t a = vzip1q_u32(r[0], r[2]), b = vzip2q_u32(r[0], r[2]);
  const uint32x4_t c = vzip1q_u32(r[1], r[3]), d = vzip2q_u32(r[1], r[3]);
  return joined<Words>(vzip1q_u32(a, c), vzip2q_u32(a, c), vzip1q_u32(b, d), vzip2q_u32(b, d));
}

FXPTQ_INLINE Sums row_sums(Bytes codes) {
  return each<Sums>([](auto x) { return vpaddlq_s32(vpaddlq_s16(vpaddlq_s8((int8x16_t)x))); }, codes);
}

FXPTQ_INLINE Bytes turn_fours(Bytes b) {
  static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t from = vld1q_u8(order);
  return each<Bytes>([from](auto x) { return vqtbl1q_u8((uint8x16_t)x, from); }, b);
}

FXPTQ_INLINE Words four_codes(const Floats y[4], uint8_t levels) {
  const auto four = [levels](auto a, auto b, auto c, auto d) {
    const auto code = [levels](auto x) { return vminq_u32(vcvtnq_u32_f32((float32x4_t)x), vdupq_n_u32(levels)); };
    return vsliq_n_u32(vsliq_n_u32(vsliq_n_u32(code(a), code(b), 8), code(c), 16), code(d), 24);
  };
  return each<Words>(four, y[0], y[1], y[2], y[3]);
}

FXPTQ_INLINE void rows_of_words(const Words words[4], uint8_t* to) {
  uint32x4_t w[4][4];
  for (int i = 0; i < 4; ++i) registers(words[i], w[i]);
  for (int i = 0; i < 4; ++i) vst4q_u32((uint32_t*)to + 16 * i, (uint32x4x4_t{{w[0][i], w[1][i], w[2][i], w[3][i]}}));
}

// Applies a function of registers to vectors, `kRegisters` at a time: more at once would not fit the registers, and fewer
// would leave steps to wait for each other.
template <int kRegisters, int N, class Function>
FXPTQ_INLINE void by_registers(Floats (&x)[N], Function function) {
  float32x4_t all[N][4];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) registers(x[i], all[i]);
  constexpr int rest = 4 * N % kRegisters;
#pragma GCC unroll 16
  for (int i = 0; i + kRegisters <= 4 * N; i += kRegisters) function.template operator()<kRegisters>(all[0] + i);
  if constexpr (rest > 0) function.template operator()<rest>(all[0] + 4 * N - rest);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = joined<Floats>(all[i][0], all[i][1], all[i][2], all[i][3]);
}

template <int N>
FXPTQ_INLINE void exp2(Floats (&x)[N]) {
  // Least maximum relative error on [0, 1], degree 5, by weighted least squares.
  by_registers<8>(x, []<int M>(float32x4_t* v) __attribute__((always_inline)) {
    static constexpr float c[] = {9.99999940e-01f, 6.93153083e-01f, 2.40153611e-01f, 5.58263175e-02f, 8.98934063e-03f};
    float32x4_t p[M];
    int32x4_t whole[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      v[i] = vminq_f32(vmaxq_f32(v[i], vdupq_n_f32(-125.0f)), vdupq_n_f32(127.0f));
      whole[i] = vcvtmq_s32_f32(v[i]);
      v[i] = vsubq_f32(v[i], vcvtq_f32_s32(whole[i]));
      p[i] = vdupq_n_f32(1.87757669e-03f);
    }
#pragma GCC unroll 8
    for (int k = 4; k >= 0; --k) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) p[i] = vfmaq_f32(vdupq_n_f32(c[k]), p[i], v[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      v[i] = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p[i]), vshlq_n_s32(whole[i], 23)));
    }
  });
}

// x * Phi(x) = max(x, 0) - t * Phi(-t) with t = |x|, absolute error below 1e-6. The second term is a polynomial of degree 14
// in 2 t / 5.5 - 1 for t <= 5.5, of least maximum error; beyond it is nearly zero.
template <int N>
FXPTQ_INLINE void gelu(Floats (&x)[N]) {
  by_registers<6>(x, []<int M>(float32x4_t* v) __attribute__((always_inline)) {
    static constexpr float c[] = {8.194839936e-03f,  -6.057901532e-02f, 1.912024037e-01f,  -3.086455514e-01f, 1.802381807e-01f,
                                  2.600707503e-01f,  -6.386911697e-01f, 4.611947717e-01f,  1.921804617e-01f,  -5.485649100e-01f,
                                  1.852054442e-01f,  2.362361701e-01f,  -1.542501618e-01f, -3.971256862e-02f, 3.592018339e-02f};
    float32x4_t u[M], p[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      u[i] = vfmaq_f32(vdupq_n_f32(-1.0f), vminq_f32(vabsq_f32(v[i]), vdupq_n_f32(5.5f)), vdupq_n_f32(2 / 5.5f));
      p[i] = vdupq_n_f32(c[14]);
    }
#pragma GCC unroll 16
    for (int k = 13; k >= 0; --k) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) p[i] = vfmaq_f32(vdupq_n_f32(c[k]), p[i], u[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      v[i] = vsubq_f32(vmaxq_f32(v[i], vdupq_n_f32(0.0f)), p[i]);
      asm volatile("" : "+w"(v[i]));  // or GCC begins the next ones here, for which there is no room
    }
  });
}

}  // namespace fxptq::neon

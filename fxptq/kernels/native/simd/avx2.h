// The operations of portable.h on AVX2, in pairs of 256-bit registers.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace fxptq::avx2 {

FXPTQ_INLINE Floats floats(__m256 low, __m256 high) { return {(Floats::Half)low, (Floats::Half)high}; }
FXPTQ_INLINE Ints ints(__m256i low, __m256i high) { return {(Ints::Half)low, (Ints::Half)high}; }

// Lanes set below n, of sixteen: the first eight, or with from = 8 the others.
FXPTQ_INLINE __m256i lanes_below(int n, int from) {
  static const int32_t set[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i*)(set + 16 - n + from));
}

FXPTQ_INLINE Floats load_first(const float* p, int n) {
  if (n == kLanes) return load<Floats>(p);
  return floats(_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + 8, lanes_below(n, 8)));
}

FXPTQ_INLINE Floats keep_first(Floats v, int n) {
  return (Floats)((Ints)v & ints(lanes_below(n, 0), lanes_below(n, 8)));
}

// The first n bytes of a register, n < 32, in whole pieces: masked stores are slow on some processors.
FXPTQ_INLINE void store_bytes(void* p, __m256i v, int n) {
  uint8_t* to = (uint8_t*)p;
  __m128i part = _mm256_castsi256_si128(v);
  if (n & 16) {
    _mm_storeu_si128((__m128i*)to, part);
    part = _mm256_extracti128_si256(v, 1), to += 16;
  }
  if (n & 8) {
    _mm_storel_epi64((__m128i*)to, part);
    part = _mm_unpackhi_epi64(part, part), to += 8;
  }
  if (n & 7) {
    const int64_t rest = _mm_cvtsi128_si64(part);
    int64_t left = rest;
    if (n & 4) std::memcpy(to, &left, 4), left = rest >> 32, to += 4;
    if (n & 2) std::memcpy(to, &left, 2), left >>= 16, to += 2;
    if (n & 1) std::memcpy(to, &left, 1);
  }
}

template <class V, class T>
FXPTQ_INLINE void store_first(T* p, V v, int n) {
  static_assert(sizeof(T) == 4, "lanes of 32 bits");
  if (n == kLanes) {
    store(p, v);
  } else if (n >= 8) {
    std::memcpy(p, &v.low, 32);
    store_bytes(p + 8, (__m256i)v.high, 4 * (n - 8));
  } else {
    store_bytes(p, (__m256i)v.low, 4 * n);
  }
}

FXPTQ_INLINE Floats maximum(Floats a, Floats b) {
  return floats(_mm256_max_ps((__m256)a.low, (__m256)b.low), _mm256_max_ps((__m256)a.high, (__m256)b.high));
}

FXPTQ_INLINE Floats minimum(Floats a, Floats b) {
  return floats(_mm256_min_ps((__m256)a.low, (__m256)b.low), _mm256_min_ps((__m256)a.high, (__m256)b.high));
}

FXPTQ_INLINE Ints nearest(Floats v) {
  return ints(_mm256_cvtps_epi32((__m256)v.low), _mm256_cvtps_epi32((__m256)v.high));
}

FXPTQ_INLINE float sum(Floats v) {
  const __m256 eight = (__m256)(v.low + v.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

FXPTQ_INLINE int32_t sum(Ints v) {
  const __m256i eight = (__m256i)(v.low + v.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 1)));
}

FXPTQ_INLINE Floats sum_rows(const Floats (&v)[kLanes]) {
  // Horizontal additions interleave the rows while they add up neighbouring lanes, within 128 bits.
  __m256 eights[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256 fours[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Floats* row = v + 8 * half + 4 * i;
      const auto eight = [&](int r) { return (__m256)(row[r].low + row[r].high); };
      fours[i] = _mm256_hadd_ps(_mm256_hadd_ps(eight(0), eight(1)), _mm256_hadd_ps(eight(2), eight(3)));
    }
    eights[half] = _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                                 _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
  }
  return floats(eights[0], eights[1]);
}

FXPTQ_INLINE Floats square_root(Floats v) {
  return floats(_mm256_sqrt_ps((__m256)v.low), _mm256_sqrt_ps((__m256)v.high));
}

// Thirty-two values as bytes, saturated on both sides. Packing works within 128 bits and leaves the lanes of the four
// registers side by side, four at a time.
FXPTQ_INLINE __m256i packed(Floats::Half a, Floats::Half b, Floats::Half c, Floats::Half d) {
  const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)a), _mm256_cvtps_epi32((__m256)b));
  const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)c), _mm256_cvtps_epi32((__m256)d));
  return _mm256_packus_epi16(first, second);
}

FXPTQ_INLINE void store_codes(uint8_t* p, const Floats y[4], int n) {
  // The saturation is the lower clip.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto codes = [&](int v) {
    return _mm256_permutevar8x32_epi32(packed(y[v].low, y[v].high, y[v + 1].low, y[v + 1].high), order);
  };
  if (n < 32) {
    store_bytes(p, codes(0), n);
    return;
  }
  _mm256_storeu_si256((__m256i*)p, codes(0));
  if (n == 64) {
    _mm256_storeu_si256((__m256i*)(p + 32), codes(2));
  } else if (n > 32) {
    store_bytes(p + 32, codes(2), n - 32);
  }
}

constexpr bool kDotBytes = false;
constexpr bool kDotPairs = true;
constexpr int kRegister = 32;
typedef uint32_t Pairs __attribute__((vector_size(kRegister)));

typedef int16_t Shorts __attribute__((vector_size(kRegister)));

FXPTQ_INLINE Pairs zip_first(Shorts a, Shorts b) { return (Pairs)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b); }
FXPTQ_INLINE Pairs zip_last(Shorts a, Shorts b) { return (Pairs)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b); }

FXPTQ_INLINE Pairs dot2(Pairs acc, Pairs a, Pairs b) {
  return (Pairs)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16((__m256i)a, (__m256i)b));
}

// Without this, gcc loads the operands of several rows ahead and spills sums for them.
FXPTQ_INLINE void keep(Pairs& sums) { asm volatile("" : "+x"(sums)); }
FXPTQ_INLINE void keep(Ints& sums) { asm volatile("" : "+x"(sums.low), "+x"(sums.high)); }

// Applies an intrinsic to both halves.
template <class To, class Function, class... From>
FXPTQ_INLINE To halves(Function function, From... from) {
  return {(typename To::Half)function((__m256i)from.low...), (typename To::Half)function((__m256i)from.high...)};
}

// Products of bytes in pairs: each 16-bit lane is the sum of two, saturated.
FXPTQ_INLINE Ints pairs4(Words a, Words b) {
  return halves<Ints>([](__m256i x, __m256i y) { return _mm256_maddubs_epi16(x, y); }, a, b);
}

FXPTQ_INLINE Ints add16(Ints a, Ints b) {
  return halves<Ints>([](__m256i x, __m256i y) { return _mm256_add_epi16(x, y); }, a, b);
}

// Each lane: acc + the sum of two products of signed 16-bit integers.
FXPTQ_INLINE Ints dot2(Ints acc, Words a, Words b) {
  return halves<Ints>([](__m256i s, __m256i x, __m256i y) { return _mm256_add_epi32(s, _mm256_madd_epi16(x, y)); }, acc, a, b);
}

// Each lane: the sum of its two 16-bit integers.
FXPTQ_INLINE Ints sum2(Ints a) {
  return halves<Ints>([](__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }, a);
}

// The even and the odd bytes as 16-bit integers, unsigned and signed.
FXPTQ_INLINE Words even_bytes(Words a) { return a & Words(0x00ff00ffu); }
FXPTQ_INLINE Words odd_bytes(Words a) {
  return halves<Words>([](__m256i x) { return _mm256_srli_epi16(x, 8); }, a);
}
FXPTQ_INLINE Words even_signed(Words a) {
  return halves<Words>([](__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }, a);
}
FXPTQ_INLINE Words odd_signed(Words a) {
  return halves<Words>([](__m256i x) { return _mm256_srai_epi16(x, 8); }, a);
}

// The lanes of two vectors in turns, from `to` on.
FXPTQ_INLINE void store_in_turns(uint8_t* to, Words a, Words b) {
  const auto store_half = [](uint8_t* at, __m256i x, __m256i y) {
    const __m256i low = _mm256_unpacklo_epi32(x, y), high = _mm256_unpackhi_epi32(x, y);
    _mm256_storeu_si256((__m256i*)at, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i*)(at + 32), _mm256_permute2x128_si256(low, high, 0x31));
  };
  store_half(to, (__m256i)a.low, (__m256i)b.low);
  store_half(to + 64, (__m256i)a.high, (__m256i)b.high);
}

FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  return dot2(dot2(acc, even_bytes(a), even_signed(b)), odd_bytes(a), odd_signed(b));
}

FXPTQ_INLINE Ints dot4_small(Ints acc, Words a, Words b) { return acc + sum2(pairs4(a, b)); }

FXPTQ_INLINE int32_t sum_bytes(const uint8_t* p, int64_t n) {
  __m256i acc = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    acc = _mm256_add_epi64(acc, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i*)(p + i)), _mm256_setzero_si256()));
  }
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_sad_epu8(_mm_loadl_epi64((const __m128i*)(p + i)), _mm_setzero_si128());
    acc = _mm256_add_epi64(acc, _mm256_zextsi128_si256(eight));
  }
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
  int32_t total = (int32_t)(_mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1));
  for (; i < n; ++i) total += p[i];
  return total;
}

FXPTQ_INLINE Bytes join(Bytes16 a, Bytes16 b, Bytes16 c, Bytes16 d) {
  return {(Bytes::Half)_mm256_set_m128i((__m128i)b, (__m128i)a), (Bytes::Half)_mm256_set_m128i((__m128i)d, (__m128i)c)};
}

FXPTQ_INLINE Words by_word(Bytes rows) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), ab = (__m256i)rows.low, cd = (__m256i)rows.high;
  return {(Words::Half)_mm256_permutevar8x32_epi32(_mm256_unpacklo_epi32(ab, cd), order),
          (Words::Half)_mm256_permutevar8x32_epi32(_mm256_unpackhi_epi32(ab, cd), order)};
}

FXPTQ_INLINE Sums row_sums(Bytes codes) {
  // Bytes plus 128, summed by eights.
  const Bytes raised = codes ^ splat_byte(128);
  const __m256i zero = _mm256_setzero_si256();
  return Sums((Sums::Half)_mm256_sad_epu8((__m256i)raised.low, zero), (Sums::Half)_mm256_sad_epu8((__m256i)raised.high, zero)) -
         Sums(8 * 128);
}

FXPTQ_INLINE Bytes turn_fours(Bytes b) {
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return {(Bytes::Half)_mm256_shuffle_epi8((__m256i)b.low, order), (Bytes::Half)_mm256_shuffle_epi8((__m256i)b.high, order)};
}

FXPTQ_INLINE Words four_codes(const Floats y[4], uint8_t levels) {
  const __m256i top = _mm256_set1_epi8((char)levels);
  const __m256i low = _mm256_min_epu8(packed(y[0].low, y[1].low, y[2].low, y[3].low), top);
  const __m256i high = _mm256_min_epu8(packed(y[0].high, y[1].high, y[2].high, y[3].high), top);
  return (Words)turn_fours({(Bytes::Half)low, (Bytes::Half)high});
}

FXPTQ_INLINE void rows_of_words(const Words words[4], uint8_t* to) {
  const auto store_half = [](__m256i w0, __m256i w1, __m256i w2, __m256i w3, uint8_t* at) {
    const __m256i a = _mm256_unpacklo_epi32(w0, w1), b = _mm256_unpackhi_epi32(w0, w1);
    const __m256i c = _mm256_unpacklo_epi32(w2, w3), d = _mm256_unpackhi_epi32(w2, w3);
    const __m256i rows[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                             _mm256_unpackhi_epi64(b, d)};
    for (int i = 0; i < 4; ++i) {  // rows[i] holds lanes i and i + 4
      _mm_storeu_si128((__m128i*)(at + 16 * i), _mm256_castsi256_si128(rows[i]));
      _mm_storeu_si128((__m128i*)(at + 16 * (i + 4)), _mm256_extracti128_si256(rows[i], 1));
    }
  };
  store_half((__m256i)words[0].low, (__m256i)words[1].low, (__m256i)words[2].low, (__m256i)words[3].low, to);
  store_half((__m256i)words[0].high, (__m256i)words[1].high, (__m256i)words[2].high, (__m256i)words[3].high, to + 128);
}

// Applies a function of registers to vectors, `kRegisters` at a time: more of them at once would not fit the sixteen
// registers, and fewer would leave steps to wait for each other.
template <int kRegisters, int N, class Function>
FXPTQ_INLINE void by_registers(Floats (&x)[N], Function function) {
  __m256 all[2 * N];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * N; ++i) all[i] = (__m256)(i % 2 ? x[i / 2].high : x[i / 2].low);
#pragma GCC unroll 16
  for (int i = 0; i + kRegisters <= 2 * N; i += kRegisters) function.template operator()<kRegisters>(all + i);
  constexpr int rest = 2 * N % kRegisters;
  if constexpr (rest > 0) function.template operator()<rest>(all + 2 * N - rest);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = floats(all[2 * i], all[2 * i + 1]);
}

// Least maximum relative error on [-1/2, 1/2], degree 5, each coefficient fitted with the ones before it rounded.
constexpr float kExp2[] = {1.0f, 6.931470037e-01f, 2.402224690e-01f, 5.550710857e-02f, 9.671291336e-03f, 1.326952130e-03f};

template <int N>
FXPTQ_INLINE void exp2(Floats (&x)[N]) {
  by_registers<4>(x, []<int M>(__m256* v) __attribute__((always_inline)) {
    const __m256 magic = _mm256_set1_ps(12582912.0f);  // 1.5 * 2^23: the low bits of a sum with it are the nearest integer
    __m256 whole[M], p[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      v[i] = _mm256_min_ps(_mm256_max_ps(v[i], _mm256_set1_ps(-125.0f)), _mm256_set1_ps(127.0f));
      whole[i] = _mm256_add_ps(v[i], magic);
      v[i] = _mm256_sub_ps(v[i], _mm256_sub_ps(whole[i], magic));
      p[i] = _mm256_set1_ps(kExp2[5]);
    }
#pragma GCC unroll 8
    for (int k = 4; k >= 0; --k) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) p[i] = _mm256_fmadd_ps(p[i], v[i], _mm256_set1_ps(kExp2[k]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      v[i] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p[i]), _mm256_slli_epi32(_mm256_castps_si256(whole[i]), 23)));
    }
  });
}

// t * Phi(-t) in 2 t / 5.5 - 1 for t <= 5.5, of least maximum error, degree 14.
constexpr float kGelu[] = {8.194839936e-03f,  -6.057901532e-02f, 1.912024037e-01f,  -3.086455514e-01f, 1.802381807e-01f,
                           2.600707503e-01f,  -6.386911697e-01f, 4.611947717e-01f,  1.921804617e-01f,  -5.485649100e-01f,
                           1.852054442e-01f,  2.362361701e-01f,  -1.542501618e-01f, -3.971256862e-02f, 3.592018339e-02f};

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), absolute error below 1e-6. Beyond 5.5 the second term is nearly zero.
template <int N>
FXPTQ_INLINE void gelu(Floats (&x)[N]) {
  by_registers<6>(x, []<int M>(__m256* v) __attribute__((always_inline)) {
    __m256 u[M], p[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const __m256 t = _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]), _mm256_set1_ps(5.5f));
      u[i] = _mm256_fmsub_ps(t, _mm256_set1_ps(2 / 5.5f), _mm256_set1_ps(1.0f));
      p[i] = _mm256_set1_ps(kGelu[14]);
    }
#pragma GCC unroll 16
    for (int k = 13; k >= 0; --k) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) p[i] = _mm256_fmadd_ps(p[i], u[i], _mm256_set1_ps(kGelu[k]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) v[i] = _mm256_sub_ps(_mm256_max_ps(v[i], _mm256_setzero_ps()), p[i]);
  });
}

}  // namespace fxptq::avx2

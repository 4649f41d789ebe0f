// The operations of portable.h on AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace fxptq::avx512 {

FXPTQ_INLINE Floats load_first(const float* p, int n) {
  if (n == kLanes) return load<Floats>(p);
  return (Floats)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

FXPTQ_INLINE Floats keep_first(Floats v, int n) {
  return (Floats)_mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), (__m512)v);
}

template <class V, class T>
FXPTQ_INLINE void store_first(T* p, V v, int n) {
  if (n == kLanes) {
    store(p, v);
    return;
  }
  _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)v);
}

FXPTQ_INLINE Floats maximum(Floats a, Floats b) {
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
}

FXPTQ_INLINE Floats minimum(Floats a, Floats b) {
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
}

FXPTQ_INLINE Ints nearest(Floats v) {
  return (Ints)_mm512_cvtps_epi32((__m512)v);
}

FXPTQ_INLINE float sum(Floats v) {
  return _mm512_reduce_add_ps((__m512)v);
}

FXPTQ_INLINE int32_t sum(Ints v) {
  return _mm512_reduce_add_epi32((__m512i)v);
}

FXPTQ_INLINE Floats sum_rows(const Floats (&v)[kLanes]) {
  // Rows are interleaved pair by pair while their lanes are added, first within 128 bits, then across.
  __m512 pairs[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return (Floats)halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]));
}

FXPTQ_INLINE Floats square_root(Floats v) {
  return (Floats)_mm512_sqrt_ps((__m512)v);
}

FXPTQ_INLINE void store_codes(uint8_t* p, const Floats y[4], int n) {
  // Packing saturates, which is the lower clip; it works within 128 bits, so that the words come out interleaved.
  const __m512i low = _mm512_packs_epi32((__m512i)nearest(y[0]), (__m512i)nearest(y[1]));
  const __m512i high = _mm512_packs_epi32((__m512i)nearest(y[2]), (__m512i)nearest(y[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
  if (n == 4 * kLanes) {
    _mm512_storeu_si512(p, codes);
  } else {
    _mm512_mask_storeu_epi8(p, ((__mmask64)1 << n) - 1, codes);
  }
}

FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
}

FXPTQ_INLINE Ints dot4_small(Ints acc, Words a, Words b) { return dot4(acc, a, b); }

constexpr bool kDotBytes = true;
constexpr bool kDotPairs = true;
constexpr int kRegister = 64;
typedef uint32_t Pairs __attribute__((vector_size(kRegister)));

typedef int16_t Shorts __attribute__((vector_size(kRegister)));

FXPTQ_INLINE Pairs zip_first(Shorts a, Shorts b) { return (Pairs)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
FXPTQ_INLINE Pairs zip_last(Shorts a, Shorts b) { return (Pairs)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }

FXPTQ_INLINE Pairs dot2(Pairs acc, Pairs a, Pairs b) {
  return (Pairs)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
}

FXPTQ_INLINE void keep(Pairs&) {}
FXPTQ_INLINE void keep(Ints&) {}

FXPTQ_INLINE int32_t sum_bytes(const uint8_t* p, int64_t n) {
  int32_t total = 0;
  int64_t i = 0;
  __m512i acc = _mm512_setzero_si512();
  for (; i < n; i += 64) {
    const __mmask64 mask = n - i >= 64 ? ~0ull : ~0ull >> (64 - (n - i));
    acc = _mm512_add_epi64(acc, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, p + i), _mm512_setzero_si512()));
  }
  total = (int32_t)_mm512_reduce_add_epi64(acc);
  for (; i < n; ++i) total += p[i];
  return total;
}

FXPTQ_INLINE Bytes join(Bytes16 a, Bytes16 b, Bytes16 c, Bytes16 d) {
  const __m512i ab = _mm512_inserti32x4(_mm512_castsi128_si512((__m128i)a), (__m128i)b, 1);
  return (Bytes)_mm512_inserti32x4(_mm512_inserti32x4(ab, (__m128i)c, 2), (__m128i)d, 3);
}

FXPTQ_INLINE Words by_word(Bytes rows) {
  const Words w = (Words)rows;
  return __builtin_shufflevector(w, w, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

FXPTQ_INLINE Sums row_sums(Bytes codes) {
  // Bytes plus 128, summed by eights.
  const Bytes raised = codes ^ splat_byte(128);
  return (Sums)_mm512_sad_epu8((__m512i)raised, _mm512_setzero_si512()) - 8 * 128;
}

FXPTQ_INLINE Bytes turn_fours(Bytes b) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Bytes)_mm512_shuffle_epi8((__m512i)b, _mm512_broadcast_i32x4(order));
}

FXPTQ_INLINE Words four_codes(const Floats y[4], uint8_t levels) {
  const __m512i low = _mm512_packs_epi32((__m512i)nearest(y[0]), (__m512i)nearest(y[1]));
  const __m512i high = _mm512_packs_epi32((__m512i)nearest(y[2]), (__m512i)nearest(y[3]));
  const __m512i codes = _mm512_min_epu8(_mm512_packus_epi16(low, high), _mm512_set1_epi8((char)levels));
  return (Words)turn_fours((Bytes)codes);  // packing has put four lanes of a vector side by side
}

FXPTQ_INLINE void rows_of_words(const Words words[4], uint8_t* to) {
  const __m512i a = _mm512_unpacklo_epi32((__m512i)words[0], (__m512i)words[1]);
  const __m512i b = _mm512_unpackhi_epi32((__m512i)words[0], (__m512i)words[1]);
  const __m512i c = _mm512_unpacklo_epi32((__m512i)words[2], (__m512i)words[3]);
  const __m512i d = _mm512_unpackhi_epi32((__m512i)words[2], (__m512i)words[3]);
  const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                           _mm512_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; ++i) {  // rows[i] holds lanes i, i + 4, i + 8 and i + 12
    _mm_store_si128((__m128i*)(to + 16 * i), _mm512_castsi512_si128(rows[i]));
    _mm_store_si128((__m128i*)(to + 16 * (i + 4)), _mm512_extracti32x4_epi32(rows[i], 1));
    _mm_store_si128((__m128i*)(to + 16 * (i + 8)), _mm512_extracti32x4_epi32(rows[i], 2));
    _mm_store_si128((__m128i*)(to + 16 * (i + 12)), _mm512_extracti32x4_epi32(rows[i], 3));
  }
}

template <int N>
FXPTQ_INLINE void exp2(Floats (&x)[N]) {
  static const float c[] = {9.99999940e-01f, 6.93153083e-01f, 2.40153611e-01f, 5.58263175e-02f, 8.98934063e-03f};
  Floats f[N], p[N];
  for (int i = 0; i < N; ++i) f[i] = (Floats)_mm512_reduce_ps((__m512)x[i], _MM_FROUND_TO_NEG_INF);
  for (int i = 0; i < N; ++i) p[i] = splat(1.87757669e-03f);
  for (int k = 4; k >= 0; --k) {
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + c[k];
  }
  for (int i = 0; i < N; ++i) {
    x[i] = (Floats)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]);
  }
}

// t * Phi(-t) as 32 cubics on equal pieces of [0, 5.5], each through the four Chebyshev nodes of its piece; coefficients are in
// the distance from the middle of the piece, in pieces.
struct GeluPieces {
  static constexpr float kPieces = 32.0f / 5.5f;  // a unit
  alignas(64) float c[4][32];
  GeluPieces() {
    double nodes[4];
    for (int i = 0; i < 4; ++i) nodes[i] = std::cos(std::acos(-1.0) * (2 * i + 1) / 8) / 2;
    for (int piece = 0; piece < 32; ++piece) {
      double divided[4];  // Newton's divided differences, turned into powers below
      for (int i = 0; i < 4; ++i) {
        const double t = (piece + 0.5 + nodes[i]) / kPieces;
        divided[i] = t * std::erfc(t / std::sqrt(2.0)) / 2;
      }
      for (int order = 1; order < 4; ++order) {
        for (int i = 3; i >= order; --i) divided[i] = (divided[i] - divided[i - 1]) / (nodes[i] - nodes[i - order]);
      }
      double power[4] = {divided[3], 0, 0, 0};
      for (int i = 2; i >= 0; --i) {
        for (int k = 3; k > 0; --k) power[k] = power[k - 1] - nodes[i] * power[k];
        power[0] = divided[i] - nodes[i] * power[0];
      }
      for (int k = 0; k < 4; ++k) c[k][piece] = (float)power[k];
    }
  }
};
inline const GeluPieces kGeluPieces;

// x * Phi(x) = max(x, 0) - |x| Phi(-|x|), absolute error below 1e-6.
template <int N>
FXPTQ_INLINE void gelu(Floats (&x)[N]) {
  const Floats whole = splat(12582912.0f);  // 1.5 * 2^23: the low bits of a sum with it are the nearest integer
  Floats c[4][2], u[N], p[N];
  Ints piece[N];
  for (int k = 0; k < 4; ++k) {
    for (int half = 0; half < 2; ++half) c[k][half] = load<Floats>(kGeluPieces.c[k] + half * kLanes);
  }
  const auto coefficient = [&](int k, Ints at) {
    return (Floats)_mm512_permutex2var_ps((__m512)c[k][0], (__m512i)at, (__m512)c[k][1]);
  };
  for (int i = 0; i < N; ++i) {
    u[i] = minimum((Floats)((Ints)x[i] & 0x7fffffff), splat(5.498f)) * GeluPieces::kPieces - 0.5f;
  }
  for (int i = 0; i < N; ++i) {
    const Floats nearest = u[i] + whole;
    piece[i] = (Ints)nearest;
    u[i] = u[i] - (nearest - whole);
  }
  for (int i = 0; i < N; ++i) p[i] = coefficient(3, piece[i]);
  for (int k = 2; k >= 0; --k) {
    for (int i = 0; i < N; ++i) p[i] = p[i] * u[i] + coefficient(k, piece[i]);
  }
  for (int i = 0; i < N; ++i) x[i] = maximum(x[i], splat(0.0f)) - p[i];
}

}  // namespace fxptq::avx512

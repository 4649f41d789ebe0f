// Sixteen lanes of float or int32, on the processor that the compiler builds for.
//
// The types are GCC/Clang vector extensions: arithmetic, comparison and selection are operators, and the compiler splits
// them into registers (one AVX-512, two AVX2, four NEON). Only operations that the extensions lack, the dot product of
// bytes above all, are written for each instruction set. `fxptq_isa()` names the instruction set of the build.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define FXPTQ_AVX512 1
#else
#define FXPTQ_AVX512 0
#endif

// Vectors in arrays stay in registers only where the function around them is inlined.
#define FXPTQ_INLINE inline __attribute__((always_inline))

namespace fxptq {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));  // also: sixteen groups of four bytes
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef int64_t Sums __attribute__((vector_size(64)));

inline const char* isa() {
#if FXPTQ_AVX512
  return "avx512-vnni";
#elif defined(__AVX2__) && defined(__FMA__)
  return "avx2";
#else
  return "generic";
#endif
}

// ---- memory -------------------------------------------------------------------------------------------------------

// Storage that starts on a cache line: no vector of it lies across two.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
};

template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

template <class V, class T>
FXPTQ_INLINE V load(const T* p) {
  V v;
  static_assert(sizeof(V) == kLanes * sizeof(T) || sizeof(T) == 1, "sixteen lanes");
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
FXPTQ_INLINE void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

FXPTQ_INLINE Floats splat(float x) { return Floats{} + x; }
FXPTQ_INLINE Ints splat(int32_t x) { return Ints{} + x; }

// The first n lanes (1 <= n <= 16); the others are zero, and their memory is not touched.
FXPTQ_INLINE Floats load_first(const float* p, int n) {
  if (n == kLanes) return load<Floats>(p);
#if FXPTQ_AVX512
  return (Floats)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  Floats v = {};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
#endif
}

// The first n lanes as they are, the others zero.
FXPTQ_INLINE Floats keep_first(Floats v, int n) {
#if FXPTQ_AVX512
  return (Floats)_mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = n; i < kLanes; ++i) v[i] = 0.0f;
  return v;
#endif
}

template <class V, class T>
FXPTQ_INLINE void store_first(T* p, V v, int n) {
  if (n == kLanes) {
    store(p, v);
    return;
  }
#if FXPTQ_AVX512
  _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)v);
#else
  std::memcpy(p, &v, n * sizeof(T));
#endif
}

// Vector v of a group of 64 floats of which the first n exist.
FXPTQ_INLINE Floats load_part(const float* p, int v, int n) {
  const int here = n - v * kLanes;
  return here <= 0 ? Floats{} : load_first(p + v * kLanes, here < kLanes ? here : kLanes);
}

FXPTQ_INLINE void store_part(float* p, int v, Floats value, int n) {
  const int here = n - v * kLanes;
  if (here > 0) store_first(p + v * kLanes, value, here < kLanes ? here : kLanes);
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

FXPTQ_INLINE Floats maximum(Floats a, Floats b) {
#if FXPTQ_AVX512
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

FXPTQ_INLINE Floats minimum(Floats a, Floats b) {
#if FXPTQ_AVX512
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

FXPTQ_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// Nearest integer, ties to even, for |v| < 2^22.
FXPTQ_INLINE Ints nearest(Floats v) {
#if FXPTQ_AVX512
  return (Ints)_mm512_cvtps_epi32((__m512)v);
#else
  // Adding 1.5 * 2^23 leaves the integer in the low bits of the significand, rounded as the sum is.
  const Floats magic = splat(12582912.0f);
  return (Ints)(v + magic) - (Ints)magic;
#endif
}

FXPTQ_INLINE float sum(Floats v) {
#if FXPTQ_AVX512
  return _mm512_reduce_add_ps((__m512)v);
#else
  for (int half = 8; half; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
#endif
}

// Lane i: the sum of v[i].
FXPTQ_INLINE Floats sum_rows(const Floats (&v)[kLanes]) {
#if FXPTQ_AVX512
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
#else
  Floats sums;
  for (int i = 0; i < kLanes; ++i) sums[i] = sum(v[i]);
  return sums;
#endif
}

FXPTQ_INLINE Floats square_root(Floats v) {
#if FXPTQ_AVX512
  return (Floats)_mm512_sqrt_ps((__m512)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// The first n of 64 values as codes: nearest integer, ties to even, below 0 raised to 0; values are at most 255.
FXPTQ_INLINE void store_codes(uint8_t* p, const Floats y[4], int n) {
#if FXPTQ_AVX512
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
#else
  for (int v = 0; v < 4 && v * kLanes < n; ++v) {
    const Ints codes = nearest(maximum(y[v], splat(0.0f)));
    for (int i = 0; i < kLanes && v * kLanes + i < n; ++i) p[v * kLanes + i] = (uint8_t)codes[i];
  }
#endif
}

FXPTQ_INLINE int32_t sum(Ints v) {
#if FXPTQ_AVX512
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

// Each lane: acc + the sum of four products, bytes of `a` unsigned, of `b` signed. Exact: nothing saturates on the way.
FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
#if FXPTQ_AVX512
  return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  // maddubs saturates for 8-bit codes, so even and odd bytes are widened to 16 bits first.
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i* pa = (const __m256i*)&a;
  const __m256i* pb = (const __m256i*)&b;
  Ints out;
  for (int i = 0; i < 2; ++i) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(pa[i], low), _mm256_srai_epi16(_mm256_slli_epi16(pb[i], 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(pa[i], 8), _mm256_srai_epi16(pb[i], 8));
    ((__m256i*)&out)[i] = _mm256_add_epi32(((const __m256i*)&acc)[i], _mm256_add_epi32(even, odd));
  }
  return out;
#else
  for (int i = 0; i < 4; ++i) {
    acc += (Ints)((a >> (8 * i)) & 255u) * ((Ints)(b << (24 - 8 * i)) >> 24);
  }
  return acc;
#endif
}

// Sum of n bytes.
FXPTQ_INLINE int32_t sum_bytes(const uint8_t* p, int64_t n) {
  int32_t total = 0;
  int64_t i = 0;
#if FXPTQ_AVX512
  __m512i acc = _mm512_setzero_si512();
  for (; i < n; i += 64) {
    const __mmask64 mask = n - i >= 64 ? ~0ull : ~0ull >> (64 - (n - i));
    acc = _mm512_add_epi64(acc, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, p + i), _mm512_setzero_si512()));
  }
  total = (int32_t)_mm512_reduce_add_epi64(acc);
#endif
  for (; i < n; ++i) total += p[i];
  return total;
}

FXPTQ_INLINE Bytes splat_byte(uint8_t byte) {
  Bytes all;
  std::memset(&all, byte, sizeof all);
  return all;
}

// Four runs of sixteen bytes side by side.
FXPTQ_INLINE Bytes join(Bytes16 a, Bytes16 b, Bytes16 c, Bytes16 d) {
#if FXPTQ_AVX512
  const __m512i ab = _mm512_inserti32x4(_mm512_castsi128_si512((__m128i)a), (__m128i)b, 1);
  return (Bytes)_mm512_inserti32x4(_mm512_inserti32x4(ab, (__m128i)c, 2), (__m128i)d, 3);
#else
  Bytes all;
  const Bytes16 parts[4] = {a, b, c, d};
  std::memcpy(&all, parts, sizeof all);
  return all;
#endif
}

// The first n bytes of each run of sixteen set, the others zero.
FXPTQ_INLINE Bytes first_of_rows(int n) {
  static const uint8_t mask[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
  const Bytes16 first = load<Bytes16>(mask + 16 - n);
  return join(first, first, first, first);
}

// For each run of sixteen signed bytes, two numbers that add up to the sum of the run.
FXPTQ_INLINE Sums row_sums(Bytes codes) {
#if FXPTQ_AVX512
  // Bytes plus 128, summed by eights.
  const Bytes raised = codes ^ splat_byte(128);
  return (Sums)_mm512_sad_epu8((__m512i)raised, _mm512_setzero_si512()) - 8 * 128;
#else
  Sums sums = {};
  for (int i = 0; i < 64; ++i) sums[i / 8] += (int8_t)codes[i];
  return sums;
#endif
}

// From four rows of sixteen bytes: the first words of all rows, then the second ones, ...
FXPTQ_INLINE Words by_word(Bytes rows) {
  const Words w = (Words)rows;
  return __builtin_shufflevector(w, w, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

// Transposes each run of sixteen bytes as a 4 x 4 matrix.
FXPTQ_INLINE Bytes turn_fours(Bytes b) {
#if FXPTQ_AVX512
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Bytes)_mm512_shuffle_epi8((__m512i)b, _mm512_broadcast_i32x4(order));
#else
  Bytes turned;
  for (int i = 0; i < 64; ++i) turned[i] = b[i / 16 * 16 + i % 4 * 4 + i % 16 / 4];
  return turned;
#endif
}

// Four codes in each lane, the first of the four vectors in the lowest byte: nearest integers clipped to 0 .. levels.
// Values must be below 2^31.
FXPTQ_INLINE Words four_codes(const Floats y[4], uint8_t levels) {
#if FXPTQ_AVX512
  const __m512i low = _mm512_packs_epi32((__m512i)nearest(y[0]), (__m512i)nearest(y[1]));
  const __m512i high = _mm512_packs_epi32((__m512i)nearest(y[2]), (__m512i)nearest(y[3]));
  const __m512i codes = _mm512_min_epu8(_mm512_packus_epi16(low, high), _mm512_set1_epi8((char)levels));
  return (Words)turn_fours((Bytes)codes);  // packing has put four lanes of a vector side by side
#else
  Words four = {};
  for (int i = 0; i < 4; ++i) {
    four |= (Words)nearest(minimum(maximum(y[i], splat(0.0f)), splat((float)levels))) << (8 * i);
  }
  return four;
#endif
}

// Stores the sixteen bytes of each lane of four vectors one after the other, lane i at to + 16 * i.
FXPTQ_INLINE void rows_of_words(const Words words[4], uint8_t* to) {
#if FXPTQ_AVX512
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
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int w = 0; w < 4; ++w) std::memcpy(to + 16 * i + 4 * w, (const uint32_t*)&words[w] + i, 4);
  }
#endif
}

FXPTQ_INLINE Words splat_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Words{} + word;
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
#if FXPTQ_AVX512
  for (int i = 0; i < N; ++i) f[i] = (Floats)_mm512_reduce_ps((__m512)x[i], _MM_FROUND_TO_NEG_INF);
#else
  Ints n[N];
  for (int i = 0; i < N; ++i) {
    x[i] = minimum(maximum(x[i], splat(-125.0f)), splat(127.0f));
    n[i] = nearest(x[i] - 0.5f);
    f[i] = x[i] - to_floats(n[i]);
  }
#endif
  for (int i = 0; i < N; ++i) p[i] = splat(1.87757669e-03f);
  for (int k = 4; k >= 0; --k) {
    for (int i = 0; i < N; ++i) p[i] = p[i] * f[i] + c[k];
  }
  for (int i = 0; i < N; ++i) {
#if FXPTQ_AVX512
    x[i] = (Floats)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]);
#else
    x[i] = (Floats)((Ints)p[i] + (n[i] << 23));
#endif
  }
}

#if FXPTQ_AVX512
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
#else
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
#endif

}  // namespace fxptq

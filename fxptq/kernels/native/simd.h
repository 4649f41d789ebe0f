// The vectors of simd/vectors.h with the operations of the instruction set that the compiler builds for.
//
// An instruction set is a header in simd/ with a namespace of its own, which has every operation of portable.h. `isa()`
// names the one in use. FXPTQ_SPLIT is the size of a register where a vector takes several (simd/split.h). FXPTQ_DOT16: no
// instruction adds up products of bytes in 32 bits, and the sums in 16 bits of avx2.h are the fast ones.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define FXPTQ_AVX512 1
#include "simd/avx512.h"
namespace fxptq {
using namespace avx512;
inline const char* isa() { return "avx512-vnni"; }
}  // namespace fxptq
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define FXPTQ_SPLIT 32
#include "simd/avxvnni.h"
namespace fxptq {
using namespace avxvnni;
inline const char* isa() { return "avx2-vnni"; }
}  // namespace fxptq
#elif defined(__AVX2__) && defined(__FMA__)
#define FXPTQ_SPLIT 32
#define FXPTQ_DOT16 1
#include "simd/avx2.h"
namespace fxptq {
using namespace avx2;
inline const char* isa() { return "avx2"; }
}  // namespace fxptq
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define FXPTQ_NEON 1
#define FXPTQ_SPLIT 16
#include "simd/neon.h"
namespace fxptq {
using namespace neon;
#if defined(__ARM_FEATURE_MATMUL_INT8)
inline const char* isa() { return "neon-i8mm"; }
#elif defined(__ARM_FEATURE_DOTPROD)
inline const char* isa() { return "neon-dotprod"; }
#else
inline const char* isa() { return "neon"; }
#endif
}  // namespace fxptq
#else
#include "simd/portable.h"
namespace fxptq {
using namespace portable;
inline const char* isa() { return "generic"; }
}  // namespace fxptq
#endif

namespace fxptq {

// Attention keeps its codes as `dot` reads them: code - kCodeShift. Its sums then start at kCodeShift times the sums of the
// other factor.
#if !FXPTQ_NEON
constexpr int kCodeShift = 0;
FXPTQ_INLINE Words shifted(Words codes) { return codes; }
FXPTQ_INLINE Ints dot(Ints acc, Words codes, Words weights) { return dot4(acc, codes, weights); }

FXPTQ_INLINE Words splat_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Words{} + word;
}

// Sums of products of the same codes with N words that lie one after the other.
template <int N>
FXPTQ_INLINE void dot_words(Ints (&acc)[N], Words codes, const uint8_t* words) {
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
    acc[i] = dot(acc[i], codes, splat_word(words + 4 * i));
    keep(acc[i]);
  }
}
#endif

typedef uint16_t UnsignedShorts __attribute__((vector_size(kRegister)));

// A register from memory, and to it.
template <class V>
FXPTQ_INLINE V load_register(const void* p) {
  static_assert(sizeof(V) == kRegister);
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
FXPTQ_INLINE void store_register(void* p, V v) {
  static_assert(sizeof(V) == kRegister);
  std::memcpy(p, &v, sizeof v);
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

// The first n bytes of each run of sixteen set, the others zero.
FXPTQ_INLINE Bytes first_of_rows(int n) {
  static const uint8_t mask[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
  const Bytes16 first = load<Bytes16>(mask + 16 - n);
  return join(first, first, first, first);
}

}  // namespace fxptq

// The vectors of simd/vectors.h with the operations of the instruction set that the compiler builds for.
//
// An instruction set is a header in simd/ with a namespace of its own, which has every operation of portable.h. `isa()`
// names the one in use. FXPTQ_SPLIT: vectors are two registers of 256 bits (simd/split.h). FXPTQ_DOT16: no instruction adds up
// products of bytes in 32 bits, and the sums in 16 bits of avx2.h are the fast ones.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define FXPTQ_AVX512 1
#include "simd/avx512.h"
namespace fxptq {
using namespace avx512;
inline const char* isa() { return "avx512-vnni"; }
}  // namespace fxptq
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define FXPTQ_SPLIT 1
#include "simd/avxvnni.h"
namespace fxptq {
using namespace avxvnni;
inline const char* isa() { return "avx2-vnni"; }
}  // namespace fxptq
#elif defined(__AVX2__) && defined(__FMA__)
#define FXPTQ_SPLIT 1
#define FXPTQ_DOT16 1
#include "simd/avx2.h"
namespace fxptq {
using namespace avx2;
inline const char* isa() { return "avx2"; }
}  // namespace fxptq
#else
#include "simd/portable.h"
namespace fxptq {
using namespace portable;
inline const char* isa() { return "generic"; }
}  // namespace fxptq
#endif

namespace fxptq {

typedef int16_t Shorts __attribute__((vector_size(kRegister)));
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

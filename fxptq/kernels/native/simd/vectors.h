// Sixteen lanes of float or int32: the types, and what the compiler does with them on every processor.
//
// The types are GCC/Clang vector extensions: arithmetic and comparison are operators, and the compiler splits them into
// registers (one AVX-512, four NEON). With 256-bit registers the types of split.h have the same operators. Operations that
// the extensions lack, the dot product of bytes above all, are in portable.h for every processor, and in a header of its own
// for each instruction set that does better.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

// Vectors in arrays stay in registers only where the function around them is inlined.
#define FXPTQ_INLINE inline __attribute__((always_inline))

#if FXPTQ_SPLIT
#include "split.h"
#endif

namespace fxptq {

constexpr int kLanes = 16;

#if FXPTQ_SPLIT
using Floats = split::Split<float>;
using Ints = split::Split<int32_t>;
using Words = split::Split<uint32_t>;
using Bytes = split::Split<uint8_t>;
using Sums = split::Split<int64_t>;
#else
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));  // also: sixteen groups of four bytes
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int64_t Sums __attribute__((vector_size(64)));
#endif
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

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
  if constexpr (requires { v.low; }) {  // register by register: gcc copies a struct in pieces of sixteen bytes
    std::memcpy(&v.low, p, sizeof v.low);
    std::memcpy(&v.high, (const uint8_t*)p + sizeof v.low, sizeof v.high);
  } else {
    std::memcpy(&v, p, sizeof v);
  }
  return v;
}

template <class V, class T>
FXPTQ_INLINE void store(T* p, V v) {
  if constexpr (requires { v.low; }) {
    std::memcpy(p, &v.low, sizeof v.low);
    std::memcpy((uint8_t*)p + sizeof v.low, &v.high, sizeof v.high);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

FXPTQ_INLINE Floats splat(float x) { return Floats{} + x; }
FXPTQ_INLINE Ints splat(int32_t x) { return Ints{} + x; }

FXPTQ_INLINE Floats to_floats(Ints v) {
#if FXPTQ_SPLIT
  return {__builtin_convertvector(v.low, Floats::Half), __builtin_convertvector(v.high, Floats::Half)};
#else
  return __builtin_convertvector(v, Floats);
#endif
}

FXPTQ_INLINE Bytes splat_byte(uint8_t byte) {
#if FXPTQ_SPLIT
  return Bytes(byte);
#else
  Bytes all;
  std::memset(&all, byte, sizeof all);
  return all;
#endif
}

FXPTQ_INLINE Words splat_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Words{} + word;
}

}  // namespace fxptq

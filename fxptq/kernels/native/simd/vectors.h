// Sixteen lanes of float or int32: the types, and what the compiler does with them on every processor.
//
// The types are GCC/Clang vector extensions: arithmetic and comparison are operators. Where registers are smaller than 64
// bytes, the types of split.h have the same operators. Operations that the extensions lack, the dot product of bytes above
// all, are in portable.h for every processor, and in a header of its own for each instruction set that does better.
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
  static_assert(sizeof(V) == kLanes * sizeof(T) || sizeof(T) == 1, "sixteen lanes");
#if FXPTQ_SPLIT
  return split::read<V>(p);
#else
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
#endif
}

template <class V, class T>
FXPTQ_INLINE void store(T* p, V v) {
#if FXPTQ_SPLIT
  split::write(p, v);
#else
  std::memcpy(p, &v, sizeof v);
#endif
}

FXPTQ_INLINE Floats splat(float x) { return Floats{} + x; }
FXPTQ_INLINE Ints splat(int32_t x) { return Ints{} + x; }

#if FXPTQ_SPLIT
template <class T, int kBytes>
FXPTQ_INLINE auto converted(split::Split<T, kBytes> v) {
  using Converted = split::Split<float, kBytes>;
  if constexpr (kBytes == 2 * FXPTQ_SPLIT) {
    return Converted{__builtin_convertvector(v.low, typename Converted::Half),
                     __builtin_convertvector(v.high, typename Converted::Half)};
  } else {
    return Converted{converted(v.low), converted(v.high)};
  }
}

FXPTQ_INLINE Floats to_floats(Ints v) { return converted(v); }

FXPTQ_INLINE Bytes splat_byte(uint8_t byte) { return Bytes(byte); }
#else
FXPTQ_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

FXPTQ_INLINE Bytes splat_byte(uint8_t byte) {
  Bytes all;
  std::memset(&all, byte, sizeof all);
  return all;
}
#endif

}  // namespace fxptq

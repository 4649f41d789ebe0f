// Sixteen lanes of float or int32: the types, and what the compiler does with them on every processor.
//
// The types are GCC/Clang vector extensions: arithmetic, comparison and selection are operators, and the compiler splits
// them into registers (one AVX-512, two AVX2, four NEON). Operations that the extensions lack, the dot product of bytes
// above all, are in portable.h for every processor, and in a header of its own for each instruction set that does better.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

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

FXPTQ_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

FXPTQ_INLINE Bytes splat_byte(uint8_t byte) {
  Bytes all;
  std::memset(&all, byte, sizeof all);
  return all;
}

FXPTQ_INLINE Words splat_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Words{} + word;
}

// From four rows of sixteen bytes: the first words of all rows, then the second ones, ...
FXPTQ_INLINE Words by_word(Bytes rows) {
  const Words w = (Words)rows;
  return __builtin_shufflevector(w, w, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

}  // namespace fxptq

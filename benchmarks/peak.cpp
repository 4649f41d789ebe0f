// The most that one core can do: bytes multiplied and added by the instructions that the kernels use (vpdpbusd, or on AVX2
// vpmaddubsw with sums of 16 bits), and bytes read from memory. Prints 1e9 multiply-adds a second, and GB a second from a
// buffer of 64 MB.
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#if defined(__AVX512VNNI__)
using Register = __m512i;
constexpr int kSums = 24;
inline void add_products(Register& sum, Register a, Register b) { asm volatile("vpdpbusd %2,%1,%0" : "+v"(sum) : "v"(a), "v"(b)); }
#elif defined(__AVXVNNI__)
using Register = __m256i;
constexpr int kSums = 12;
inline void add_products(Register& sum, Register a, Register b) {
  asm volatile("%{vex%} vpdpbusd %2,%1,%0" : "+x"(sum) : "x"(a), "x"(b));
}
#else
using Register = __m256i;
constexpr int kSums = 12;
inline void add_products(Register& sum, Register a, Register b) {
  Register product;
  asm volatile("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
}
#endif

__attribute__((noinline)) int products(long count) {
  Register sums[kSums], a = Register{} + 0x0303030303030303, b = Register{} + 0x0202020202020202;
#pragma GCC unroll 32
  for (int j = 0; j < kSums; ++j) sums[j] = a;
  for (long i = 0; i < count; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kSums; ++j) add_products(sums[j], a, b);
  }
  Register total = sums[0];
#pragma GCC unroll 32
  for (int j = 1; j < kSums; ++j) total += sums[j];
  return (int)total[0];
}

__attribute__((noinline)) int64_t sum(const std::vector<int64_t>& values) {
  int64_t total[32] = {};
  for (size_t i = 0; i < values.size(); i += 32) {
    for (int j = 0; j < 32; ++j) total[j] += values[i + j];
  }
  for (int j = 1; j < 32; ++j) total[0] += total[j];
  return total[0];
}

template <class F>
double best_seconds(F run) {
  double best = 1e9;
  for (int i = 0; i < 7; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds < best) best = seconds;
  }
  return best;
}

int main() {
  volatile int64_t kept = 0;  // so that nothing is left out
  const long count = 2000000;
  const double products_s = best_seconds([&] { kept = kept + products(count); });
  const std::vector<int64_t> values(8 << 20, 1);
  const double read_s = best_seconds([&] { kept = kept + sum(values); });
  std::printf("%.1f %.1f\n", count * kSums * sizeof(Register) / products_s / 1e9, values.size() * 8 / read_s / 1e9);
}

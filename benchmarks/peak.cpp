// The most that one core can do: bytes multiplied and added (vpdpbusd), and bytes read from each level of memory.
// Prints two numbers: 1e9 multiply-adds a second, and GB a second from a buffer of 64 MB.
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

template <int N>
__attribute__((noinline)) int products(long count) {
  __m512i acc[N], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
  asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 32
  for (int j = 0; j < N; ++j) acc[j] = a;
  for (long i = 0; i < count; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < N; ++j) asm volatile("vpdpbusd %2,%1,%0" : "+v"(acc[j]) : "v"(a), "v"(b));
  }
  __m512i total = acc[0];
#pragma GCC unroll 32
  for (int j = 1; j < N; ++j) total = _mm512_add_epi32(total, acc[j]);
  return _mm512_reduce_add_epi32(total);
}

__attribute__((noinline)) int64_t sum(const std::vector<int64_t>& values) {
  __m512i acc[4] = {};
  for (size_t i = 0; i < values.size(); i += 32) {
    for (int j = 0; j < 4; ++j) acc[j] = _mm512_add_epi64(acc[j], _mm512_loadu_si512(values.data() + i + 8 * j));
  }
  return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_add_epi64(acc[0], acc[1]), _mm512_add_epi64(acc[2], acc[3])));
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
  const double products_s = best_seconds([&] { kept = kept + products<24>(count); });
  const std::vector<int64_t> values(8 << 20, 1);
  const double read_s = best_seconds([&] { kept = kept + sum(values); });
  std::printf("%.1f %.1f\n", count * 24 * 64 / products_s / 1e9, values.size() * 8 / read_s / 1e9);
}

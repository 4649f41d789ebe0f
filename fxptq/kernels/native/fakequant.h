// Fake quantization with its gradients: the nearest value on a uniform grid, in one pass over memory each way; values may
// stand behind a map with a factor and a center.
//
// Values equal the plain form (fxptq/quant/operators.py) bit for bit: the same operations in the same order, each rounded on
// its own, although the library is compiled with -ffp-contract=fast. NaN stays NaN. Vectors have the width of the
// processor's registers, because compilers take comparisons of wider ones apart lane by lane.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace fxptq {
namespace fakequant {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kWidth = kBytes / 4;

typedef float Values __attribute__((vector_size(kBytes)));
typedef int32_t Masks __attribute__((vector_size(kBytes)));
typedef float Half __attribute__((vector_size(kBytes / 2)));
typedef double Doubles __attribute__((vector_size(kBytes)));

#define FXPTQ_INLINED inline __attribute__((always_inline))

// The gradients of the scale and of the offset of a run.
struct GridGradient {
  double scale = 0, offset = 0;
};

// The value itself, as a number that the compiler can neither contract nor fold with what made it.
FXPTQ_INLINED Values rounded(Values v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+m"(v));
#endif
  return v;
}

// Nearest integer, ties to even, of a number from 0 to 255; NaN for NaN.
FXPTQ_INLINED Values nearest_integer(Values v) {
  const Values magic = Values{} + 12582912.0f;  // 1.5 * 2^23: a sum with it has no fraction
  return rounded(v + magic) - magic;
}

// The lower or the upper clip; NaN passes.
#if defined(__AVX512F__)
FXPTQ_INLINED Values at_least(Values v, Values low) { return (Values)_mm512_max_ps((__m512)low, (__m512)v); }
FXPTQ_INLINED Values at_most(Values v, Values high) { return (Values)_mm512_min_ps((__m512)high, (__m512)v); }
#elif defined(__AVX__)
FXPTQ_INLINED Values at_least(Values v, Values low) { return (Values)_mm256_max_ps((__m256)low, (__m256)v); }
FXPTQ_INLINED Values at_most(Values v, Values high) { return (Values)_mm256_min_ps((__m256)high, (__m256)v); }
#else
FXPTQ_INLINED Values at_least(Values v, Values low) { return v < low ? low : v; }
FXPTQ_INLINED Values at_most(Values v, Values high) { return v > high ? high : v; }
#endif

// a * b + c and c - a * b with one rounding.
#if defined(__AVX512F__)
#define FXPTQ_FUSED 1
FXPTQ_INLINED Values fused(Values a, Values b, Values c) { return (Values)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
FXPTQ_INLINED Values less(Values a, Values b, Values c) { return (Values)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__FMA__)
#define FXPTQ_FUSED 1
FXPTQ_INLINED Values fused(Values a, Values b, Values c) { return (Values)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
FXPTQ_INLINED Values less(Values a, Values b, Values c) { return (Values)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
#define FXPTQ_FUSED 0
#endif

// A grid in registers: value = scale * code + offset, codes 0 .. levels.
class Grid {
 public:
  Grid(float scale, float offset, float levels)
      : scale_(Values{} + scale), offset_(Values{} + offset), levels_(Values{} + levels),
        inverse_(Values{} + 1.0f / scale), lowest_(Values{} + -2.0f * scale), highest_(Values{} + (levels + 2.0f) * scale),
        fast_(FXPTQ_FUSED && scale > 0x1p-60f && scale < 0x1p60f) {}

  // Whether `place<true>` is exact on this grid.
  bool fast() const { return fast_; }

  // (x - offset) / scale as division rounds it, wherever the quotient lies on the grid or less than a step from it. Beyond, a
  // fast quotient is only known to lie beyond.
  template <bool kFast>
  FXPTQ_INLINED Values place(Values x) const {
    const Values a = x - offset_;
#if FXPTQ_FUSED
    if constexpr (kFast) {
      // Markstein: with the inverse correctly rounded, one correction makes the quotient faithful, the next one exact. The
      // clip keeps infinities out.
      const Values d = at_most(at_least(a, lowest_), highest_);
      Values q = rounded(d * inverse_);
      q = fused(less(q, scale_, d), inverse_, q);
      return fused(less(q, scale_, d), inverse_, q);
    }
#endif
    return a / scale_;
  }

  FXPTQ_INLINED Values clipped(Values z) const { return at_most(at_least(z, Values{}), levels_); }

  FXPTQ_INLINED Values value(Values code) const { return rounded(code * scale_) + offset_; }

 private:
  Values scale_, offset_, levels_, inverse_, lowest_, highest_;
  bool fast_;
};

FXPTQ_INLINED Values load_values(const float* p) {
  Values v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

FXPTQ_INLINED void store_values(float* p, Values v) { std::memcpy(p, &v, sizeof v); }

FXPTQ_INLINED Doubles doubles(Values v) {
  Half half[2];
  std::memcpy(half, &v, sizeof v);
  return __builtin_convertvector(half[0], Doubles) + __builtin_convertvector(half[1], Doubles);
}

FXPTQ_INLINED double total(Doubles v) {
  double sum = 0;
  for (int i = 0; i < kBytes / 8; ++i) sum += v[i];
  return sum;
}

// What lies between a run's values and its grid: value = factor * (value on the grid) + center. A map gives one vector after
// the other.
struct NoMap {
  struct Vector {
    FXPTQ_INLINED Values onto_grid(Values x) const { return x; }
    FXPTQ_INLINED Values off_grid(Values v) const { return v; }
    FXPTQ_INLINED Values gradient(Values g) const { return g; }
  };
  FXPTQ_INLINED Vector next() { return {}; }
};

struct MapVector {
  Values factor, center;
  FXPTQ_INLINED Values onto_grid(Values x) const { return (x - center) / factor; }
  FXPTQ_INLINED Values off_grid(Values v) const { return rounded(v * factor) + center; }
  // Of a value on the grid, for the gradient of the value that it stands for.
  FXPTQ_INLINED Values gradient(Values g) const { return g * factor; }
};

// One factor and one center for the whole run.
class ConstantMap {
 public:
  ConstantMap(float factor, float center) : vector_{Values{} + factor, Values{} + center} {}
  FXPTQ_INLINED MapVector next() { return vector_; }

 private:
  MapVector vector_;
};

// Factors and centers that repeat along the run. The tables have the pattern repeated to a period of at least one vector, and
// one vector more.
class RepeatedMap {
 public:
  RepeatedMap(const float* factors, const float* centers, int64_t period, int64_t phase)
      : factors_(factors), centers_(centers), period_(period), phase_(phase) {}

  // The period of the tables of a pattern.
  static int64_t period(int64_t pattern) { return (kWidth + pattern - 1) / pattern * pattern; }

  // The length of the tables of a pattern.
  static int64_t length(int64_t pattern) { return period(pattern) + kWidth; }

  FXPTQ_INLINED MapVector next() {
    const MapVector vector{load_values(factors_ + phase_), load_values(centers_ + phase_)};
    phase_ += kWidth;
    if (phase_ >= period_) phase_ -= period_;
    return vector;
  }

 private:
  const float *factors_, *centers_;
  int64_t period_, phase_;
};

template <bool kFast, class Vector>
FXPTQ_INLINED void forward_vector(const float* x, float* out, const Grid& grid, const Vector& map) {
  const Values z = grid.place<kFast>(map.onto_grid(load_values(x)));
  store_values(out, map.off_grid(grid.value(nearest_integer(grid.clipped(z)))));
}

template <bool kFast, class Map>
inline void forward(const float* x, float* out, int64_t count, const Grid grid, Map map) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) forward_vector<kFast>(x + i, out + i, grid, map.next());
  if (i < count) {
    float from[kWidth] = {}, to[kWidth];
    std::memcpy(from, x + i, (count - i) * sizeof(float));
    forward_vector<kFast>(from, to, grid, map.next());
    std::memcpy(out + i, to, (count - i) * sizeof(float));
  }
}

constexpr int kTogether = 4;  // vectors whose gradients are added in float, before their sum is added in double
constexpr int kBlock = kTogether * kWidth;

struct Sums {
  Doubles scale = {}, offset = {};
};

template <bool kFast, bool kValues, class Map>
FXPTQ_INLINED void backward_block(const float* x, const float* g, float* gx, const Grid& grid, Map& map, Sums& sums) {
  Values scale = {}, offset = {};
  for (int v = 0; v < kBlock; v += kWidth) {
    const auto between = map.next();
    const Values zero = {}, upstream = load_values(g + v), z = grid.place<kFast>(between.onto_grid(load_values(x + v)));
    const Values clipped = grid.clipped(z), of_value = between.gradient(upstream);
    const Masks outside = z != clipped;
    const Values beyond = outside ? of_value : zero;
    if constexpr (kValues) store_values(gx + v, outside ? zero : upstream);
    // r - z inside; levels above and 0 below.
    scale += (outside ? clipped : nearest_integer(clipped) - clipped) * of_value;
    offset += beyond;
  }
  sums.scale += doubles(scale);
  sums.offset += doubles(offset);
}

template <bool kFast, bool kValues, class Map>
inline GridGradient backward(const float* x, const float* g, float* gx, int64_t count, const Grid grid, Map map) {
  Sums sums;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) backward_block<kFast, kValues>(x + i, g + i, gx + i, grid, map, sums);
  if (i < count) {
    float values[kBlock] = {}, upstream[kBlock] = {}, to[kBlock];  // an upstream gradient of 0 adds nothing
    std::memcpy(values, x + i, (count - i) * sizeof(float));
    std::memcpy(upstream, g + i, (count - i) * sizeof(float));
    backward_block<kFast, kValues>(values, upstream, to, grid, map, sums);
    if constexpr (kValues) std::memcpy(gx + i, to, (count - i) * sizeof(float));
  }
  return {total(sums.scale), total(sums.offset)};
}

}  // namespace fakequant

// out = factor * (scale * round(clip(((x - center) / factor - offset) / scale, 0, levels)) + offset) + center, for a run of
// elements that share a grid.
template <class Map = fakequant::NoMap>
inline void fake_quantize(const float* x, float* out, int64_t count, const fakequant::Grid& grid, const Map& map = {}) {
  grid.fast() ? fakequant::forward<true>(x, out, count, grid, map) : fakequant::forward<false>(x, out, count, grid, map);
}

// The gradients for the upstream gradient `g`: of x into `gx`, unless it is null, and of the grid (fxptq/quant/grid.py states
// them). `gx` may be `g`.
template <class Map = fakequant::NoMap>
inline fakequant::GridGradient fake_quantize_backward(const float* x, const float* g, float* gx, int64_t count,
                                                      const fakequant::Grid& grid, const Map& map = {}) {
  using namespace fakequant;
  if (gx) {
    return grid.fast() ? backward<true, true>(x, g, gx, count, grid, map) : backward<false, true>(x, g, gx, count, grid, map);
  }
  return grid.fast() ? backward<true, false>(x, g, gx, count, grid, map) : backward<false, false>(x, g, gx, count, grid, map);
}

#undef FXPTQ_FUSED
#undef FXPTQ_INLINED

}  // namespace fxptq

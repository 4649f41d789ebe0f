// Operators that make codes from values without a product: on one grid, on a grid for each channel, on a grid for each row,
// and LayerNorm with the quantizer behind it.
#pragma once

#include "epilogue.h"

namespace fxptq {

// The least divisor of a row of weights, for rows without a positive one.
constexpr float kLeastWeight = 1e-30f;

// codes = round(clip((x - lower) / step, 0, levels)), in the order of the simulation, whose codes it equals.
// Returns whether a value is NaN, for which no code can stand.
inline bool quantize(const float* x, uint8_t* codes, int64_t count, float lower, float step, float levels) {
  Ints nan = {};
  for (int64_t i = 0; i < count; i += kGroup) {
    const int n = count - i < kGroup ? (int)(count - i) : kGroup;
    Floats z[4];
    for (int v = 0; v < 4; ++v) {
      z[v] = (load_part(x + i, v, n) - lower) / step;
      nan = nan | (Ints)(z[v] != z[v]);
      z[v] = minimum(z[v], splat(levels));
    }
    store_codes(codes + i, z, n);
  }
  return sum(nan) != 0;
}

// codes = round(clip(x * scale + offset, 0, levels)): with kVaries each value has its own numbers, and their memory is padded to
// whole groups; else all share one. Returns whether a value is NaN.
template <bool kVaries>
bool affine_codes(const float* x, uint8_t* codes, int64_t count, const float* scale, const float* offset, float levels) {
  Ints nan = {};
  const Floats one_scale = splat(*scale), one_offset = splat(*offset);
  for (int64_t i = 0; i < count; i += kGroup) {
    const int n = count - i < kGroup ? (int)(count - i) : kGroup;
    Floats z[4];
    for (int v = 0; v < 4; ++v) {
      const Floats s = kVaries ? load<Floats>(scale + i + v * kLanes) : one_scale;
      const Floats o = kVaries ? load<Floats>(offset + i + v * kLanes) : one_offset;
      z[v] = load_part(x + i, v, n) * s + o;
      nan = nan | (Ints)(z[v] != z[v]);
      z[v] = minimum(z[v], splat(levels));
    }
    store_codes(codes + i, z, n);
  }
  return sum(nan) != 0;
}

// A row of attention weights relative to its largest one: codes = round(clip(x * (scale / largest), 0, levels)). Returns whether
// a value is NaN.
inline bool share_codes(const float* x, uint8_t* codes, int64_t width, float scale, float levels) {
  Floats top = splat(kLeastWeight);
  for (int64_t i = 0; i < width; i += kGroup) {
    const int n = width - i < kGroup ? (int)(width - i) : kGroup;
    for (int v = 0; v < 4; ++v) top = maximum(top, load_part(x + i, v, n));
  }
  alignas(64) float lanes[kLanes];
  store(lanes, top);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  }
  const float factor = scale / lanes[0], none = 0.0f;
  return affine_codes<false>(x, codes, width, &factor, &none, levels);
}

// Up to sixteen rows: codes = round(clip((x - mean) / sqrt(var + eps) * scale + offset, 0, levels)). Two passes over a row,
// so that the variance of a large mean is right; the sums of sixteen rows are added across lanes together. `scale` and
// `offset` are padded to whole groups. Returns whether a row holds NaN, for which no code can stand.
inline bool layer_norm_codes(const float* x, uint8_t* codes, int rows, int width, const float* scale, const float* offset,
                             float eps, float levels) {
  alignas(64) float means[kLanes], inverses[kLanes];
  Floats totals[kLanes] = {};
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < width; i += kGroup) {
      Floats d[4];
      for (int v = 0; v < 4; ++v) d[v] = load_part(x + r * width + i, v, width - i);
      totals[r] = totals[r] + ((d[0] + d[1]) + (d[2] + d[3]));
    }
  }
  store(means, sum_rows(totals) / (float)width);
  for (int r = 0; r < rows; ++r) {
    totals[r] = Floats{};
    for (int i = 0; i < width; i += kGroup) {
      Floats d[4];
      for (int v = 0; v < 4; ++v) d[v] = load_part(x + r * width + i, v, width - i) - means[r];
      for (int v = 0; v < 4; ++v) {
        const int n = width - i - v * kLanes;
        if (n < kLanes) d[v] = keep_first(d[v], n > 0 ? n : 0);
      }
      totals[r] = totals[r] + ((d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]));
    }
  }
  store(inverses, 1.0f / square_root(sum_rows(totals) / (float)width + eps));
  for (int i = 0; i < width; i += kGroup) {
    Floats s[4], o[4];
    for (int v = 0; v < 4; ++v) s[v] = load<Floats>(scale + i + v * kLanes), o[v] = load<Floats>(offset + i + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      Floats y[4];
      for (int v = 0; v < 4; ++v) y[v] = (load_part(x + r * width + i, v, width - i) - means[r]) * inverses[r];
      for (int v = 0; v < 4; ++v) y[v] = minimum(y[v] * s[v] + o[v], splat(levels));
      store_codes(codes + r * width + i, y, width - i < kGroup ? width - i : kGroup);
    }
  }
  // A row with NaN, or with an infinite mean, has no finite inverse.
  for (int r = 0; r < rows; ++r) {
    if (inverses[r] != inverses[r]) return true;
  }
  return false;
}

}  // namespace fxptq

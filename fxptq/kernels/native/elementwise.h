// Operators that make codes from values without a product: quantize, and LayerNorm with the quantizer behind it.
#pragma once

#include "epilogue.h"

namespace fxptq {

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

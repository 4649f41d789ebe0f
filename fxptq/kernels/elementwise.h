// Operators that make codes from values without a product: quantize, and LayerNorm with the quantizer behind it.
#pragma once

#include <cmath>

#include "epilogue.h"

namespace fxptq {

// codes = round(clip((x - lower) / step, 0, levels)), in the simulation's own order of operations: equal to it bit for bit.
inline void quantize(const float* x, uint8_t* codes, int64_t count, float lower, float step, float levels) {
  for (int64_t i = 0; i < count; i += kGroup) {
    const int n = count - i < kGroup ? (int)(count - i) : kGroup;
    Floats z[4];
    for (int v = 0; v < 4; ++v) z[v] = minimum((load_part(x + i, v, n) - lower) / step, splat(levels));
    store_codes(codes + i, z, n);
  }
}

// One row: codes = round(clip((x - mean) / sqrt(var + eps) * scale + offset, 0, levels)). Two passes over the row, so that
// the variance of a large mean is right. `scale` and `offset` are padded to whole groups.
inline void layer_norm_codes(const float* x, uint8_t* codes, int width, const float* scale, const float* offset, float eps,
                             float levels) {
  Floats total = {}, squares = {};
  for (int i = 0; i < width; i += kGroup) {
    for (int v = 0; v < 4; ++v) total = total + load_part(x + i, v, width - i);
  }
  const float mean = sum(total) / (float)width;
  for (int i = 0; i < width; i += kLanes) {
    const int n = width - i < kLanes ? width - i : kLanes;
    const Floats d = keep_first(load_first(x + i, n) - mean, n);
    squares = squares + d * d;
  }
  const float inverse = 1.0f / std::sqrt(sum(squares) / (float)width + eps);
  for (int i = 0; i < width; i += kGroup) {
    const int n = width - i < kGroup ? width - i : kGroup;
    Floats y[4];
    for (int v = 0; v < 4; ++v) {
      const int at = i + v * kLanes;
      y[v] = (load_part(x + i, v, n) - mean) * inverse * load<Floats>(scale + at) + load<Floats>(offset + at);
      y[v] = minimum(y[v], splat(levels));
    }
    store_codes(codes + i, y, n);
  }
}

}  // namespace fxptq

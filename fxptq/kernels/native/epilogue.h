// From int32 accumulators to the values that the network reads next, or to the codes of the next quantizer.
//
// y = scale * acc + bias [+ row_scale * sum of the row's codes], then the activation, then the residual, then
// code = round(clip(y * out_scale + out_offset, 0, levels)); without activation and residual, scale and bias include the next
// grid. Columns go by groups of 64, the codes of one store, and every array is padded to whole groups. Each combination is
// compiled on its own, so that the loop has no branches.
#pragma once

#include "gemm.h"

namespace fxptq {

constexpr int kGroup = 64;  // columns: four vectors of lanes, one vector of codes

// Columns of accumulators: whole groups, as the epilogue reads them.
inline ptrdiff_t padded_columns(const Panels& panels) {
  return ((ptrdiff_t)panels.blocks * kLanes + kGroup - 1) / kGroup * kGroup;
}

// Whether the packed weights have room for one more column. It then holds ones, and its sum is the sum of the row's codes.
inline bool has_sum_column(int64_t columns) { return columns % kLanes != 0; }

enum class Activation : int64_t { kNone = 0, kLeaky = 1, kGelu = 2 };

struct Epilogue {
  int columns;
  const float* scale;
  const float* row_scale;  // or null: the weights have no offset
  Activation activation;
  float slope;          // of the leaky activation; 0 is ReLU
  const float* levels;  // or null: the output is values
  const float *out_scale, *out_offset;  // null where scale and bias include the next grid
};

// Source and target of a few consecutive rows. One of `values` and `codes` is not null.
struct RowsOut {
  const int32_t* acc;
  ptrdiff_t acc_stride;
  int rows;
  const float* bias;
  const float* row_sums;  // [rows]; read only with row_scale
  const float* residual;  // or null; with the strides of the output
  float* values;
  uint8_t* codes;
  ptrdiff_t stride;  // elements from a row to the next
  const ptrdiff_t* groups = nullptr;  // where each group of columns of a row begins; null: one after the other
  bool* nan = nullptr;  // set where a residual is NaN and the output is codes
};

template <Activation A, int N>
FXPTQ_INLINE void activate(Floats (&y)[N], float slope) {
  if constexpr (A == Activation::kLeaky) {
    for (int v = 0; v < N; ++v) y[v] = maximum(y[v], splat(0.0f)) + minimum(y[v], splat(0.0f)) * slope;
  }
  if constexpr (A == Activation::kGelu) gelu(y);
}

// The first n columns of a group, in N vectors.
template <int N, Activation A, bool kRowScale, bool kResidual, bool kCodes>
FXPTQ_INLINE void finish_group(const Epilogue& e, const RowsOut& o, int column, int n) {
  constexpr bool kNextGrid = kCodes && (A != Activation::kNone || kResidual);
  Floats scale[N], bias[N], row_scale[N], levels[N], out_scale[N], out_offset[N];
  const ptrdiff_t place = o.groups ? o.groups[column / kGroup] : column;
  for (int v = 0; v < N; ++v) {
    const int at = column + v * kLanes;
    scale[v] = load<Floats>(e.scale + at);
    bias[v] = load<Floats>(o.bias + at);
    if constexpr (kRowScale) row_scale[v] = load<Floats>(e.row_scale + at);
    if constexpr (kCodes) levels[v] = load<Floats>(e.levels + at);
    if constexpr (kNextGrid) out_scale[v] = load<Floats>(e.out_scale + at), out_offset[v] = load<Floats>(e.out_offset + at);
  }
  [[maybe_unused]] Ints nan = {};
  for (int r = 0; r < o.rows; ++r) {
    Floats y[N];
    for (int v = 0; v < N; ++v) {
      y[v] = to_floats(load<Ints>(o.acc + r * o.acc_stride + column + v * kLanes)) * scale[v] + bias[v];
      if constexpr (kRowScale) y[v] = row_scale[v] * o.row_sums[r] + y[v];
    }
    activate<A>(y, e.slope);
    const ptrdiff_t at = r * o.stride + place;
    if constexpr (kResidual) {
      for (int v = 0; v < N; ++v) y[v] = y[v] + load_part(o.residual + at, v, n);
    }
    if constexpr (kCodes) {
      Floats codes[4] = {};
      if constexpr (kResidual) {
        for (int v = 0; v < N; ++v) nan = nan | (Ints)(y[v] != y[v]);
      }
      for (int v = 0; v < N; ++v) {
        if constexpr (kNextGrid) y[v] = y[v] * out_scale[v] + out_offset[v];
        codes[v] = minimum(y[v], levels[v]);
      }
      store_codes(o.codes + at, codes, n);
    } else {
      for (int v = 0; v < N; ++v) store_part(o.values + at, v, y[v], n);
    }
  }
  if constexpr (kResidual && kCodes) {
    if (sum(nan)) *o.nan = true;
  }
}

template <Activation A, bool kRowScale, bool kResidual, bool kCodes>
void finish_rows(const Epilogue& e, const RowsOut& o) {
  for (int column = 0; column < e.columns; column += kGroup) {
    const int n = e.columns - column < kGroup ? e.columns - column : kGroup;
    if (n <= kLanes) {
      finish_group<1, A, kRowScale, kResidual, kCodes>(e, o, column, n);
    } else {
      finish_group<4, A, kRowScale, kResidual, kCodes>(e, o, column, n);
    }
  }
}

using Finish = void (*)(const Epilogue&, const RowsOut&);

template <Activation A>
Finish finish_of(bool row_scale, bool residual, bool codes) {
  static constexpr Finish table[8] = {
      finish_rows<A, false, false, false>, finish_rows<A, false, false, true>, finish_rows<A, false, true, false>,
      finish_rows<A, false, true, true>,   finish_rows<A, true, false, false>, finish_rows<A, true, false, true>,
      finish_rows<A, true, true, false>,   finish_rows<A, true, true, true>};
  return table[4 * row_scale + 2 * residual + codes];
}

inline Finish finish_of(const Epilogue& e, bool residual) {
  const bool row_scale = e.row_scale != nullptr, codes = e.levels != nullptr;
  switch (e.activation) {
    case Activation::kLeaky: return finish_of<Activation::kLeaky>(row_scale, residual, codes);
    case Activation::kGelu: return finish_of<Activation::kGelu>(row_scale, residual, codes);
    default: return finish_of<Activation::kNone>(row_scale, residual, codes);
  }
}

}  // namespace fxptq

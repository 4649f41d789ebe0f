// Integer matrix product: u8 activation codes times s8 weight codes into int32, exactly.
//
// Weights are packed beforehand as [column blocks of 16][K / 4][16][4]: one vector holds, for sixteen columns, the four
// bytes that one dot4 takes. A row of activations is `segments` runs of `words` * 4 bytes, `segment_stride` bytes apart:
// one run for a linear layer, one per kernel row for a convolution over channels-last data.
#pragma once

#include "simd.h"

namespace fxptq {

#if FXPTQ_AVX512
constexpr int kTileRows = 6, kTileBlocks = 4;  // 24 accumulators, 4 of weights, 1 of activations: 29 of 32 registers
#elif FXPTQ_NEON && defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kTileRows = 6, kTileBlocks = 1;  // 24 accumulators, 3 of activations, 4 of weights: 31 of 32 registers
#elif FXPTQ_NEON
constexpr int kTileRows = 4, kTileBlocks = 1;  // 16 accumulators, 4 of activations, 4 of weights or products: 24 of 32
#else
constexpr int kTileRows = 2, kTileBlocks = 1;
#endif

struct Rows {
  const uint8_t* data;
  ptrdiff_t stride;          // bytes from a row to the next
  int segments;              // runs in a row
  ptrdiff_t segment_stride;  // bytes from a run to the next
  int words;                 // groups of four bytes in a run
};

// The products of a tile; all of them are exact.
enum class Product {
  kBytes,    // of any codes
  kSigned,   // of codes up to 127, which are signed bytes too
  kShifted,  // of codes taken as code - 128; the start values make up for it
};

struct Panels {
  const int8_t* data;
  int blocks;            // of sixteen columns
  int words;             // groups of four along K: segments * words of a row
  const int32_t* start;  // start values of the sums of the columns, or null for zero
  Product product = Product::kBytes;
};

// Panels of odd numbers -15 .. 15 in half bytes h = (w + 15) / 2, as bytes: `vectors` of 64 from 32 bytes each.
inline void widen(const uint8_t* from, int64_t vectors, int8_t* to) {
  for (int64_t v = 0; v < vectors; ++v, from += 32, to += 64) {
    for (int i = 0; i < 32; ++i) {
      to[i] = (int8_t)(2 * (from[i] & 15) - 15);
      to[i + 32] = (int8_t)(2 * (from[i] >> 4) - 15);
    }
  }
}

}  // namespace fxptq

#if FXPTQ_NEON
#include "gemm_neon.h"
#endif

namespace fxptq {

#if !FXPTQ_NEON
// Every loop over R and B is unrolled at once, so that the accumulators never leave their registers.
template <int R, int B>
inline void tile(const Rows& a, int64_t row, const Panels& w, int block, int32_t* out, ptrdiff_t out_stride) {
  Ints acc[R][B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
    const Ints start = w.start ? load<Ints>(w.start + (block + b) * kLanes) : Ints{};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][b] = start;
  }
  const int8_t* weights = w.data + (ptrdiff_t)block * w.words * 64;
  const ptrdiff_t panel = (ptrdiff_t)w.words * 64, stride = a.stride;
  const uint8_t* start = a.data + row * a.stride;
  const int segments = a.segments, words = a.words;
  for (int s = 0; s < segments; ++s, start += a.segment_stride) {
    const uint8_t* codes = start;
    for (int k = 0; k < words; ++k, codes += 4, weights += 64) {
      Words columns[B];
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) columns[b] = load<Words>(weights + b * panel);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Words four = splat_word(codes + r * stride);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) acc[r][b] = dot4(acc[r][b], four, columns[b]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) store(out + r * out_stride + (block + b) * kLanes, acc[r][b]);
  }
}

template <int R>
inline void row_tile(const Rows& a, int64_t row, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  int block = 0;
  for (; block + kTileBlocks <= w.blocks; block += kTileBlocks) tile<R, kTileBlocks>(a, row, w, block, out, out_stride);
  if constexpr (kTileBlocks > 1) {
    switch (w.blocks - block) {
      case 1: tile<R, 1>(a, row, w, block, out, out_stride); break;
      case 2: tile<R, 2>(a, row, w, block, out, out_stride); break;
      case 3: tile<R, 3>(a, row, w, block, out, out_stride); break;
      default: break;
    }
  }
}

// Accumulators of up to kTileRows rows, for all columns: out[r][0 .. 16 * blocks).
inline void accumulate(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  static_assert(kTileRows <= 6, "a case for each number of rows");
  switch (rows) {
    case 1: row_tile<1>(a, row, w, out, out_stride); break;
    case 2: row_tile<2>(a, row, w, out, out_stride); break;
    case 3: if constexpr (kTileRows >= 3) row_tile<3>(a, row, w, out, out_stride); break;
    case 4: if constexpr (kTileRows >= 4) row_tile<4>(a, row, w, out, out_stride); break;
    case 5: if constexpr (kTileRows >= 5) row_tile<5>(a, row, w, out, out_stride); break;
    default: row_tile<kTileRows>(a, row, w, out, out_stride); break;
  }
}

// Panels with the fastest products for codes up to `largest`; the buffer holds start values that these products read.
inline Panels prepared(const Panels& panels, int /*largest*/, Buffer<int8_t>& /*storage*/) { return panels; }

#endif

// The sum of the codes of one row, over all its runs.
inline int32_t row_sum(const Rows& a, int64_t row) {
  int32_t total = 0;
  for (int s = 0; s < a.segments; ++s) {
    total += sum_bytes(a.data + row * a.stride + s * a.segment_stride, 4 * (int64_t)a.words);
  }
  return total;
}

}  // namespace fxptq

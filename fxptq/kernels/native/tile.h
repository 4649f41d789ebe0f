// Tiles of an integer matrix product: u8 activation codes times s8 weight codes into int32, exactly.
//
// Weights are packed beforehand as [column blocks of 16][K / 4][16][4]: one vector holds, for sixteen columns, the four
// bytes that one dot4 takes. A row of activations is `segments` runs of `words` * 4 bytes, `segment_stride` bytes apart:
// one run for a linear layer, one per kernel row for a convolution over channels-last data.
#pragma once

#include <algorithm>

#include "simd.h"

namespace fxptq {

#if FXPTQ_AVX512
constexpr int kTileRows = 6, kTileBlocks = 4;  // 24 accumulators, 4 of weights, 1 of activations: 29 of 32 registers
#elif FXPTQ_NEON && defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kTileRows = 6, kTileBlocks = 1;  // 24 accumulators, 3 of activations, 4 of weights: 31 of 32 registers
#elif FXPTQ_NEON
constexpr int kTileRows = 4, kTileBlocks = 1;  // 16 accumulators, 4 of activations, 4 of weights or products: 24 of 32
#elif FXPTQ_SPLIT
constexpr int kTileRows = 6, kTileBlocks = 1;  // 12 accumulators, 2 of weights, 1 of activations, 1 product: 16 registers
#else
constexpr int kTileRows = 2, kTileBlocks = 1;
#endif

// A tile that is inlined beside other code can spill its sums where registers are few.
#if FXPTQ_SPLIT
#define FXPTQ_TILE __attribute__((noinline))
#else
#define FXPTQ_TILE inline
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
  kBytes,   // of four bytes in 32 bits, whatever the bytes
  kSums16,  // of bytes, in sums of 16 bits that are widened after `steps` groups of four
  kSmall,   // of four bytes in 32 bits, where two neighbouring products fit 16 bits
  kPairs,   // of two 16-bit integers: the weights are widened beforehand, the activations tile by tile
  kSigned,   // of codes up to 127, which are signed bytes too
  kShifted,  // of codes taken as code - 128; the start values make up for it
};

struct Panels {
  const int8_t* data;
  int blocks;            // of sixteen columns
  int words;             // groups of four along K: segments * words of a row
  const int32_t* start;  // start values of the sums of the columns, or null for zero
  Product product = Product::kBytes;
  int steps = 0;  // of kSums16
};

// How a kernel multiplies and adds, for one `Product`. `add` takes a step of four bytes, `add_shared` a step of shifted codes
// whose four signed bytes at `at` are the same for all lanes, in `kWord` bytes; `total` makes 32-bit sums.
template <Product P>
struct Arithmetic {
  static constexpr int kWord = 4;
  static FXPTQ_INLINE Ints add(Ints acc, Words codes, Words weights) { return dot4(acc, codes, weights); }
  static FXPTQ_INLINE Ints add_shared(Ints acc, Words codes, const uint8_t* at) { return dot(acc, codes, splat_word(at)); }
  static FXPTQ_INLINE Ints total(Ints acc) { return acc; }
};

#if FXPTQ_DOT16
// The fastest exact products, and the groups of four that a sum of 16 bits holds.
struct Sums16 {
  Product product;
  int steps;
};

// For codes 0 .. largest_code and weights -largest_weight .. largest_weight.
inline Sums16 sums16(int largest_code, int largest_weight) {
  const int steps = 32767 / std::max(1, 2 * largest_code * largest_weight);
  // Below four steps, widening 16-bit sums costs more than sums in 32 bits.
  return {steps >= 4 ? Product::kSums16 : steps >= 1 ? Product::kSmall : Product::kPairs, steps};
}

template <>
struct Arithmetic<Product::kSums16> {
  static constexpr int kWord = 4;
  static FXPTQ_INLINE Ints add(Ints acc, Words codes, Words weights) { return add16(acc, pairs4(codes, weights)); }
  static FXPTQ_INLINE Ints add_shared(Ints acc, Words codes, const uint8_t* at) { return add(acc, codes, splat_word(at)); }
  static FXPTQ_INLINE Ints total(Ints acc) { return sum2(acc); }
};

template <>
struct Arithmetic<Product::kSmall> {
  static FXPTQ_INLINE Ints add(Ints acc, Words codes, Words weights) { return dot4_small(acc, codes, weights); }
  static FXPTQ_INLINE Ints total(Ints acc) { return acc; }
};

// `add` takes two 16-bit integers; `add_shared` takes four bytes, and the signed ones as even ones and odd ones.
template <>
struct Arithmetic<Product::kPairs> {
  static constexpr int kWord = 8;
  static FXPTQ_INLINE Ints add(Ints acc, Words codes, Words weights) { return dot2(acc, codes, weights); }
  static FXPTQ_INLINE Ints add_shared(Ints acc, Words codes, const uint8_t* at) {
    return dot2(dot2(acc, even_bytes(codes), splat_word(at)), odd_bytes(codes), splat_word(at + 4));
  }
  static FXPTQ_INLINE Ints total(Ints acc) { return acc; }
};
#endif

// Every loop over R and B is unrolled at once, so that the accumulators never leave their registers. kMore adds to `out`.
template <Product P, bool kMore, int R, int B>
FXPTQ_TILE void tile(const Rows& a, int64_t row, const Panels& w, int block, int32_t* out, ptrdiff_t out_stride) {
  constexpr bool kStart = P != Product::kSums16;  // 16-bit sums start at zero
  Ints acc[R][B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
    const Ints start = kStart && !kMore && w.start ? load<Ints>(w.start + (block + b) * kLanes) : Ints{};
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
        for (int b = 0; b < B; ++b) acc[r][b] = Arithmetic<P>::add(acc[r][b], four, columns[b]);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) keep(acc[r][b]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      int32_t* to = out + r * out_stride + (block + b) * kLanes;
      Ints total = Arithmetic<P>::total(acc[r][b]);
      if constexpr (kMore) {
        total = total + load<Ints>(to);
      } else if (!kStart && w.start) {
        total = total + load<Ints>(w.start + (block + b) * kLanes);
      }
      store(to, total);
    }
  }
}

template <Product P, bool kMore, int R>
inline void row_tile(const Rows& a, int64_t row, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  int block = 0;
  for (; block + kTileBlocks <= w.blocks; block += kTileBlocks) {
    tile<P, kMore, R, kTileBlocks>(a, row, w, block, out, out_stride);
  }
  if constexpr (kTileBlocks > 1) {
    switch (w.blocks - block) {
      case 1: tile<P, kMore, R, 1>(a, row, w, block, out, out_stride); break;
      case 2: tile<P, kMore, R, 2>(a, row, w, block, out, out_stride); break;
      case 3: tile<P, kMore, R, 3>(a, row, w, block, out, out_stride); break;
      default: break;
    }
  }
}

template <Product P, bool kMore>
inline void accumulate_by(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  static_assert(kTileRows <= 6, "a case for each number of rows");
  switch (rows) {
    case 1: row_tile<P, kMore, 1>(a, row, w, out, out_stride); break;
    case 2: row_tile<P, kMore, 2>(a, row, w, out, out_stride); break;
    case 3: if constexpr (kTileRows >= 3) row_tile<P, kMore, 3>(a, row, w, out, out_stride); break;
    case 4: if constexpr (kTileRows >= 4) row_tile<P, kMore, 4>(a, row, w, out, out_stride); break;
    case 5: if constexpr (kTileRows >= 5) row_tile<P, kMore, 5>(a, row, w, out, out_stride); break;
    default: row_tile<P, kMore, kTileRows>(a, row, w, out, out_stride); break;
  }
}

}  // namespace fxptq

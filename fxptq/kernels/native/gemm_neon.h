// The product of whole panels on NEON, a block of sixteen columns at a time.
//
// Without i8mm the codes of a tile are read as signed bytes. Codes up to 127 are that already (`kSigned`). Larger ones are
// shifted by 128 while they are read, and the sums start at 128 times the sums of the weights of their columns:
// `prepared` computes these once for many tiles (`kShifted`), else each tile does for itself (`kBytes`).
#pragma once

#include "tile.h"

namespace fxptq {

namespace neon {

// Holds sums in their registers, and lets the weights behind `at` be read no earlier: GCC would read so many of them ahead
// that sums went to memory.
template <int R, int N>
FXPTQ_INLINE void settle(int32x4_t (&acc)[R][N], int q, const int8_t*& at) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) asm volatile("" : "+w"(acc[r][q]), "+r"(at));
}

// A tile in registers: sums of R rows and sixteen columns.
#if defined(__ARM_FEATURE_MATMUL_INT8)

// The matrix product of two rows by two columns, over eight codes: the words of two steps are zipped to eight codes of a column.
template <int R>
struct Tile {
  static constexpr int kPairs = (R + 1) / 2;
  int32x4_t acc[kPairs][8];  // of two rows and two columns

  FXPTQ_INLINE void start(const int32_t* from) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int64x2_t s = vreinterpretq_s64_s32(from ? vld1q_s32(from + 4 * q) : vdupq_n_s32(0));
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        acc[p][2 * q] = vreinterpretq_s32_s64(vzip1q_s64(s, s)), acc[p][2 * q + 1] = vreinterpretq_s32_s64(vzip2q_s64(s, s));
      }
    }
  }

  template <bool kShift>
  FXPTQ_INLINE void run(const uint8_t* codes, ptrdiff_t stride, int words, const int8_t* weights) {
    int k = 0;
    for (; k + 2 <= words; k += 2, codes += 8, weights += 128) {
      uint8x16_t a[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) a[p] = vcombine_u8(vld1_u8(codes + row(2 * p) * stride), vld1_u8(codes + row(2 * p + 1) * stride));
      step<true>(a, weights);
    }
    if (k < words) {
      uint8x16_t a[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) a[p] = vcombine_u8(word(codes + row(2 * p) * stride), word(codes + row(2 * p + 1) * stride));
      step<false>(a, weights);
    }
  }

  FXPTQ_INLINE void write(int32_t* out, ptrdiff_t stride) const {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const int64x2_t a = vreinterpretq_s64_s32(acc[p][2 * q]), b = vreinterpretq_s64_s32(acc[p][2 * q + 1]);
        vst1q_s32(out + 2 * p * stride + 4 * q, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
        if (2 * p + 1 < R) vst1q_s32(out + (2 * p + 1) * stride + 4 * q, vreinterpretq_s32_s64(vzip2q_s64(a, b)));
      }
    }
  }

 private:
  static constexpr int row(int r) { return r < R ? r : R - 1; }  // the last row stands in for a missing one

  static FXPTQ_INLINE uint8x8_t word(const uint8_t* from) {
    return vreinterpret_u8_u32(vld1_lane_u32((const uint32_t*)from, vdup_n_u32(0), 0));
  }

  template <bool kTwo>
  FXPTQ_INLINE void step(const uint8x16_t (&a)[kPairs], const int8_t*& weights) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(weights + 16 * q));
      const int32x4_t second = kTwo ? vreinterpretq_s32_s8(vld1q_s8(weights + 64 + 16 * q)) : vdupq_n_s32(0);
      const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second)), high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        acc[p][2 * q] = vusmmlaq_s32(acc[p][2 * q], a[p], low);
        acc[p][2 * q + 1] = vusmmlaq_s32(acc[p][2 * q + 1], a[p], high);
      }
      settle(acc, 2 * q, weights);
      settle(acc, 2 * q + 1, weights);
    }
  }
};

#else

template <int R>
struct Tile {
  int32x4_t acc[R][4];

  FXPTQ_INLINE void start(const int32_t* from) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int32x4_t s = from ? vld1q_s32(from + 4 * q) : vdupq_n_s32(0);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][q] = s;
    }
  }

  template <bool kShift>
  FXPTQ_INLINE void run(const uint8_t* codes, ptrdiff_t stride, int words, const int8_t* weights) {
    int k = 0;
#if defined(__ARM_FEATURE_DOTPROD)
    for (; k + 4 <= words; k += 4, codes += 16, weights += 256) {
      int8x16_t a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) a[r] = signed_codes<kShift>(vld1q_u8(codes + r * stride));
      lane<0>(a, weights);
      lane<1>(a, weights);
      lane<2>(a, weights);
      lane<3>(a, weights);
    }
#endif
#pragma GCC unroll 1
    for (; k < words; ++k, codes += 4, weights += 64) {
      int8x16_t a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        a[r] = signed_codes<kShift>(vreinterpretq_u8_u32(vld1q_dup_u32((const uint32_t*)(codes + r * stride))));
      }
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const int8x16_t w = vld1q_s8(weights + 16 * q);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][q] = product<kShift>(acc[r][q], a[r], w);
        settle(acc, q, weights);
      }
    }
  }

  FXPTQ_INLINE void write(int32_t* out, ptrdiff_t stride) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) vst1q_s32(out + r * stride + 4 * q, acc[r][q]);
    }
  }

 private:
  template <bool kShift>
  static FXPTQ_INLINE int8x16_t signed_codes(uint8x16_t codes) {
    return vreinterpretq_s8_u8(kShift ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
  }

#if defined(__ARM_FEATURE_DOTPROD)
  template <int kLane>
  FXPTQ_INLINE void lane(const int8x16_t (&a)[R], const int8_t*& weights) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int8x16_t w = vld1q_s8(weights + 64 * kLane + 16 * q);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][q] = vdotq_laneq_s32(acc[r][q], w, a[r], kLane);
    }
    settle(acc, 3, weights);
  }
#endif

  template <bool kShift>
  static FXPTQ_INLINE int32x4_t product(int32x4_t sums, int8x16_t a, int8x16_t w) {
#if !defined(__ARM_FEATURE_DOTPROD)
    if constexpr (!kShift) {  // two products of codes up to 127 fit 16 bits
      return vpadalq_s16(sums, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(w)), vmull_high_s8(a, w)));
    }
#endif
    return dot(sums, vreinterpretq_u8_s8(a), w);
  }
};

#endif

// 128 times the sum of the weights of each column of a block, added to `start` or to zero.
inline void shifted_start(const int8_t* weights, int words, const int32_t* start, int32_t* to) {
  Ints total = {};
  const Words half(0x40404040u);
  for (int k = 0; k < words; ++k) total = dot(total, half, load<Words>(weights + k * 64));
  total = total + total;
  store(to, start ? total + load<Ints>(start) : total);
}

template <int R, bool kShift>
inline void block_tile(const Rows& a, int64_t row, const int8_t* weights, const int32_t* start, int32_t* out, ptrdiff_t stride) {
  Tile<R> tile;
  tile.start(start);
  const uint8_t* codes = a.data + row * a.stride;
  for (int s = 0; s < a.segments; ++s, codes += a.segment_stride, weights += a.words * 64) {
    tile.template run<kShift>(codes, a.stride, a.words, weights);
  }
  tile.write(out, stride);
}

template <int R>
inline void row_tile(const Rows& a, int64_t row, const Panels& w, int32_t* out, ptrdiff_t stride) {
  const int8_t* weights = w.data;
  for (int block = 0; block < w.blocks; ++block, weights += (ptrdiff_t)w.words * 64, out += kLanes) {
    const int32_t* start = w.start ? w.start + block * kLanes : nullptr;
    if (kCodeShift == 0 || w.product == Product::kSigned) {
      block_tile<R, false>(a, row, weights, start, out, stride);
    } else {
      int32_t own[kLanes];
      if (w.product != Product::kShifted) shifted_start(weights, w.words, start, own), start = own;
      block_tile<R, kCodeShift != 0>(a, row, weights, start, out, stride);
    }
  }
}

}  // namespace neon

// Accumulators of up to kTileRows rows, for all columns: out[r][0 .. 16 * blocks).
inline void accumulate(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  switch (rows) {
    case 1: return neon::row_tile<1>(a, row, w, out, out_stride);
    case 2: return neon::row_tile<2>(a, row, w, out, out_stride);
    case 3: return neon::row_tile<3>(a, row, w, out, out_stride);
    case 4: return neon::row_tile<4>(a, row, w, out, out_stride);
    case 5: if constexpr (kTileRows >= 5) return neon::row_tile<5>(a, row, w, out, out_stride); [[fallthrough]];
    default: return neon::row_tile<kTileRows>(a, row, w, out, out_stride);
  }
}

// Panels ready for codes up to `largest`; the buffer holds the start values that they read.
inline Panels prepared(Panels panels, int largest, Buffer<int8_t>& storage) {
  if (neon::kCodeShift == 0) return panels;
  panels.product = largest <= 127 ? Product::kSigned : Product::kShifted;
  if (largest <= 127) return panels;
  storage.resize((size_t)panels.blocks * kLanes * sizeof(int32_t));
  int32_t* starts = (int32_t*)storage.data();
  for (int block = 0; block < panels.blocks; ++block) {
    neon::shifted_start(panels.data + (ptrdiff_t)block * panels.words * 64, panels.words,
                        panels.start ? panels.start + block * kLanes : nullptr, starts + block * kLanes);
  }
  panels.start = starts;
  return panels;
}

}  // namespace fxptq

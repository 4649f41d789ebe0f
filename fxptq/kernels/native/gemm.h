// Integer matrix product of whole panels, and the weights made ready for it at each call. See tile.h.
#pragma once

#include "tile.h"
#if FXPTQ_DOT16
#include "gemm16.h"
#elif FXPTQ_NEON
#include "gemm_neon.h"
#endif

namespace fxptq {

// Weights at `bits` = 4, 3 or 2 bits as the bytes of panels: the odd numbers w = 2 c - (2^bits - 1), 64 from 16 * bits / 2
// bytes. The bytes of a plane of p bits hold 64 / 8 p codes each, the first part of the vector in the lowest bits; 3 bits are
// a plane of two bits with the low ones, and a plane of one bit.
template <int kBits>
void unpack(const uint8_t* from, int64_t vectors, int8_t* to) {
  constexpr int kLow = kBits == 4 ? 4 : 2;
  constexpr uint64_t kEach = 0x0101010101010101u;
  for (int64_t v = 0; v < vectors; ++v, from += 8 * kBits, to += 64) {
    uint64_t low[kLow], high, codes[8];  // eight codes each
    std::memcpy(low, from, sizeof low);
    if constexpr (kBits == 3) std::memcpy(&high, from + sizeof low, sizeof high);
    for (int i = 0; i < 8; ++i) {
      uint64_t c = low[i % kLow] >> (i / kLow * kLow) & kEach * ((1 << kLow) - 1);
      if constexpr (kBits == 3) c |= (high >> i & kEach) << 2;
      // No byte borrows from the next with its highest bit set.
      codes[i] = ((2 * c | kEach << 7) - kEach * ((1 << kBits) - 1)) ^ kEach << 7;
    }
    std::memcpy(to, codes, sizeof codes);
  }
}

inline void unpack(const uint8_t* from, int bits, int64_t vectors, int8_t* to) {
  switch (bits) {
    case 2: return unpack<2>(from, vectors, to);
    case 3: return unpack<3>(from, vectors, to);
    default: return unpack<4>(from, vectors, to);
  }
}

#if !FXPTQ_DOT16 && !FXPTQ_NEON
// Accumulators of up to kTileRows rows, for all columns: out[r][0 .. 16 * blocks).
inline void accumulate(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  accumulate_by<Product::kBytes, false>(a, row, rows, w, out, out_stride);
}

// Panels with the fastest products for codes up to `largest`; the buffer holds weights that these products read.
inline Panels prepared(const Panels& bytes, int /*largest*/, Buffer<int8_t>& /*pairs*/) { return bytes; }
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

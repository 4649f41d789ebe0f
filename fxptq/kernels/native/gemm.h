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
  typedef uint64_t Two __attribute__((vector_size(16)));
  constexpr int kLow = kBits == 4 ? 4 : 2, kVectors = kLow / 2;  // of the low plane
  for (int64_t v = 0; v < vectors; ++v, from += 8 * kBits, to += 64) {
    Bytes16 low[kVectors], high = {};
    std::memcpy(low, from, sizeof low);
    if constexpr (kBits == 3) {  // the second eight codes of a part are one bit above the first
      uint64_t bits;
      std::memcpy(&bits, from + 16, 8);
      high = (Bytes16)Two{bits, bits >> 1};
    }
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      Bytes16 c = (low[part % kVectors] >> (part / kVectors * kLow)) & (uint8_t)((1 << kLow) - 1);
      if constexpr (kBits == 3) c = c | ((high >> (2 * part)) & 1) << 2;
      const Bytes16 w = c + c - (uint8_t)((1 << kBits) - 1);
      std::memcpy(to + 16 * part, &w, 16);
    }
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

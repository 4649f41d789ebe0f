// The product of whole panels where the fast sums have 16 bits: bounds of the operands choose the products.
//
// A sum of 16 bits holds `steps` groups of four products of the largest code and the largest weight. Longer sums are made of
// pieces, whose totals are added up in memory.
#pragma once

#include <algorithm>

#include "tile.h"

namespace fxptq {

// Activations up to this depth are widened to 16 bits at a time, in groups of four.
constexpr int kPairWords = 64;

inline int largest_of(const Panels& panels) {
  int largest = 0;
  const int64_t count = (int64_t)panels.blocks * panels.words * 64;
  for (int64_t i = 0; i < count; ++i) largest = std::max<int>(largest, std::abs(panels.data[i]));
  return largest;
}

// The weights of each group of four as two pairs of 16-bit integers, one after the other.
inline void widen_weights(const Panels& panels, int8_t* to) {
  const int64_t vectors = (int64_t)panels.blocks * panels.words;
  const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
  const __m256i second = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (int64_t v = 0; v < vectors; ++v, to += 128) {
    for (int half = 0; half < 2; ++half) {
      const __m256i four = _mm256_loadu_si256((const __m256i*)(panels.data + v * 64 + 32 * half));
      _mm256_storeu_si256((__m256i*)(to + 32 * half), _mm256_srai_epi16(_mm256_shuffle_epi8(four, first), 8));
      _mm256_storeu_si256((__m256i*)(to + 64 + 32 * half), _mm256_srai_epi16(_mm256_shuffle_epi8(four, second), 8));
    }
  }
}

inline void widen_codes(const uint8_t* from, int words, uint8_t* to) {
  int k = 0;
  for (; k + 4 <= words; k += 4) {
    const __m128i sixteen = _mm_loadu_si128((const __m128i*)(from + 4 * k));
    _mm256_storeu_si256((__m256i*)(to + 8 * k), _mm256_cvtepu8_epi16(sixteen));
  }
  for (; k < words; ++k) {
    int32_t four;
    std::memcpy(&four, from + 4 * k, 4);
    _mm_storel_epi64((__m128i*)(to + 8 * k), _mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
  }
}

// Panels with the fastest products for codes up to `largest`; the buffer holds weights that these products read.
inline Panels prepared(const Panels& bytes, int largest, Buffer<int8_t>& pairs) {
  const Sums16 sums = sums16(largest, largest_of(bytes));
  Panels panels = bytes;
  panels.product = sums.product, panels.steps = sums.steps;
  if (panels.product == Product::kPairs) {
    pairs.resize((size_t)panels.blocks * panels.words * 128);
    widen_weights(bytes, pairs.data());
    panels.data = pairs.data();
  }
  return panels;
}

// Calls piece(rows, panels, more) for pieces of at most `limit` groups of four along K, where panels have `bytes` a group.
template <class Piece>
inline void by_pieces(const Rows& a, const Panels& w, int limit, ptrdiff_t bytes, Piece piece) {
  Panels part = w;
  bool more = false;
  for (int s = 0; s < a.segments; ++s) {
    for (int k = 0; k < a.words; k += limit) {
      const int words = std::min(limit, a.words - k);
      piece(Rows{a.data + s * a.segment_stride + 4 * k, a.stride, 1, 0, words}, part, more);
      part.data += words * bytes, more = true;
    }
  }
}

template <Product P>
inline void accumulate_piece(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride,
                             bool more) {
  if (more) {
    accumulate_by<P, true>(a, row, rows, w, out, out_stride);
  } else {
    accumulate_by<P, false>(a, row, rows, w, out, out_stride);
  }
}

// Accumulators of up to kTileRows rows, for all columns: out[r][0 .. 16 * blocks).
inline void accumulate(const Rows& a, int64_t row, int rows, const Panels& w, int32_t* out, ptrdiff_t out_stride) {
  switch (w.product) {
    default: return accumulate_by<Product::kBytes, false>(a, row, rows, w, out, out_stride);
    case Product::kSmall: return accumulate_by<Product::kSmall, false>(a, row, rows, w, out, out_stride);
    case Product::kSums16:
      if (a.segments * a.words <= w.steps) return accumulate_by<Product::kSums16, false>(a, row, rows, w, out, out_stride);
      return by_pieces(a, w, w.steps, 64, [&](const Rows& some, const Panels& part, bool more) {
        accumulate_piece<Product::kSums16>(some, row, rows, part, out, out_stride, more);
      });
    case Product::kPairs: {
      alignas(64) uint8_t wide[kTileRows * kPairWords * 8];
      Panels pairs = w;
      pairs.words = 2 * w.words;
      return by_pieces(a, pairs, kPairWords, 128, [&](const Rows& some, const Panels& part, bool more) {
        const Rows widened{wide, 8 * some.words, 1, 0, 2 * some.words};
        for (int r = 0; r < rows; ++r) widen_codes(some.data + (row + r) * some.stride, some.words, wide + r * widened.stride);
        accumulate_piece<Product::kPairs>(widened, 0, rows, part, out, out_stride, more);
      });
    }
  }
}

}  // namespace fxptq

// Weights in the layout of the kernels: [blocks of 16 columns][groups of four][16][4], zeros where there is no weight.
#pragma once

#include "check.h"

#include "gemm.h"

namespace native {

struct Packed {
  fxptq::Buffer<int8_t> bytes;
  int blocks, words;
  fxptq::Panels panels(const int32_t* start = nullptr) const { return {bytes.data(), blocks, words, start}; }
};

// Packs [columns][depth].
inline Packed pack(const std::vector<int8_t>& w, int columns, int depth) {
  Packed packed{{}, (columns + 15) / 16, (depth + 3) / 4};
  packed.bytes.resize((size_t)packed.blocks * packed.words * 64);
  for (int c = 0; c < columns; ++c) {
    for (int k = 0; k < depth; ++k) {
      packed.bytes[(((size_t)(c / 16) * packed.words + k / 4) * 16 + c % 16) * 4 + k % 4] = w[(size_t)c * depth + k];
    }
  }
  return packed;
}

}  // namespace native

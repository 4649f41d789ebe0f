// What products of two activations share.
#pragma once

#include "../attention.h"
#include "common.h"

namespace fxptq {

// A sum of more products of two 8-bit codes than this could exceed 32 bits; a multiple of four, the depth of one step.
constexpr int64_t kDepth = 1 << 16;

inline Centre centre_of(int64_t bits) {
  // Up to 7 bits the odd integers 2 code - (2^bits - 1) are centred on zero; 8 bits have room for code - 128 only.
  return bits < 8 ? Centre{2, (uint8_t)((1 << bits) - 1)} : Centre{1, 128};
}

}  // namespace fxptq

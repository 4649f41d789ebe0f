// 3x3 convolution with stride 1 by Winograd's F(4x4, 3x3) in exact integers: 36 products for 16 pixels in place of 144.
//
// A 6x6 patch of codes d goes to V = B^T d B and the weights to U = G' g G'^T, G' = 24 G with a last row of 1 in place of
// 24; then 576 y = A'^T (sum over channels of U V) A', where A' makes up for the last row. V and U fit 16 bits for all
// codes and weights of 8 bits: |V| <= 68 * 255, |U| <= 144 * 128. The sums are computed modulo 2^32, in which 9 has an
// inverse: 64 y remains, which is exact where |y| < 2^25. The caller checks that bound. Weights are transformed in each
// call, at a hundredth of its cost, so that they stay packed in memory.
// (Winograd 1980; Lavin and Gray, arXiv 1509.09308, equations for F(4x4).)
#pragma once

#include "conv.h"

namespace fxptq {

class Winograd4 {
 public:
  static constexpr int kPatch = 4;      // pixels of a patch, each way
  static constexpr int kFactor = 64;    // of the sums
  static constexpr int kPositions = 36;

  // Bytes of a pixel of the copy: whole registers.
  static int64_t channel_bytes(int64_t channels) { return (channels + kRegister - 1) / kRegister * kRegister; }

  // U of packed taps, and its size in bytes: [positions][blocks][2 * words][16] pairs of 16-bit integers.
  static int64_t weight_bytes(int blocks, int words) { return (int64_t)kPositions * blocks * words * 128; }
  static void transform_weight(const int8_t* taps, int blocks, int words, int8_t* u);

  Winograd4(const ConvShape& shape, const int8_t* u, int blocks, int words)
      : c_(shape), u_(u), blocks_(blocks), words_(words), row_bytes_(2 * c_.channel_bytes),
        input_step_(kPatches * row_bytes_ + 64), v_(kPositions * input_step_), products_(kPositions * kProductStep),
        pixels_(kPatch * kPatch * kTileRows * kGroup) {}

  // Output rows [begin, end), `begin` a multiple of four, whose input the strip holds in whole patches.
  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    const int64_t across = (c_.out_width + kPatch - 1) / kPatch, total = (end - begin + kPatch - 1) / kPatch * across;
    for (int64_t first = 0; first < total; first += kPatches) {
      const int count = (int)std::min<int64_t>(kPatches, total - first);
      for (int p = 0; p < count; ++p) {
        const int64_t y = begin + (first + p) / across * kPatch, x = (first + p) % across * kPatch;
        input(strip.row(y) + x * c_.channel_bytes, v_.data() + p * row_bytes_);
      }
      // Groups of columns one by one, so that their products stay in cache; the last one may hold the sums of codes.
      for (int block = (blocks_ - 1) / kGroupBlocks * kGroupBlocks; block >= 0; block -= kGroupBlocks) {
        const int here = std::min(kGroupBlocks, blocks_ - block);
        for (int position = 0; position < kPositions; ++position) multiply(position, block, here, count);
        for (int p = 0; p < count;) {  // a few patches of one row of patches
          const int64_t y = begin + (first + p) / across * kPatch, x = (first + p) % across;
          const int some = (int)std::min<int64_t>(std::min(kTileRows, count - p), across - x);
          for (int i = 0; i < some; ++i) output(p + i, i, here);
          for (int r = 0; r < kPatch && y + r < end; ++r) {
            finish.row(y + r);
            finish.run_group(kPatch * x, std::min<int64_t>(kPatch * some, c_.out_width - kPatch * x),
                             pixels_.data() + r * kPatch * kTileRows * kGroup, block * kLanes);
          }
          p += some;
        }
      }
    }
  }

 private:
  static constexpr int kGroupBlocks = kGroup / kLanes;
  static constexpr int kTileRows = 6;                          // patches of a tile
  static constexpr int kVectors = 64 / kRegister;              // of a block of columns
  static constexpr int kTileBlocks = kRegister == 64 ? 4 : 1;  // 24 sums in 32 registers, or 12 in 16
  // Patches that go through all steps together, so that the products of 64 columns stay in cache (166 or 332 KB).
  static constexpr int kPatches = kRegister == 64 ? 36 : 18;
  static constexpr int kProductStep = kPatches * kGroup + 16;  // from a position to the next; a line more as for V

  // B^T d.
  static FXPTQ_INLINE void input_transform(const Shorts (&d)[6], Shorts (&t)[6]) {
    const Shorts a = d[4] - (d[2] << 2), b = d[3] - (d[1] << 2), c = d[4] - d[2], e = (d[3] - d[1]) << 1;
    t[0] = ((d[0] - d[2]) << 2) + c, t[1] = a + b, t[2] = a - b, t[3] = c + e, t[4] = c - e;
    t[5] = ((d[1] - d[3]) << 2) + (d[5] - d[3]);
  }

  // A'^T m, modulo 2^32.
  static FXPTQ_INLINE void output_transform(const Pairs (&m)[6], Pairs (&y)[4]) {
    const Pairs a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = (m[3] - m[4]) << 1;
    const Pairs last = (m[5] + (m[5] << 1)) << 3;
    y[0] = m[0] + a + c, y[1] = b + d, y[2] = a + (c << 2), y[3] = b + (d << 2) + last;
  }

  // G' g.
  static FXPTQ_INLINE void weight_transform(const Shorts (&g)[3], Shorts (&u)[6]) {
    const Shorts ends = g[0] + g[2], wide = g[0] + (g[2] << 2), middle = g[1] << 1;
    u[0] = g[0] * 6, u[1] = -((ends + g[1]) << 2), u[2] = (g[1] - ends) << 2, u[3] = wide + middle, u[4] = wide - middle, u[5] = g[2];
  }

  // Bytes as 16-bit integers: the even ones, then the odd ones. V and U agree in this order of channels.
  static FXPTQ_INLINE Shorts even(UnsignedShorts codes) { return (Shorts)(codes & 255); }
  static FXPTQ_INLINE Shorts odd(UnsignedShorts codes) { return (Shorts)(codes >> 8); }

  // V of one patch: for each register of channels its even ones, then its odd ones.
  void input(const uint8_t* from, uint8_t* to) const {
    const int64_t row = c_.row_bytes(), pixel = c_.channel_bytes;
    constexpr int kWords = kRegister / 4;
    for (int word = 0; word < words_; word += kWords, from += kRegister, to += 2 * kRegister) {
      const int half = 4 * std::min(kWords, words_ - word);
      for (int parity = 0; parity < 2; ++parity) {  // the odd ones overwrite what is past the last even one
        Shorts t[6][6];
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) {
          Shorts d[6], column[6];
#pragma GCC unroll 6
          for (int y = 0; y < 6; ++y) {
            const auto codes = load_register<UnsignedShorts>(from + y * row + x * pixel);
            d[y] = parity ? odd(codes) : even(codes);
          }
          input_transform(d, column);
#pragma GCC unroll 6
          for (int y = 0; y < 6; ++y) t[y][x] = column[y];
        }
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) {
          Shorts line[6];
          input_transform(t[y], line);
#pragma GCC unroll 6
          for (int x = 0; x < 6; ++x) store_register(to + (6 * y + x) * input_step_ + parity * half, line[x]);
        }
      }
    }
  }

  template <int V>
  static FXPTQ_INLINE void step(Pairs (&sums)[V], const uint8_t* row, const Pairs (&columns)[V]) {
    uint32_t two;
    std::memcpy(&two, row, sizeof two);
    const Pairs both = Pairs{} + two;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[v] = dot2(sums[v], both, columns[v]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) keep(sums[v]);
  }

  template <int V>
  static FXPTQ_INLINE void put(int32_t* to, const Pairs (&sums)[V]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store_register(to + v * kRegister / 4, sums[v]);
  }

  // Products of R patches and V registers of columns. The sums have names, because gcc spills them from an array.
  template <int R, int V>
  void tile(const uint8_t* rows, const int8_t* weights, int32_t* to) const {
    Pairs s0[V] = {}, s1[V] = {}, s2[V] = {}, s3[V] = {}, s4[V] = {}, s5[V] = {};
    const ptrdiff_t stride = row_bytes_, panel = (ptrdiff_t)words_ * 128;
    const uint8_t* later = rows + 3 * stride;
    for (int k = 0; k < 2 * words_; ++k, rows += 4, later += 4, weights += 64) {
      Pairs columns[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) columns[v] = load_register<Pairs>(weights + v / kVectors * panel + v % kVectors * kRegister);
      step(s0, rows, columns);
      if constexpr (R > 1) step(s1, rows + stride, columns);
      if constexpr (R > 2) step(s2, rows + 2 * stride, columns);
      if constexpr (R > 3) step(s3, later, columns);
      if constexpr (R > 4) step(s4, later + stride, columns);
      if constexpr (R > 5) step(s5, later + 2 * stride, columns);
    }
    put(to, s0);
    if constexpr (R > 1) put(to + kGroup, s1);
    if constexpr (R > 2) put(to + 2 * kGroup, s2);
    if constexpr (R > 3) put(to + 3 * kGroup, s3);
    if constexpr (R > 4) put(to + 4 * kGroup, s4);
    if constexpr (R > 5) put(to + 5 * kGroup, s5);
  }

  template <int V>
  void patch_tiles(const uint8_t* rows, const int8_t* weights, int32_t* to, int count) const {
    for (; count >= 6; count -= 6, rows += 6 * row_bytes_, to += 6 * kGroup) tile<6, V>(rows, weights, to);
    switch (count) {
      case 1: tile<1, V>(rows, weights, to); break;
      case 2: tile<2, V>(rows, weights, to); break;
      case 3: tile<3, V>(rows, weights, to); break;
      case 4: tile<4, V>(rows, weights, to); break;
      case 5: tile<5, V>(rows, weights, to); break;
      default: break;
    }
  }

  void multiply(int position, int first, int blocks, int count) {
    const int64_t panel = (int64_t)words_ * 128;
    const uint8_t* rows = v_.data() + position * input_step_;
    const int8_t* weights = u_ + ((int64_t)position * blocks_ + first) * panel;
    int32_t* to = products_.data() + position * kProductStep;
    for (int block = 0; block < blocks;) {
      const int8_t* at = weights + block * panel;
      int32_t* out = to + block * kLanes;
      if constexpr (kTileBlocks == 4) {
        switch (blocks - block) {
          case 1: patch_tiles<kVectors>(rows, at, out, count); break;
          case 2: patch_tiles<2 * kVectors>(rows, at, out, count); break;
          case 3: patch_tiles<3 * kVectors>(rows, at, out, count); break;
          default: patch_tiles<4 * kVectors>(rows, at, out, count); break;
        }
        block += 4;
      } else {
        patch_tiles<kVectors>(rows, at, out, count);
        ++block;
      }
    }
  }

  // The pixels of one patch, the `place`-th of those that are finished together.
  void output(int patch, int place, int blocks) {
    const int32_t* from = products_.data() + patch * kGroup;
    int32_t* to = pixels_.data() + place * kPatch * kGroup;
    for (int column = 0; column < blocks * kLanes; column += kRegister / 4) {
      Pairs z[4][6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        Pairs m[6], y[4];
#pragma GCC unroll 6
        for (int r = 0; r < 6; ++r) m[r] = load_register<Pairs>(from + (6 * r + x) * kProductStep + column);
        output_transform(m, y);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) z[r][x] = y[r];
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        Pairs y[4];
        output_transform(z[r], y);
#pragma GCC unroll 4
        for (int x = 0; x < 4; ++x) {
          store_register(to + (r * kPatch * kTileRows + x) * kGroup + column, y[x] * kNinth);
        }
      }
    }
  }

  static constexpr uint32_t kNinth = 954437177;  // 9 * kNinth = 1 modulo 2^32

  const ConvShape c_;
  const int8_t* u_;
  const int blocks_, words_;
  const int64_t row_bytes_;    // of V of a patch for one position
  const int64_t input_step_;   // from a position to the next; a line more, so that positions fall on other sets of a cache
  Buffer<uint8_t> v_;          // [positions][patches][row bytes]
  Buffer<int32_t> products_;   // [positions][patches][64]
  Buffer<int32_t> pixels_;     // [4][4 * patches of a tile][64]
};

inline void Winograd4::transform_weight(const int8_t* taps, int blocks, int words, int8_t* u) {
  const int64_t tap = (int64_t)blocks * words * 64;
  constexpr int kWords = kRegister / 4;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int word = 0; word < words; ++word) {
      const int64_t chunk = word / kWords * kWords, half = std::min<int64_t>(kWords, words - chunk);
      const int8_t* from = taps + (block * words + word) * 64;
      int8_t* to = u + (block * words * 2 + 2 * chunk + word % kWords) * 64;
      for (int part = 0; part < 64; part += kRegister) {
        for (int parity = 0; parity < 2; ++parity) {
          Shorts t[6][3];
#pragma GCC unroll 3
          for (int x = 0; x < 3; ++x) {
            Shorts g[3], column[6];
#pragma GCC unroll 3
            for (int y = 0; y < 3; ++y) {
              const Shorts two = load_register<Shorts>(from + (3 * y + x) * tap + part);
              g[y] = parity ? two >> 8 : (two << 8) >> 8;
            }
            weight_transform(g, column);
#pragma GCC unroll 6
            for (int y = 0; y < 6; ++y) t[y][x] = column[y];
          }
#pragma GCC unroll 6
          for (int y = 0; y < 6; ++y) {
            Shorts line[6];
            weight_transform(t[y], line);
#pragma GCC unroll 6
            for (int x = 0; x < 6; ++x) store_register(to + ((6 * y + x) * 2 * tap) + part + parity * half * 64, line[x]);
          }
        }
      }
    }
  }
}

}  // namespace fxptq

// 3x3 convolution with stride 1 by Winograd's F(2x2, 3x3) in exact integers: 16 products for 4 pixels in place of 36.
//
// A 4x4 patch of codes d goes to V = B^T d B, sums and differences of at most four codes, and the weights beforehand to
// U = 4 G g G^T, small integers too; then 4 y = A^T (sum over channels of U V) A, and the scale includes the 1 / 4. Codes
// of up to 6 bits keep V within a byte once twice the largest code is added where V can be negative; the start values of
// the sums subtract it again. The bytes of V are computed modulo 256, in which the offset makes them exact. The weights
// stay packed and are transformed in each call, at a hundredth of its cost.
// (Winograd 1980; Lavin and Gray, arXiv 1509.09308, equations for F(2x2, 3x3).)
#pragma once

#include "conv.h"

namespace fxptq {

constexpr int kPositions = 16;
constexpr int kPatches = 12;  // patches of a row that go through all steps together, to stay in cache

// U of the packed taps [9][blocks][words][64], laid out alike [16][blocks][words][64], and the start values of the sums of
// each position, [16][columns to whole groups]. U is computed modulo 256 like V; the caller has checked that it fits.
inline void transform_weight(const int8_t* taps, int blocks, int words, int64_t channels, int largest, int8_t* u, int32_t* start,
                             int64_t start_stride) {
  const int64_t panels = (int64_t)blocks * words * 64;
  uint8_t last_bytes[64];  // masks the bytes of the last word beyond the channels, which must not be multiplied by the offset
  for (int i = 0; i < 64; ++i) last_bytes[i] = channels % 4 == 0 || i % 4 < channels % 4 ? 255 : 0;
  const Bytes last = load<Bytes>(last_bytes);
  for (int64_t v = 0; v < (int64_t)blocks * words; ++v) {
    Bytes t[4][3];
    for (int x = 0; x < 3; ++x) {
      Bytes g[3];
      for (int y = 0; y < 3; ++y) {
        g[y] = load<Bytes>((const uint8_t*)taps + (3 * y + x) * panels + v * 64);
        if (v % words == words - 1) g[y] = g[y] & last;
      }
      t[0][x] = g[0] + g[0], t[1][x] = g[0] + g[1] + g[2], t[2][x] = g[0] - g[1] + g[2], t[3][x] = g[2] + g[2];
    }
    for (int y = 0; y < 4; ++y) {
      const Bytes sum = t[y][0] + t[y][2], four[4] = {t[y][0] + t[y][0], sum + t[y][1], sum - t[y][1], t[y][2] + t[y][2]};
      for (int x = 0; x < 4; ++x) store((uint8_t*)u + (4 * y + x) * panels + v * 64, four[x]);
    }
  }
  for (int position = 0; position < kPositions; ++position) {
    const int offset = position == 5 ? 0 : 2 * largest;  // position (1, 1) of V is a sum of codes, never negative
    for (int block = 0; block < blocks; ++block) {
      Ints total = {};
      for (int word = 0; word < words; ++word) {
        const int8_t* at = u + position * panels + ((int64_t)block * words + word) * 64;
        total = dot4(total, Words{} + 0x01010101u, load<Words>(at));
      }
      store(start + position * start_stride + block * kLanes, -offset * total);
    }
  }
}

class Winograd {
 public:
  static constexpr int kFactor = 4;  // of the sums

  // `panels` [16] packed weights of each position; channel_bytes of `shape` is a multiple of 64.
  Winograd(const ConvShape& shape, const Panels* panels, uint8_t levels)
      : c_(shape), panels_(panels), columns_(padded_columns(panels[0])), patches_(kPositions * kPatches * c_.channel_bytes),
        products_(kPositions * kPatches * columns_), pixels_(2 * 2 * kPatches * columns_), offset_(splat_byte(2 * levels)) {}

  // Output rows [begin, end), `begin` even, whose input the strip holds in whole patches.
  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    const int64_t row_patches = (c_.out_width + 1) / 2;
    for (int64_t y = begin; y < end; y += 2) {
      for (int64_t first = 0; first < row_patches; first += kPatches) {
        const int count = (int)std::min<int64_t>(kPatches, row_patches - first);
        const int64_t x = 2 * first, width = std::min<int64_t>(2 * count, c_.out_width - x);
        for (int p = 0; p < count; ++p) input(strip.row(y) + 2 * (first + p) * c_.channel_bytes, p);
        for (int position = 0; position < kPositions; ++position) multiply(position, count);
        for (int p = 0; p < count; ++p) output(p);
        for (int64_t r = 0; r < 2 && y + r < end; ++r) {
          finish.row(y + r);
          finish.run(x, width, pixels_.data() + r * 2 * kPatches * columns_);
        }
      }
    }
  }

 private:
  // V of one patch, 64 channels at a time.
  void input(const uint8_t* from, int patch) {
    const int64_t row = c_.row_bytes(), pixel = c_.channel_bytes, step = kPatches * c_.channel_bytes;
    for (int64_t channel = 0; channel < c_.channel_bytes; channel += 64) {
      Bytes t[4][4];
      for (int x = 0; x < 4; ++x) {
        Bytes d[4];
        for (int y = 0; y < 4; ++y) d[y] = load<Bytes>(from + y * row + x * pixel + channel);
        t[0][x] = d[0] - d[2], t[1][x] = d[1] + d[2], t[2][x] = d[2] - d[1], t[3][x] = d[1] - d[3];
      }
      uint8_t* to = patches_.data() + patch * c_.channel_bytes + channel;
      for (int y = 0; y < 4; ++y) {
        const Bytes one = t[y][1] + offset_, two = t[y][2] + offset_;
        store(to + (4 * y + 0) * step, t[y][0] + offset_ - t[y][2]);
        store(to + (4 * y + 1) * step, y == 1 ? t[y][1] + t[y][2] : t[y][1] + two);
        store(to + (4 * y + 2) * step, two - t[y][1]);
        store(to + (4 * y + 3) * step, one - t[y][3]);
      }
    }
  }

  void multiply(int position, int count) {
    const Rows rows{patches_.data() + position * kPatches * c_.channel_bytes, c_.channel_bytes, 1, 0, panels_[position].words};
    int32_t* out = products_.data() + position * kPatches * columns_;
    for (int p = 0; p < count; p += kTileRows) {
      accumulate(rows, p, std::min(kTileRows, count - p), panels_[position], out + p * columns_, columns_);
    }
  }

  // A^T M A of one patch: two pixels of two rows.
  void output(int patch) {
    const int64_t step = kPatches * columns_;
    const int32_t* from = products_.data() + patch * columns_;
    int32_t* to = pixels_.data() + 2 * patch * columns_;
    for (int64_t column = 0; column < columns_; column += kLanes) {
      Ints z[2][4];
      for (int x = 0; x < 4; ++x) {
        Ints m[4];
        for (int y = 0; y < 4; ++y) m[y] = load<Ints>(from + (4 * y + x) * step + column);
        z[0][x] = m[0] + m[1] + m[2], z[1][x] = m[1] - m[2] - m[3];
      }
      for (int y = 0; y < 2; ++y) {
        int32_t* row = to + y * 2 * step + column;
        store(row, z[y][0] + z[y][1] + z[y][2]);
        store(row + columns_, z[y][1] - z[y][2] - z[y][3]);
      }
    }
  }

  const ConvShape c_;
  const Panels* panels_;
  const int64_t columns_;
  Buffer<uint8_t> patches_;    // [positions][patches][channel bytes]
  Buffer<int32_t> products_;   // [positions][patches][columns]
  Buffer<int32_t> pixels_;     // [2][2 * patches][columns]
  Bytes offset_;
};

}  // namespace fxptq

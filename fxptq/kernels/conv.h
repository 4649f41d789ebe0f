// 2-D convolution of u8 codes as the integer product of gemm.h over a channels-last copy with its border.
//
// The border is filled with code 0, so that it adds nothing to the integers. What a real zero is off the grid is put right
// in the bias: an activation is s A + l inside and 0 outside, hence l times the weights of the taps that lie inside.
#pragma once

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "gemm.h"

namespace fxptq {

struct ConvShape {
  int64_t channels, height, width;        // input
  int64_t out_height, out_width;
  int kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x;
  int64_t channel_bytes() const { return (channels + 3) / 4 * 4; }
  int64_t padded_width() const { return (out_width - 1) * stride_x + kernel_width; }
  int64_t padded_height() const { return (out_height - 1) * stride_y + kernel_height; }
  int64_t row_bytes() const { return padded_width() * channel_bytes(); }
};

// One image into [padded height][padded width][channels to a multiple of four], zeros around. Strides are in bytes.
inline void copy_with_border(const ConvShape& c, const uint8_t* from, int64_t channel, int64_t row, int64_t column,
                             uint8_t* to, int64_t begin, int64_t end) {
  const int64_t bytes = c.channel_bytes();
  for (int64_t y = begin; y < end; ++y) {
    uint8_t* line = to + y * c.row_bytes();
    const int64_t source = y - c.pad_y;
    std::memset(line, 0, c.row_bytes());
    if (source < 0 || source >= c.height) continue;
    const int64_t first = std::min<int64_t>(c.pad_x, c.padded_width());
    const int64_t count = std::clamp<int64_t>(c.padded_width() - first, 0, c.width);
    const uint8_t* at = from + source * row;
    line += first * bytes;
    if (channel == 1 && column == c.channels && bytes == c.channels) {
      std::memcpy(line, at, count * bytes);
    } else if (channel == 1) {
      for (int64_t x = 0; x < count; ++x) std::memcpy(line + x * bytes, at + x * column, c.channels);
    } else {
      for (int64_t x = 0; x < count; ++x) {
        for (int64_t i = 0; i < c.channels; ++i) line[x * bytes + i] = at[x * column + i * channel];
      }
    }
  }
}

// The bias of output pixels whose taps [y0, y1) x [x0, x1) lie inside the image.
inline void bias_inside(const ConvShape& c, const float* bias, const float* taps, int64_t padded, int y0, int y1, int x0,
                        int x1, float* out) {
  std::copy(bias, bias + padded, out);
  for (int y = y0; y < y1; ++y) {
    for (int x = x0; x < x1; ++x) {
      const float* tap = taps + (y * c.kernel_width + x) * padded;
      for (int64_t i = 0; i < padded; i += kLanes) store(out + i, load<Floats>(out + i) + load<Floats>(tap + i));
    }
  }
}

// Output rows [begin, end) of one image. `taps` [kernel height * kernel width][padded columns] is what each tap that lies
// inside adds to the bias, null where zero is on the grid. `finish` and the pointers are those of the whole image.
inline void conv_rows(const ConvShape& c, const uint8_t* padded, const Panels& panels, const Epilogue& epilogue, Finish finish,
                      const float* bias, const float* taps, RowsOut out, int64_t begin, int64_t end) {
  const int64_t columns = out.acc_stride;
  std::vector<int32_t> acc(columns * kTileRows);
  std::vector<float> sums(kTileRows), edge(columns), inner(columns);
  const Rows rows{padded, c.stride_x * c.channel_bytes(), c.kernel_height, c.row_bytes(),
                  (int)(c.kernel_width * c.channel_bytes() / 4)};
  // Pixels whose taps all lie inside the image from left to right.
  const int64_t full_begin = std::min<int64_t>((c.pad_x + c.stride_x - 1) / c.stride_x, c.out_width);
  const int64_t full_end = std::clamp<int64_t>((c.width + c.pad_x - c.kernel_width) / c.stride_x + 1, full_begin, c.out_width);
  int last_y0 = -1, last_y1 = -1;
  for (int64_t y = begin; y < end; ++y) {
    const int64_t top = y * c.stride_y - c.pad_y;
    const int y0 = (int)std::clamp<int64_t>(-top, 0, c.kernel_height);
    const int y1 = (int)std::clamp<int64_t>(c.height - top, y0, c.kernel_height);
    if (taps && (y0 != last_y0 || y1 != last_y1)) {
      bias_inside(c, bias, taps, columns, y0, y1, 0, c.kernel_width, inner.data());
      last_y0 = y0, last_y1 = y1;
    }
    Rows line = rows;
    line.data += y * c.stride_y * c.row_bytes();
    for (int64_t x = 0; x < c.out_width;) {
      int count = 1;
      const float* here = bias;
      if (taps && (x < full_begin || x >= full_end)) {
        const int64_t left = x * c.stride_x - c.pad_x;
        const int x0 = (int)std::clamp<int64_t>(-left, 0, c.kernel_width);
        bias_inside(c, bias, taps, columns, y0, y1, x0, (int)std::clamp<int64_t>(c.width - left, x0, c.kernel_width),
                    edge.data());
        here = edge.data();
      } else {
        const int64_t limit = taps ? full_end : c.out_width;
        count = (int)std::min<int64_t>(kTileRows, limit - x);
        if (taps) here = inner.data();
      }
      accumulate(line, x, count, panels, acc.data(), columns);
      if (epilogue.row_scale) {
        for (int r = 0; r < count; ++r) sums[r] = (float)row_sum(line, x + r);
      }
      RowsOut some = out;
      const int64_t at = (y * c.out_width + x) * out.stride;
      some.acc = acc.data(), some.rows = count, some.bias = here, some.row_sums = sums.data();
      if (out.residual) some.residual += at;
      if (out.values) some.values += at;
      if (out.codes) some.codes += at;
      finish(epilogue, some);
      x += count;
    }
  }
}

}  // namespace fxptq

// 2-D convolution of u8 codes as the integer product of gemm.h over a channels-last copy with its border.
//
// The border is filled with code 0, so that it adds nothing to the integers. What a real zero is off the grid is put right
// in the bias: an activation is s A + l inside and 0 outside, hence l times the weights of the taps that lie inside.
#pragma once

#include <algorithm>

#include "epilogue.h"
#include "gemm.h"

namespace fxptq {

struct ConvShape {
  int64_t channels, height, width;        // input
  int64_t out_height, out_width;
  int kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x;
  int64_t channel_bytes;  // of a pixel of the copy: the channels and what fills them up
  int64_t copy_height, copy_width;  // of the copy with its border
  int64_t row_bytes() const { return copy_width * channel_bytes; }
};

// Rows [begin, end) of one image's copy [copy height][copy width][channel bytes], zeros around. Strides are in bytes.
inline void copy_with_border(const ConvShape& c, const uint8_t* from, int64_t channel, int64_t row, int64_t column,
                             uint8_t* to, int64_t begin, int64_t end) {
  const int64_t bytes = c.channel_bytes;
  for (int64_t y = begin; y < end; ++y) {
    uint8_t* line = to + y * c.row_bytes();
    const int64_t source = y - c.pad_y;
    std::memset(line, 0, c.row_bytes());
    if (source < 0 || source >= c.height) continue;
    const int64_t first = std::min<int64_t>(c.pad_x, c.copy_width);
    const int64_t count = std::clamp<int64_t>(c.copy_width - first, 0, c.width);
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

// The sum of the codes of each pixel of the copy, rows [begin, end).
inline void sum_pixels(const ConvShape& c, const uint8_t* padded, int32_t* sums, int64_t begin, int64_t end) {
  for (int64_t i = begin * c.copy_width; i < end * c.copy_width; ++i) {
    sums[i] = sum_bytes(padded + i * c.channel_bytes, c.channel_bytes);
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

// The epilogue on pixels of an output row, each with the bias that its place in the image asks for.
class PixelFinish {
 public:
  // `taps` [kernel height * kernel width][padded columns] is what each tap that lies inside adds to the bias, null where
  // zero is on the grid. The accumulators are `factor` times the sums; `pixel_sums` are those of the copy, where the
  // accumulators hold no column of sums. The pointers of `whole` are those of the image.
  PixelFinish(const ConvShape& shape, const int32_t* pixel_sums, int factor, const Epilogue& epilogue, const float* bias,
              const float* taps, const RowsOut& whole)
      : c_(shape), pixel_sums_(pixel_sums), factor_(factor), epilogue_(epilogue), finish_(finish_of(epilogue, whole.residual != nullptr)), bias_(bias),
        taps_(taps), whole_(whole), inner_(whole.acc_stride), edge_(whole.acc_stride), sums_(shape.out_width) {
    full_begin_ = std::min<int64_t>((c_.pad_x + c_.stride_x - 1) / c_.stride_x, c_.out_width);
    full_end_ = (c_.width + c_.pad_x - c_.kernel_width) / c_.stride_x + 1;
    full_end_ = std::clamp<int64_t>(full_end_, full_begin_, c_.out_width);
  }

  // From now on pixels of output row y are meant.
  void row(int64_t y) {
    const int64_t top = y * c_.stride_y - c_.pad_y;
    y_ = y;
    y0_ = (int)std::clamp<int64_t>(-top, 0, c_.kernel_height);
    y1_ = (int)std::clamp<int64_t>(c_.height - top, y0_, c_.kernel_height);
    if (taps_) bias_inside(c_, bias_, taps_, whole_.acc_stride, y0_, y1_, 0, c_.kernel_width, inner_.data());
    if (pixel_sums_) sum_row();
  }

  // Pixels [x, x + count), whose accumulators lie one after the other.
  void run(int64_t x, int64_t count, const int32_t* acc) {
    for (const int64_t end = x + count; x < end;) {
      int64_t here = end - x;
      const float* bias = bias_;
      if (taps_ && (x < full_begin_ || x >= full_end_)) {
        const int64_t left = x * c_.stride_x - c_.pad_x;
        const int x0 = (int)std::clamp<int64_t>(-left, 0, c_.kernel_width);
        const int x1 = (int)std::clamp<int64_t>(c_.width - left, x0, c_.kernel_width);
        bias_inside(c_, bias_, taps_, whole_.acc_stride, y0_, y1_, x0, x1, edge_.data());
        bias = edge_.data(), here = 1;
      } else if (taps_) {
        bias = inner_.data(), here = std::min(here, full_end_ - x);
      }
      same_bias(x, here, acc, bias);
      x += here, acc += here * whole_.acc_stride;
    }
  }

 private:
  void same_bias(int64_t x, int64_t count, const int32_t* acc, const float* bias) {
    if (epilogue_.row_scale && !pixel_sums_) {
      for (int64_t i = 0; i < count; ++i) sums_[x + i] = (float)acc[i * whole_.acc_stride + epilogue_.columns];
    }
    RowsOut some = whole_;
    const int64_t at = (y_ * c_.out_width + x) * whole_.stride;
    some.acc = acc, some.rows = (int)count, some.bias = bias, some.row_sums = sums_.data() + x;
    if (some.residual) some.residual += at;
    if (some.values) some.values += at;
    if (some.codes) some.codes += at;
    finish_(epilogue_, some);
  }

  // The sums of the codes that each pixel of the output row reads.
  void sum_row() {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    float* sums = sums_.data();
    const int64_t step = c_.stride_x, width = c_.out_width;
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx) {
        const int32_t* from = pixel_sums_ + (y_ * c_.stride_y + ky) * c_.copy_width + kx;
        for (int64_t x = 0; x < width; ++x) sums[x] += (float)(factor_ * from[x * step]);
      }
    }
  }

  const ConvShape c_;
  const int32_t* pixel_sums_;
  const int factor_;
  const Epilogue& epilogue_;
  const Finish finish_;
  const float *bias_, *taps_;
  const RowsOut whole_;
  Buffer<float> inner_, edge_, sums_;
  int64_t full_begin_, full_end_;  // pixels whose taps all lie inside the image from left to right
  int64_t y_ = 0;
  int y0_ = 0, y1_ = 0;
};

// Output rows [begin, end) of one image.
inline void conv_rows(const ConvShape& c, const uint8_t* padded, const Panels& panels, PixelFinish& finish, int64_t begin,
                      int64_t end) {
  const int64_t columns = padded_columns(panels);
  Buffer<int32_t> acc(columns * kTileRows);
  Rows line{padded, c.stride_x * c.channel_bytes, c.kernel_height, c.row_bytes(),
            (int)(c.kernel_width * c.channel_bytes / 4)};
  for (int64_t y = begin; y < end; ++y) {
    finish.row(y);
    line.data = padded + y * c.stride_y * c.row_bytes();
    for (int64_t x = 0; x < c.out_width; x += kTileRows) {
      const int count = (int)std::min<int64_t>(kTileRows, c.out_width - x);
      accumulate(line, x, count, panels, acc.data(), columns);
      finish.run(x, count, acc.data());
    }
  }
}

// The same for few output columns, which would leave most lanes of a block empty: the columns of all taps stand side by side
// in `panels`, [taps * columns, channels], each pixel of the copy is multiplied once, and an output pixel gathers its taps.
// Stride 1.
inline void narrow_conv_rows(const ConvShape& c, const uint8_t* padded, const Panels& panels, int columns, PixelFinish& finish,
                             int64_t begin, int64_t end) {
  typedef int32_t Four __attribute__((vector_size(16)));
  const int64_t products = (int64_t)panels.blocks * kLanes, row = c.copy_width * products;
  Buffer<int32_t> lines(c.kernel_height * row + 4), acc(c.out_width * kGroup);
  for (int64_t source = begin; source < end + c.kernel_height - 1; ++source) {
    int32_t* line = lines.data() + source % c.kernel_height * row;
    const Rows pixels{padded + source * c.row_bytes(), c.channel_bytes, 1, 0, panels.words};
    for (int64_t x = 0; x < c.copy_width; x += kTileRows) {
      accumulate(pixels, x, (int)std::min<int64_t>(kTileRows, c.copy_width - x), panels, line + x * products, products);
    }
    const int64_t y = source - c.kernel_height + 1;
    if (y < begin) continue;
    for (int64_t x = 0; x < c.out_width; ++x) {
      for (int column = 0; column < columns; column += 4) {  // what is read past the columns is not used
        Four total = {};
        for (int ky = 0; ky < c.kernel_height; ++ky) {
          const int32_t* tap = lines.data() + (y + ky) % c.kernel_height * row + x * products + ky * c.kernel_width * columns;
          for (int kx = 0; kx < c.kernel_width; ++kx) {
            Four part;
            std::memcpy(&part, tap + kx * (products + columns) + column, sizeof part);
            total = total + part;
          }
        }
        std::memcpy(acc.data() + x * kGroup + column, &total, sizeof total);
      }
    }
    finish.row(y);
    finish.run(0, c.out_width, acc.data());
  }
}

}  // namespace fxptq

// 2-D convolution of u8 codes as the integer product of gemm.h over a channels-last copy with its border.
//
// The border is filled with code 0, so that it adds nothing to the integer sums. Code 0 stands for the value l, not for 0,
// so the term l * sum(w) is added only over the taps that lie inside the image: border pixels have a bias of their own.
// The copy is made strip by strip, just before it is read, so that it stays in cache.
#pragma once

#include <algorithm>

#include "epilogue.h"
#include "gemm.h"

namespace fxptq {

struct ConvShape {
  int64_t channels, height, width;        // input
  int64_t out_height, out_width;
  int kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x;
  int64_t channel_bytes;  // of a pixel of the copy: the channels and their padding
  int64_t copy_width;     // of the copy with its border
  int patch;              // output rows that are computed at a time; a strip has a multiple of them
  int shuffle;            // of the output, 1 for none: columns go by the places of a pixel shuffle, a group of them or more each
  int dilation_y = 1, dilation_x = 1;
  int64_t row_bytes() const { return copy_width * channel_bytes; }
};

// The first tap at or after a position, for taps `step` apart.
inline int first_tap(int64_t position, int step, int taps) { return (int)std::clamp<int64_t>((position + step - 1) / step, 0, taps); }

// The codes of one image, with its strides in bytes.
struct Image {
  const uint8_t* data;
  int64_t channel, row, column;
};

// Row y of an image with its border, as [copy width][channel bytes], zeros around.
inline void copy_row(const ConvShape& c, const Image& image, int64_t y, uint8_t* line) {
  const int64_t bytes = c.channel_bytes, source = y - c.pad_y;
  const bool inside = source >= 0 && source < c.height;
  const bool whole = image.channel == 1 && image.column == c.channels && bytes == c.channels;
  const int64_t first = std::min<int64_t>(c.pad_x, c.copy_width);
  const int64_t count = inside ? std::clamp<int64_t>(c.copy_width - first, 0, c.width) : 0;
  if (whole && inside) {
    std::memset(line, 0, first * bytes);
    std::memset(line + (first + count) * bytes, 0, (c.copy_width - first - count) * bytes);
  } else {
    std::memset(line, 0, c.row_bytes());
  }
  if (!count) return;
  const uint8_t* at = image.data + source * image.row;
  line += first * bytes;
  if (whole) {
    std::memcpy(line, at, count * bytes);
  } else if (image.channel == 1) {
    for (int64_t x = 0; x < count; ++x) std::memcpy(line + x * bytes, at + x * image.column, c.channels);
  } else {
    for (int64_t x = 0; x < count; ++x) {
      for (int64_t i = 0; i < c.channels; ++i) line[x * bytes + i] = at[x * image.column + i * image.channel];
    }
  }
}

// The input of a few consecutive output rows: rows of the copy, and the sum of each pixel's codes where it is needed.
class Strip {
 public:
  // `out_rows` is a multiple of the rows of a patch.
  Strip(const ConvShape& shape, int64_t out_rows, bool sums)
      : c_(shape), out_rows_(out_rows), rows_((out_rows - 1) * c_.stride_y + (c_.kernel_height - 1) * c_.dilation_y + 1), bytes_(rows_ * c_.row_bytes()),
        sums_(sums ? rows_ * c_.copy_width : 0) {}

  // Makes the strip hold the input of output rows [begin, ...).
  void fill(const Image& image, int64_t begin) {
    first_ = begin * c_.stride_y;
    for (int64_t y = 0; y < rows_; ++y) copy_row(c_, image, first_ + y, bytes_.data() + y * c_.row_bytes());
    for (size_t i = 0; i < sums_.size(); ++i) sums_[i] = sum_bytes(bytes_.data() + i * c_.channel_bytes, c_.channel_bytes);
  }

  int64_t out_rows() const { return out_rows_; }
  // Row y of the copy of the whole image; its sums, null where there are none.
  const uint8_t* row(int64_t y) const { return bytes_.data() + (y - first_) * c_.row_bytes(); }
  const int32_t* sums(int64_t y) const { return sums_.empty() ? nullptr : sums_.data() + (y - first_) * c_.copy_width; }

 private:
  const ConvShape c_;
  const int64_t out_rows_, rows_;
  Buffer<uint8_t> bytes_;
  Buffer<int32_t> sums_;
  int64_t first_ = 0;
};

// The bias of `columns` columns, whole vectors, of output pixels whose taps [y0, y1) x [x0, x1) lie inside the image.
inline void bias_inside(const ConvShape& c, const float* bias, const float* taps, int64_t padded, int64_t columns, int y0,
                        int y1, int x0, int x1, float* out) {
  std::copy(bias, bias + columns, out);
  for (int y = y0; y < y1; ++y) {
    for (int x = x0; x < x1; ++x) {
      const float* tap = taps + (y * c.kernel_width + x) * padded;
      for (int64_t i = 0; i < columns; i += kLanes) store(out + i, load<Floats>(out + i) + load<Floats>(tap + i));
    }
  }
}

inline Epilogue without_row_scale(Epilogue epilogue) {
  epilogue.row_scale = nullptr;
  return epilogue;
}

// The epilogue on pixels of an output row; the bias of a pixel depends on its distance from the border of the image.
class PixelFinish {
 public:
  // `taps` [kernel height * kernel width][padded columns] holds the value that each tap inside the image adds to the bias;
  // it is null where code 0 stands for 0. The accumulators are `factor` times the sums; `strip` has the sums of pixels
  // where the accumulators hold no column of them. The pointers of `whole` point to the image.
  PixelFinish(const ConvShape& shape, const Strip& strip, int factor, const Epilogue& epilogue, const float* bias,
              const float* taps, const RowsOut& whole)
      : c_(shape), strip_(strip), factor_(factor), epilogue_(epilogue), finish_(finish_of(epilogue, whole.residual != nullptr)),
        finish_each_(finish_of(without_row_scale(epilogue), whole.residual != nullptr)),
        bias_(bias), taps_(taps), whole_(whole), row_elements_(c_.out_width * whole.stride),
        inner_(strip.out_rows() * whole.acc_stride), edge_(whole.acc_stride), pixel_bias_(whole.acc_stride),
        sums_(strip.out_rows() * c_.out_width), made_(strip.out_rows(), -1) {
    full_begin_ = std::min<int64_t>((c_.pad_x + c_.stride_x - 1) / c_.stride_x, c_.out_width);
    const int64_t last = c_.width + c_.pad_x - (c_.kernel_width - 1) * c_.dilation_x - 1;  // place of the last full kernel
    full_end_ = std::clamp<int64_t>(last < 0 ? 0 : last / c_.stride_x + 1, full_begin_, c_.out_width);
    if (c_.shuffle > 1) place_columns();
  }

  // Makes row y of the output the current row.
  void row(int64_t y) {
    const int64_t top = y * c_.stride_y - c_.pad_y;
    y_ = y;
    y0_ = first_tap(-top, c_.dilation_y, c_.kernel_height);
    y1_ = std::max(y0_, first_tap(c_.height - top, c_.dilation_y, c_.kernel_height));
    // The rows of a strip take turns, run by run; biases and sums of a row are computed once.
    const int64_t turn = y % strip_.out_rows();
    row_bias_ = inner_.data() + turn * whole_.acc_stride, row_sums_ = sums_.data() + turn * c_.out_width;
    if (made_[turn] == y) return;
    made_[turn] = y;
    if (taps_) bias_inside(c_, bias_, taps_, whole_.acc_stride, whole_.acc_stride, y0_, y1_, 0, c_.kernel_width, row_bias_);
    if (strip_.sums(y * c_.stride_y)) sum_row();
  }

  // Pixels [x, x + count), whose accumulators lie one after the other.
  void run(int64_t x, int64_t count, const int32_t* acc) {
    columns_of(x, count, acc, whole_.acc_stride, 0, whole_.acc_stride, epilogue_, groups_.empty() ? nullptr : groups_.data());
  }

  // As `run`, where each column has a sum of codes of its own: [count][accumulator stride].
  void run_each(int64_t x, int64_t count, const int32_t* acc, const float* sums) {
    const ptrdiff_t stride = whole_.acc_stride;
    const Epilogue epilogue = without_row_scale(epilogue_);  // the bias of a pixel has it
    for (const int64_t end = x + count; x < end; ++x, acc += stride, sums += stride) {
      const float* bias = bias_of(x, x + 1, 0, stride).values;
      for (ptrdiff_t i = 0; i < stride; i += kLanes) {
        store(pixel_bias_.data() + i, load<Floats>(bias + i) + load<Floats>(epilogue_.row_scale + i) * load<Floats>(sums + i));
      }
      RowsOut one = place(x, 1, 0);
      one.acc = acc, one.bias = pixel_bias_.data();
      finish_each_(epilogue, one);
    }
  }

  // One group of columns of them, the accumulators of a pixel a group wide. The last group comes first, because it has the
  // column of sums.
  void run_group(int64_t x, int64_t count, const int32_t* acc, int64_t column) {
    Epilogue group = epilogue_;
    group.columns = (int)std::min<int64_t>(kGroup, epilogue_.columns - column);
    group.scale += column;
    if (group.row_scale) group.row_scale += column;
    if (group.levels) group.levels += column;
    if (group.out_scale) group.out_scale += column, group.out_offset += column;
    columns_of(x, count, acc, kGroup, column, kGroup, group, nullptr);
  }

 private:
  // Pixels of the columns [first, first + width), with the epilogue of these columns.
  void columns_of(int64_t x, int64_t count, const int32_t* acc, ptrdiff_t stride, int64_t first, int64_t width,
                  const Epilogue& epilogue, const ptrdiff_t* groups) {
    const bool sum_column = epilogue.row_scale && !strip_.sums(y_ * c_.stride_y) && epilogue.columns < width;
    for (const int64_t end = x + count; x < end;) {
      const auto [bias, here] = bias_of(x, end, first, width);
      if (sum_column) {
        for (int64_t i = 0; i < here; ++i) row_sums_[x + i] = (float)acc[i * stride + epilogue.columns];
      }
      RowsOut some = place(x, here, first);
      some.acc = acc, some.acc_stride = stride, some.bias = bias, some.row_sums = row_sums_ + x, some.groups = groups;
      finish_(epilogue, some);
      x += here, acc += here * stride;
    }
  }

  struct Bias {
    const float* values;
    int64_t count;  // pixels that share it
  };

  // The bias of the columns [first, first + width) for pixels from x on, before `end`.
  Bias bias_of(int64_t x, int64_t end, int64_t first, int64_t width) {
    if (!taps_) return {bias_ + first, end - x};
    if (x >= full_begin_ && x < full_end_) return {row_bias_ + first, std::min(end, full_end_) - x};
    const int64_t left = x * c_.stride_x - c_.pad_x;
    const int x0 = first_tap(-left, c_.dilation_x, c_.kernel_width);
    const int x1 = std::max(x0, first_tap(c_.width - left, c_.dilation_x, c_.kernel_width));
    bias_inside(c_, bias_ + first, taps_ + first, whole_.acc_stride, width, y0_, y1_, x0, x1, edge_.data());
    return {edge_.data(), 1};
  }

  // The output of pixels [x, x + count), from column `first` on. A shuffled pixel begins at the first pixel of its block.
  RowsOut place(int64_t x, int64_t count, int64_t first) const {
    RowsOut some = whole_;
    const int64_t at = y_ * row_elements_ + x * some.stride + (groups_.empty() ? first : groups_[first / kGroup]);
    some.rows = (int)count;
    if (some.residual) some.residual += at;
    if (some.values) some.values += at;
    if (some.codes) some.codes += at;
    return some;
  }

  // The target of each group of columns of a pixel in the block of pixels that a pixel shuffle makes.
  void place_columns() {
    const int64_t width = epilogue_.columns / (c_.shuffle * c_.shuffle), line = c_.out_width * c_.shuffle * width;
    for (int64_t column = 0; column < epilogue_.columns; column += kGroup) {
      const int64_t place = column / width;
      groups_.push_back(place / c_.shuffle * line + place % c_.shuffle * width + column % width);
    }
    whole_.stride = c_.shuffle * width;
  }

  // The sums of the codes that each pixel of the output row reads.
  void sum_row() {
    float* sums = row_sums_;
    std::fill(sums, sums + c_.out_width, 0.0f);
    const int64_t step = c_.stride_x, width = c_.out_width;
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx) {
        const int32_t* from = strip_.sums(y_ * c_.stride_y + ky * c_.dilation_y) + kx * c_.dilation_x;
        if (step == 1) {  // the loop that the compiler can turn into vectors
          for (int64_t x = 0; x < width; ++x) sums[x] += (float)(factor_ * from[x]);
        } else {
          for (int64_t x = 0; x < width; ++x) sums[x] += (float)(factor_ * from[x * step]);
        }
      }
    }
  }

  const ConvShape c_;
  const Strip& strip_;
  const int factor_;
  const Epilogue& epilogue_;
  const Finish finish_, finish_each_;
  const float *bias_, *taps_;
  RowsOut whole_;
  const int64_t row_elements_;  // of the output, before a shuffle
  std::vector<ptrdiff_t> groups_;
  Buffer<float> inner_, edge_, pixel_bias_, sums_;  // inner_ and sums_ for each row of a strip
  std::vector<int64_t> made_;          // the row that each of them was last computed for
  float *row_bias_ = nullptr, *row_sums_ = nullptr;
  int64_t full_begin_, full_end_;  // pixels whose taps all lie inside the image from left to right
  int64_t y_ = 0;
  int y0_ = 0, y1_ = 0;
};

// Any kernel and stride, pixel by pixel.
class DirectConvolution {
 public:
  DirectConvolution(const ConvShape& shape, const Panels& panels)
      : c_(shape), panels_(panels), columns_(padded_columns(panels)), acc_(columns_ * kTileRows) {}

  // Output rows [begin, end), whose input the strip holds.
  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    Rows line{nullptr, c_.stride_x * c_.channel_bytes, c_.kernel_height, c_.row_bytes(),
              (int)(c_.kernel_width * c_.channel_bytes / 4)};
    for (int64_t y = begin; y < end; ++y) {
      finish.row(y);
      line.data = strip.row(y * c_.stride_y);
      for (int64_t x = 0; x < c_.out_width; x += kTileRows) {
        const int count = (int)std::min<int64_t>(kTileRows, c_.out_width - x);
        accumulate(line, x, count, panels_, acc_.data(), columns_);
        finish.run(x, count, acc_.data());
      }
    }
  }

 private:
  const ConvShape c_;
  const Panels panels_;
  const int64_t columns_;
  Buffer<int32_t> acc_;
};

// The convolution for few output columns, which would leave most lanes of a block empty. The columns of all taps stand side
// by side in the panels, [taps * columns, channels]. Each pixel of the copy is multiplied once, and an output pixel adds up
// the products of its taps. The stride is 1.
class NarrowConvolution {
 public:
  NarrowConvolution(const ConvShape& shape, const Panels& panels, int columns)
      : c_(shape), panels_(panels), columns_(columns), products_((int64_t)panels.blocks * kLanes),
        lines_(c_.kernel_height * c_.copy_width * products_ + 4), acc_(c_.out_width * kGroup),
        taps_(c_.kernel_height * c_.kernel_width) {}

  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    for (int64_t y = begin; y < begin + c_.kernel_height - 1; ++y) multiply(strip, y);
    for (int64_t y = begin; y < end; ++y) {
      multiply(strip, y + c_.kernel_height - 1);
      gather(y);
      finish.row(y);
      finish.run(0, c_.out_width, acc_.data());
    }
  }

 private:
  typedef int32_t Four __attribute__((vector_size(16)));

  // The products of a row of the copy; they overwrite the row that is no longer needed.
  int32_t* line(int64_t y) { return lines_.data() + y % c_.kernel_height * c_.copy_width * products_; }

  void multiply(const Strip& strip, int64_t y) {
    const Rows pixels{strip.row(y), c_.channel_bytes, 1, 0, panels_.words};
    for (int64_t x = 0; x < c_.copy_width; x += kTileRows) {
      const int count = (int)std::min<int64_t>(kTileRows, c_.copy_width - x);
      accumulate(pixels, x, count, panels_, line(y) + x * products_, products_);
    }
  }

  void gather(int64_t y) {
    int tap = 0;
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx, ++tap) taps_[tap] = line(y + ky) + kx * products_ + tap * columns_;
    }
    for (int column = 0; column < columns_; column += 4) {  // values past the columns are read and not used
      for (int64_t x = 0; x < c_.out_width; ++x) {
        Four total = {};
        for (const int32_t* at : taps_) {
          Four part;
          std::memcpy(&part, at + x * products_ + column, sizeof part);
          total = total + part;
        }
        std::memcpy(acc_.data() + x * kGroup + column, &total, sizeof total);
      }
    }
  }

  const ConvShape c_;
  const Panels panels_;
  const int columns_;
  const int64_t products_;  // a pixel
  Buffer<int32_t> lines_, acc_;
  std::vector<const int32_t*> taps_;  // the columns of each tap for the first pixel of a row
};

}  // namespace fxptq

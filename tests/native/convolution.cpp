// Convolutions against plain loops over pixels and taps: conv.h, winograd.h and winograd4.h.
#include <array>

#include "finish.h"

#include "conv.h"
#include "panels.h"
#include "winograd.h"
#include "winograd4.h"

namespace native {
namespace {

enum class Kernel { kDirect, kNarrow, kWinograd, kWinograd4 };

struct ConvCase {
  Kernel kernel;
  int channels, height, width, columns, kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x, shuffle;
  int a_bits, w_bits;
  Fill fill;
  bool channels_last, taps;
  int strip_rows;  // whole patches

  int out_height() const { return (height + 2 * pad_y - kernel_height) / stride_y + 1; }
  int out_width() const { return (width + 2 * pad_x - kernel_width) / stride_x + 1; }
  int taps_count() const { return kernel_height * kernel_width; }

  std::string name() const {
    static const char* const names[] = {"conv2d", "narrow_conv2d", "conv3x3 by F(2x2)", "conv3x3 by F(4x4)"};
    std::string text = names[(int)kernel];
    for (const int n : {channels, height, width}) text += " " + std::to_string(n);
    text += " to " + std::to_string(columns) + ", kernel";
    for (const int n : {kernel_height, kernel_width}) text += " " + std::to_string(n);
    text += ", stride";
    for (const int n : {stride_y, stride_x}) text += " " + std::to_string(n);
    text += ", padding";
    for (const int n : {pad_y, pad_x}) text += " " + std::to_string(n);
    if (shuffle > 1) text += ", shuffle " + std::to_string(shuffle);
    return text + ", A" + std::to_string(a_bits) + " W" + std::to_string(w_bits) + " " + name_of(fill) + (taps ? " taps" : "");
  }
};

// The codes of an image [channels][height][width], and the weights [columns][channels][kernel height][kernel width].
struct Operands {
  std::vector<uint8_t> image;
  std::vector<int8_t> weight;
  fxptq::Image view;
};

// Sums of an output pixel over the taps inside the image.
struct Pixel {
  std::vector<int64_t> sums;  // [columns]
  int64_t codes = 0;
  std::vector<double> added;  // by the taps, [columns]
};

class Reference {
 public:
  Reference(const ConvCase& c, const Operands& o, const std::vector<float>& taps, int64_t padded)
      : c_(c), o_(o), taps_(taps), padded_(padded) {}

  Pixel at(int y, int x) const {
    Pixel p{std::vector<int64_t>(c_.columns), 0, std::vector<double>(c_.columns)};
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx) {
        const int sy = y * c_.stride_y + ky - c_.pad_y, sx = x * c_.stride_x + kx - c_.pad_x, tap = ky * c_.kernel_width + kx;
        if (sy < 0 || sy >= c_.height || sx < 0 || sx >= c_.width) continue;
        for (int i = 0; i < c_.channels; ++i) {
          const int64_t code = o_.view.data[i * o_.view.channel + sy * o_.view.row + sx * o_.view.column];
          p.codes += code;
          for (int n = 0; n < c_.columns; ++n) {
            p.sums[n] += code * o_.weight[((size_t)n * c_.channels + i) * c_.taps_count() + tap];
          }
        }
        for (int n = 0; c_.taps && n < c_.columns; ++n) p.added[n] += taps_[tap * padded_ + n];
      }
    }
    return p;
  }

 private:
  const ConvCase& c_;
  const Operands& o_;
  const std::vector<float>& taps_;
  const int64_t padded_;
};

Operands operands(Random& random, const ConvCase& c) {
  Operands o{{}, weights(random, (size_t)c.columns * c.channels * c.taps_count(), c.w_bits, c.fill), {}};
  o.image = codes(random, (size_t)c.channels * c.height * c.width, c.a_bits, c.fill);
  if (c.channels_last) {
    o.view = {o.image.data(), 1, (int64_t)c.width * c.channels, c.channels};
  } else {
    o.view = {o.image.data(), (int64_t)c.height * c.width, c.width, 1};
  }
  return o;
}

// Whether the transformed weights of F(2x2, 3x3) fit a byte: 4 G g G^T, tap by tap.
bool transform_fits(const ConvCase& c, const std::vector<int8_t>& w) {
  static const int g[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};
  for (size_t at = 0; at < w.size(); at += 9) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        int u = 0;
        for (int y = 0; y < 3; ++y) {
          for (int x = 0; x < 3; ++x) u += g[i][y] * g[j][x] * w[at + 3 * y + x];
        }
        if (std::abs(u) > 127) return false;
      }
    }
  }
  return c.a_bits <= 6;
}

template <class Make>
void run_strips(const ConvCase& c, const fxptq::ConvShape& shape, const Operands& o, bool pixel_sums, int factor,
                const fxptq::Epilogue& epilogue, const float* bias, const float* taps, const fxptq::RowsOut& whole, Make make) {
  auto kernel = make();
  fxptq::Strip strip(shape, c.strip_rows, pixel_sums);
  for (int64_t begin = 0; begin < shape.out_height; begin += c.strip_rows) {
    strip.fill(o.view, begin);
    fxptq::PixelFinish finish(shape, strip, factor, epilogue, bias, taps, whole);
    kernel.run(strip, finish, begin, std::min<int64_t>(begin + c.strip_rows, shape.out_height));
  }
}

// The weight of a column in the order that each kernel packs: [kernel positions][channels to fours], the columns of all taps
// side by side, or tap by tap. `sum_column` adds a column of ones where packing has room for it.
std::vector<int8_t> ordered(const ConvCase& c, const std::vector<int8_t>& w, int tap, int depth, bool sum_column) {
  const int first = tap < 0 ? 0 : tap, last = tap < 0 ? c.taps_count() : tap + 1;
  std::vector<int8_t> all((size_t)(c.columns + sum_column) * (last - first) * depth);
  for (int n = 0; n < c.columns + sum_column; ++n) {
    for (int t = first; t < last; ++t) {
      int8_t* to = all.data() + ((size_t)n * (last - first) + t - first) * depth;
      for (int i = 0; i < c.channels; ++i) to[i] = n == c.columns ? 1 : w[((size_t)n * c.channels + i) * c.taps_count() + t];
    }
  }
  return all;
}

void check_case(Checks& checks, Random& random, ConvCase c, fxptq::Activation activation, bool row_scale, bool residual,
                bool coded) {
  Operands o = operands(random, c);
  while (c.kernel == Kernel::kWinograd && !transform_fits(c, o.weight)) {
    if (c.a_bits > 6) c.a_bits = 6;
    c.w_bits = c.w_bits > 4 ? 4 : c.w_bits - 1;
    o = operands(random, c);
  }
  const bool by_two = c.kernel == Kernel::kWinograd, by_four = c.kernel == Kernel::kWinograd4;
  const int channels_to_fours = (c.channels + 3) / 4 * 4;
  const int factor = by_two ? fxptq::Winograd::kFactor : by_four ? fxptq::Winograd4::kFactor : 1;
  const bool sum_column = row_scale && fxptq::has_sum_column(c.columns) && c.kernel != Kernel::kNarrow;
  fxptq::ConvShape shape{c.channels, c.height, c.width, c.out_height(), c.out_width(), c.kernel_height, c.kernel_width,
                         c.stride_y, c.stride_x, c.pad_y, c.pad_x, channels_to_fours, 0, 1, c.shuffle};
  shape.copy_width = (shape.out_width - 1) * c.stride_x + c.kernel_width;
  const double sum = std::sqrt((double)c.channels * c.taps_count()) * (1 << c.a_bits) * (1 << c.w_bits) / 2;
  FinishCase finish = FinishCase::of(random, c.columns, sum, activation, row_scale, residual, coded);
  const int64_t padded = (int64_t)finish.scales.size(), pixels = shape.out_height * shape.out_width;
  std::vector<float> taps(padded * c.taps_count());
  for (int tap = 0; tap < c.taps_count(); ++tap) {
    for (int n = 0; n < c.columns; ++n) taps[tap * padded + n] = (float)random.real(-0.5, 0.5);
  }
  const std::vector<float> added = reals(random, pixels * c.columns, -3, 3);
  Guarded<float> values(coded ? 0 : pixels * c.columns);
  Guarded<uint8_t> out(coded ? pixels * c.columns : 0);
  FinishCase scaled = finish;  // in units of the kernel's sums
  for (float& x : scaled.scales) x /= (float)factor;
  for (float& x : scaled.row_scales) x /= (float)factor;
  const fxptq::Epilogue epilogue = scaled.epilogue(c.columns);
  const float *bias = finish.biases.data(), *tap_values = c.taps ? taps.data() : nullptr;
  bool nan = false;
  fxptq::RowsOut whole{nullptr, 0, 0, nullptr, nullptr, residual ? added.data() : nullptr, coded ? nullptr : values.data(),
                       coded ? out.data() : nullptr, c.columns, nullptr, &nan};
  const bool pixel_sums = row_scale && !sum_column;
  fxptq::Buffer<int8_t> storage;
  if (c.kernel == Kernel::kDirect) {
    const Packed packed = pack(ordered(c, o.weight, -1, channels_to_fours, sum_column), c.columns + sum_column,
                               c.taps_count() * channels_to_fours);
    const fxptq::Panels panels = fxptq::prepared(packed.panels(), (1 << c.a_bits) - 1, storage);
    whole.acc_stride = fxptq::padded_columns(panels);
    run_strips(c, shape, o, pixel_sums, 1, epilogue, bias, tap_values, whole,
               [&] { return fxptq::DirectConvolution(shape, panels); });
  } else if (c.kernel == Kernel::kNarrow) {
    std::vector<int8_t> side_by_side;
    for (int tap = 0; tap < c.taps_count(); ++tap) {
      const std::vector<int8_t> one = ordered(c, o.weight, tap, c.channels, false);
      side_by_side.insert(side_by_side.end(), one.begin(), one.end());
    }
    const Packed packed = pack(side_by_side, c.taps_count() * c.columns, c.channels);
    const fxptq::Panels panels = fxptq::prepared(packed.panels(), (1 << c.a_bits) - 1, storage);
    whole.acc_stride = fxptq::kGroup;
    run_strips(c, shape, o, row_scale, 1, epilogue, bias, tap_values, whole,
               [&] { return fxptq::NarrowConvolution(shape, panels, c.columns); });
  } else {
    shape.patch = by_two ? 2 : fxptq::Winograd4::kPatch;
    shape.channel_bytes = by_two ? (c.channels + 63) / 64 * 64 : fxptq::Winograd4::channel_bytes(c.channels);
    shape.copy_width = (shape.out_width + shape.patch - 1) / shape.patch * shape.patch + 2;
    fxptq::Buffer<int8_t> by_tap;
    Packed packed;
    for (int tap = 0; tap < 9; ++tap) {
      packed = pack(ordered(c, o.weight, tap, c.channels, sum_column), c.columns + sum_column, c.channels);
      by_tap.insert(by_tap.end(), packed.bytes.begin(), packed.bytes.end());
    }
    const int64_t panel = (int64_t)packed.bytes.size(), largest = (1 << c.a_bits) - 1;
    whole.acc_stride = fxptq::padded_columns(packed.panels());
    if (by_four) {
      fxptq::Buffer<int8_t> transformed(fxptq::Winograd4::weight_bytes(packed.blocks, packed.words));
      fxptq::Winograd4::transform_weight(by_tap.data(), packed.blocks, packed.words, transformed.data());
      run_strips(c, shape, o, pixel_sums, factor, epilogue, bias, tap_values, whole,
                 [&] { return fxptq::Winograd4(shape, transformed.data(), packed.blocks, packed.words); });
    } else {
      fxptq::Buffer<int8_t> transformed(fxptq::kPositions * panel);
      fxptq::Buffer<int32_t> start(fxptq::kPositions * whole.acc_stride);
      fxptq::transform_weight(by_tap.data(), packed.blocks, packed.words, c.channels, (int)largest, transformed.data(),
                              start.data(), whole.acc_stride);
      std::array<fxptq::Panels, fxptq::kPositions> panels;
      std::array<fxptq::Buffer<int8_t>, fxptq::kPositions> storages;
      for (int p = 0; p < fxptq::kPositions; ++p) {
        panels[p] = {transformed.data() + p * panel, packed.blocks, packed.words, start.data() + p * whole.acc_stride};
        if (c.taps) panels[p] = fxptq::prepared(panels[p], 255, storages[p]);  // transformed codes take all of a byte
      }
      run_strips(c, shape, o, pixel_sums, factor, epilogue, bias, tap_values, whole,
                 [&] { return fxptq::Winograd(shape, panels.data(), (uint8_t)largest); });
    }
  }

  const Reference reference(c, o, taps, padded);
  std::vector<Expected> want(pixels * c.columns);
  const int width = c.columns / (c.shuffle * c.shuffle);
  for (int y = 0; y < shape.out_height; ++y) {
    for (int x = 0; x < shape.out_width; ++x) {
      const Pixel pixel = reference.at(y, x);
      for (int n = 0; n < c.columns; ++n) {
        const size_t plain = ((size_t)y * shape.out_width + x) * c.columns + n;
        // Columns lie by the places of the pixel shuffle: [factor][factor][width].
        const int place = n / width, row = y * c.shuffle + place / c.shuffle, column = x * c.shuffle + place % c.shuffle;
        const size_t to = ((size_t)row * shape.out_width * c.shuffle + column) * width + n % width;
        want[to] = finish.expected(n, (double)pixel.sums[n], (double)pixel.codes, pixel.added[n], residual ? added[plain] : 0.0);
      }
    }
  }
  const std::string what = c.name() + finish.name();
  if (coded) {
    checks.rounded(what, out.data(), want);
  } else {
    checks.near(what, values.data(), want);
  }
  checks.intact(what, values);
  checks.intact(what, out);
  checks.that(!nan, what + ": no NaN");
}

// Bits, filling and layout of the next case.
void vary(Random& random, ConvCase& c, int trial) {
  c.a_bits = 2 + trial % 7, c.w_bits = 2 + trial / 7 % 7;
  c.fill = kFills[trial % 9 < 6 ? 0 : trial % 9 - 5];
  c.channels_last = random.coin(), c.taps = random.coin();
  c.strip_rows = 4 * (int)random.between(1, 3);
}

void check_direct(Checks& checks) {
  Random random(20);
  for (int trial = 0; trial < 98; ++trial) {
    ConvCase c{};
    c.kernel_height = (int)random.between(1, 5), c.kernel_width = (int)random.between(1, 5);
    c.stride_y = (int)random.between(1, 3), c.stride_x = (int)random.between(1, 3);
    c.pad_y = (int)random.between(0, 3), c.pad_x = (int)random.between(0, 3);
    c.height = c.kernel_height + (int)random.between(0, 9), c.width = c.kernel_width + (int)random.between(0, 17);
    c.channels = (int)random.between(1, 20), c.columns = trial % 4 ? (int)random.between(1, 70) : 16 * (int)random.between(1, 5);
    c.shuffle = 1;
    if (trial % 14 == 0) c.shuffle = 2, c.columns = 256;
    vary(random, c, trial);
    check_case(checks, random, c, (fxptq::Activation)(trial % 3), random.coin(), c.shuffle == 1 && random.coin(), random.coin());
  }
}

void check_narrow(Checks& checks) {
  Random random(21);
  for (int trial = 0; trial < 49; ++trial) {
    ConvCase c{Kernel::kNarrow};
    c.kernel_height = (int)random.between(1, 4), c.kernel_width = (int)random.between(1, 4);
    c.stride_y = c.stride_x = 1;
    c.pad_y = (int)random.between(0, 2), c.pad_x = (int)random.between(0, 2);
    c.height = c.kernel_height + (int)random.between(0, 9), c.width = c.kernel_width + (int)random.between(0, 17);
    c.channels = (int)random.between(1, 70), c.columns = (int)random.between(1, 5);
    c.shuffle = 1;
    vary(random, c, trial);
    check_case(checks, random, c, (fxptq::Activation)(trial % 3), random.coin(), random.coin(), random.coin());
  }
}

void check_winograd(Checks& checks, Kernel kernel) {
  Random random(22 + (int)kernel);
  for (int trial = 0; trial < 98; ++trial) {
    ConvCase c{kernel};
    c.kernel_height = c.kernel_width = 3;
    c.stride_y = c.stride_x = 1;
    c.pad_y = (int)random.between(0, 2), c.pad_x = (int)random.between(0, 2);
    // Some rows have more patches than go through the steps together.
    c.height = 3 + (int)random.between(0, 7), c.width = 3 + (int)random.between(0, trial % 5 ? 9 : 40);
    c.channels = (int)random.between(1, trial % 3 ? 20 : 80), c.columns = (int)random.between(1, 70);
    c.shuffle = 1;
    if (trial % 14 == 0) c.shuffle = 2, c.columns = 256;
    vary(random, c, trial);
    check_case(checks, random, c, (fxptq::Activation)(trial % 3), random.coin(), c.shuffle == 1 && random.coin(), random.coin());
  }
}

}  // namespace

void check_convolution(Checks& checks) {
  check_direct(checks);
  check_narrow(checks);
  check_winograd(checks, Kernel::kWinograd);
  check_winograd(checks, Kernel::kWinograd4);
}

}  // namespace native

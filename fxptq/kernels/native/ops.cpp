// The CPU side of the `fxptq` operators: checks and shapes here, arithmetic in the headers, threads by at::parallel_for.
//
// The operators are declared in Python (ops.py), which also holds their exact pure-torch form; the arguments and their
// meaning are documented there.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <vector>

#include "attention.h"
#include "conv.h"
#include "elementwise.h"
#include "epilogue.h"
#include "gemm.h"
#include "fakequant_ops.h"
#include "winograd.h"

namespace {

using at::Tensor;
using fxptq::kGroup;
using fxptq::kLanes;
using std::optional;

template <class T>
const T* data(const optional<Tensor>& t) {
  return t ? t->const_data_ptr<T>() : nullptr;
}

int words_of(int64_t bytes) { return (int)((bytes + 3) / 4); }

// A packed weight as bytes: the tensor itself, or an unpacked copy of half bytes that lasts as long as the call.
Tensor widened(const Tensor& weight) {
  TORCH_CHECK(weight.dim() >= 3 && weight.is_contiguous(), "weight is not packed");
  if (weight.scalar_type() == at::kChar) return weight;
  TORCH_CHECK(weight.scalar_type() == at::kByte && weight.size(-1) == 32, "weight is not packed");
  std::vector<int64_t> shape = weight.sizes().vec();
  shape.back() = kLanes;
  shape.push_back(4);
  Tensor bytes = at::empty(shape, weight.options().dtype(at::kChar));
  fxptq::widen(weight.const_data_ptr<uint8_t>(), weight.numel() / 32, bytes.mutable_data_ptr<int8_t>());
  return bytes;
}

fxptq::Panels panels_of(const Tensor& bytes) {
  TORCH_CHECK(bytes.dim() == 4, "weight is not packed");
  return {bytes.const_data_ptr<int8_t>(), (int)bytes.size(0), (int)bytes.size(1), nullptr};
}

fxptq::Centre centre_of(int64_t bits) {
  // Up to 7 bits the odd integers 2 code - (2^bits - 1) are centred on zero; 8 bits have room for code - 128 only.
  return bits < 8 ? fxptq::Centre{2, (uint8_t)((1 << bits) - 1)} : fxptq::Centre{1, 128};
}

fxptq::Epilogue epilogue_of(int64_t columns, const Tensor& scale, const Tensor& bias, const optional<Tensor>& row_scale,
                            int64_t activation, double slope, const optional<Tensor>& levels, double out_scale,
                            double out_offset) {
  const int64_t padded = (columns + kGroup - 1) / kGroup * kGroup;
  for (const Tensor* t : {&scale, &bias}) {
    TORCH_CHECK(t->numel() == padded && t->scalar_type() == at::kFloat && t->is_contiguous(), "bad epilogue");
  }
  return {(int)columns,  scale.const_data_ptr<float>(), data<float>(row_scale), (fxptq::Activation)activation,
          (float)slope, data<float>(levels),           (float)out_scale,       (float)out_offset};
}

// A residual in the sizes and the format of the output; a smaller residual is broadcast.
optional<Tensor> added_to(const optional<Tensor>& residual, at::IntArrayRef sizes, at::MemoryFormat format) {
  if (!residual) return residual;
  TORCH_CHECK(at::is_expandable_to(residual->sizes(), sizes), "the residual ", residual->sizes(),
              " cannot be added to an output of ", sizes);
  TORCH_CHECK(residual->scalar_type() == at::kFloat, "a residual is float32, not ", residual->scalar_type());
  return residual->sizes() == sizes ? residual->contiguous(format) : residual->expand(sizes).contiguous(format);
}

// Raises for NaN, because no code stands for it; the caller then runs the network in float, where NaN stays NaN.
void check_numbers(bool nan) { TORCH_CHECK(!nan, "no code can stand for NaN"); }

Tensor quantize(const Tensor& x, double lower, double step, int64_t levels) {
  Tensor codes = at::empty_like(x, x.options().dtype(at::kByte));
  // Both are read in the order of memory; values with gaps or repeats are copied to the layout of torch's results.
  const Tensor dense = x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x);
  const float* from = dense.const_data_ptr<float>();
  uint8_t* to = codes.mutable_data_ptr<uint8_t>();
  std::atomic<bool> nan = false;
  at::parallel_for(0, dense.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    if (fxptq::quantize(from + begin, to + begin, end - begin, (float)lower, (float)step, (float)levels)) nan = true;
  });
  check_numbers(nan);
  return codes;
}

Tensor layer_norm_codes(const Tensor& x, const Tensor& scale, const Tensor& offset, double eps, int64_t levels) {
  const Tensor rows = x.contiguous();
  const int64_t width = rows.size(-1);
  Tensor codes = at::empty(rows.sizes(), rows.options().dtype(at::kByte));
  const float *from = rows.const_data_ptr<float>(), *s = scale.const_data_ptr<float>(), *o = offset.const_data_ptr<float>();
  uint8_t* to = codes.mutable_data_ptr<uint8_t>();
  const int64_t count = width ? rows.numel() / width : 0;
  std::atomic<bool> nan = false;
  at::parallel_for(0, (count + kLanes - 1) / kLanes, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * kLanes; r < std::min(end * kLanes, count); r += kLanes) {
      const int here = (int)std::min<int64_t>(kLanes, count - r);
      if (fxptq::layer_norm_codes(from + r * width, to + r * width, here, (int)width, s, o, (float)eps, (float)levels)) {
        nan = true;
      }
    }
  });
  check_numbers(nan);
  return codes;
}

Tensor linear(const Tensor& codes, const Tensor& weight, int64_t columns, const Tensor& bias, const Tensor& scale,
              const optional<Tensor>& row_scale, int64_t activation, double slope, const optional<Tensor>& residual,
              const optional<Tensor>& levels, double out_scale, double out_offset) {
  const Tensor input = codes.contiguous();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = columns;
  const optional<Tensor> added = added_to(residual, shape, at::MemoryFormat::Contiguous);
  const Tensor bytes = widened(weight);
  const fxptq::Panels panels = panels_of(bytes);
  const fxptq::Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, levels, out_scale, out_offset);
  const int64_t depth = input.size(-1), rows = depth ? input.numel() / depth : 0;
  TORCH_CHECK(panels.words == words_of(depth), "weight does not fit the input");
  Tensor out = at::empty(shape, input.options().dtype(levels ? at::kByte : at::kFloat));
  float* values = levels ? nullptr : out.mutable_data_ptr<float>();
  uint8_t* next = levels ? out.mutable_data_ptr<uint8_t>() : nullptr;
  const float* add = data<float>(added);
  const uint8_t* from = input.const_data_ptr<uint8_t>();

  const fxptq::Finish finish = fxptq::finish_of(epilogue, add != nullptr);
  const ptrdiff_t acc_stride = fxptq::padded_columns(panels);
  std::atomic<bool> nan = false;
  at::parallel_for(0, (rows + fxptq::kTileRows - 1) / fxptq::kTileRows, 16, [&](int64_t begin, int64_t end) {
    fxptq::Buffer<int32_t> acc(acc_stride * fxptq::kTileRows);
    std::vector<uint8_t> padded(depth % 4 ? (size_t)panels.words * 4 * fxptq::kTileRows : 0);
    float sums[fxptq::kTileRows];
    bool here = false;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * fxptq::kTileRows;
      const int count = (int)std::min<int64_t>(fxptq::kTileRows, rows - first);
      fxptq::Rows a{from + first * depth, depth, 1, 0, panels.words};
      if (!padded.empty()) {  // a group of four must not reach into the next row, nor past the tensor
        a.data = padded.data();
        a.stride = (ptrdiff_t)panels.words * 4;
        for (int r = 0; r < count; ++r) std::memcpy(padded.data() + r * a.stride, from + (first + r) * depth, depth);
      }
      fxptq::accumulate(a, 0, count, panels, acc.data(), acc_stride);
      for (int r = 0; epilogue.row_scale && r < count; ++r) {
        sums[r] = fxptq::has_sum_column(columns) ? (float)acc[r * acc_stride + columns] : (float)fxptq::row_sum(a, r);
      }
      const int64_t at = first * columns;
      finish(epilogue, {acc.data(), acc_stride, count, bias.const_data_ptr<float>(), sums, add ? add + at : nullptr,
                        values ? values + at : nullptr, next ? next + at : nullptr, columns, nullptr, &here});
    }
    if (here) nan = true;
  });
  check_numbers(nan);
  return out;
}

// The parameters with which a convolution writes its sums.
struct Output {
  int64_t columns;
  ptrdiff_t acc_columns;
  int factor;  // of the sums
  bool pixel_sums;
  const fxptq::Epilogue& epilogue;
  const Tensor& bias;
  const optional<Tensor>&taps, &residual;
};

constexpr int64_t kStripRows = 16;  // few enough for a cache, and enough to make the rows that strips share cheap

// Runs a kernel over strips of output rows; every thread makes a kernel of its own with `make`.
template <class Make>
Tensor convolved(const fxptq::ConvShape& c, const Tensor& codes, const Output& output, Make make) {
  const auto format = at::MemoryFormat::ChannelsLast;
  const bool coded = output.epilogue.levels != nullptr;
  Tensor out = at::empty({codes.size(0), output.columns / (c.shuffle * c.shuffle), c.out_height * c.shuffle, c.out_width * c.shuffle},
                         codes.options().dtype(coded ? at::kByte : at::kFloat), format);
  // At least two strips a thread, of whole patches.
  // A residual has the layout of the sums, before any shuffle; residual and shuffle never occur together.
  const int64_t sums[] = {codes.size(0), output.columns, c.out_height, c.out_width};
  const optional<Tensor> added = added_to(output.residual, sums, format);
  TORCH_CHECK(!added || c.shuffle == 1, "a residual behind a pixel shuffle");
  const int64_t share = codes.size(0) * c.out_height / (2 * at::get_num_threads());
  const int64_t rows = std::clamp<int64_t>(share, 2, kStripRows) / 2 * 2, strips = (c.out_height + rows - 1) / rows;
  std::atomic<bool> nan = false;
  at::parallel_for(0, codes.size(0) * strips, 1, [&](int64_t first, int64_t last) {
    auto kernel = make();
    bool here = false;
    fxptq::Strip strip(c, rows, output.pixel_sums);
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / strips, begin = i % strips * rows, at = image * c.out_height * c.out_width * output.columns;
      strip.fill({codes.const_data_ptr<uint8_t>() + image * codes.stride(0), codes.stride(1), codes.stride(2), codes.stride(3)},
                 begin);
      fxptq::PixelFinish finish(c, strip, output.factor, output.epilogue, output.bias.const_data_ptr<float>(),
                                data<float>(output.taps),
                                {nullptr, output.acc_columns, 0, nullptr, nullptr,
                                 added ? added->const_data_ptr<float>() + at : nullptr,
                                 coded ? nullptr : out.mutable_data_ptr<float>() + at,
                                 coded ? out.mutable_data_ptr<uint8_t>() + at : nullptr, output.columns, nullptr, &here});
      kernel.run(strip, finish, begin, std::min(begin + rows, c.out_height));
    }
    if (here) nan = true;
  });
  check_numbers(nan);
  return out;
}

fxptq::ConvShape shape_of(const Tensor& codes, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                          int64_t shuffle) {
  fxptq::ConvShape c{codes.size(1), codes.size(2), codes.size(3), 0, 0, (int)kernel[0], (int)kernel[1], (int)stride[0],
                     (int)stride[1], (int)padding[0], (int)padding[1], (codes.size(1) + 3) / 4 * 4, 0, 1, (int)shuffle};
  c.out_height = (c.height + 2 * padding[0] - kernel[0]) / stride[0] + 1;
  c.out_width = (c.width + 2 * padding[1] - kernel[1]) / stride[1] + 1;
  c.copy_width = (c.out_width - 1) * stride[1] + kernel[1];
  return c;
}

// Whether each position of a pixel shuffle has whole groups of columns, so that a kernel can write the shuffled output.
bool shuffles_in_place(int64_t columns, int64_t shuffle) { return columns % (shuffle * shuffle * kGroup) == 0; }

Tensor spread(const Tensor& x, int64_t factor);

Tensor conv2d(const Tensor& codes, const Tensor& weight, int64_t columns, at::IntArrayRef kernel, at::IntArrayRef stride,
              at::IntArrayRef padding, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps, const Tensor& scale,
              const optional<Tensor>& row_scale, int64_t activation, double slope, const optional<Tensor>& residual,
              const optional<Tensor>& levels, double out_scale, double out_offset) {
  const bool direct = shuffles_in_place(columns, shuffle);
  const Tensor bytes = widened(weight);
  const fxptq::Panels panels = panels_of(bytes);
  const fxptq::Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, levels, out_scale, out_offset);
  const fxptq::ConvShape c = shape_of(codes, kernel, stride, padding, direct ? shuffle : 1);
  TORCH_CHECK(panels.words * 4 == kernel[0] * kernel[1] * c.channel_bytes, "weight does not fit the input");
  const Output output{columns, fxptq::padded_columns(panels), 1, row_scale && !fxptq::has_sum_column(columns),
                      epilogue, bias, taps, residual};
  const Tensor out = convolved(c, codes, output, [&] { return fxptq::DirectConvolution(c, panels); });
  return direct ? out : spread(out, shuffle);
}

Tensor narrow_conv2d(const Tensor& codes, const Tensor& weight, int64_t columns, at::IntArrayRef kernel,
                     at::IntArrayRef padding, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps,
                     const Tensor& scale, const optional<Tensor>& row_scale, int64_t activation, double slope,
                     const optional<Tensor>& residual, const optional<Tensor>& levels, double out_scale, double out_offset) {
  const Tensor bytes = widened(weight);
  const fxptq::Panels panels = panels_of(bytes);
  const fxptq::Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, levels, out_scale, out_offset);
  const int64_t one[] = {1, 1};
  const fxptq::ConvShape c = shape_of(codes, kernel, one, padding, 1);
  TORCH_CHECK(panels.words * 4 == c.channel_bytes && panels.blocks * kLanes >= kernel[0] * kernel[1] * columns,
              "weight does not fit the input");
  const Output output{columns, kGroup, 1, row_scale.has_value(), epilogue, bias, taps, residual};
  const Tensor out = convolved(c, codes, output, [&] { return fxptq::NarrowConvolution(c, panels, (int)columns); });
  return spread(out, shuffle);
}

Tensor conv3x3(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest,
               at::IntArrayRef padding, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps, const Tensor& scale,
               const optional<Tensor>& row_scale, int64_t activation, double slope, const optional<Tensor>& residual,
               const optional<Tensor>& levels, double out_scale, double out_offset) {
  const Tensor bytes = widened(weight);
  TORCH_CHECK(bytes.dim() == 5 && bytes.size(0) == 9 && largest <= 63, "weight is not packed by taps");
  const int blocks = (int)bytes.size(1), words = (int)bytes.size(2);
  TORCH_CHECK(words == words_of(codes.size(1)), "weight does not fit the input");
  const int64_t panel = (int64_t)blocks * words * 64, padded = (blocks * kLanes + kGroup - 1) / kGroup * kGroup;
  fxptq::Buffer<int8_t> transformed(fxptq::kPositions * panel);
  fxptq::Buffer<int32_t> start(fxptq::kPositions * padded);
  fxptq::transform_weight(bytes.const_data_ptr<int8_t>(), blocks, words, codes.size(1), (int)largest, transformed.data(),
                          start.data(), padded);
  std::array<fxptq::Panels, fxptq::kPositions> panels;
  for (int64_t p = 0; p < fxptq::kPositions; ++p) {
    panels[p] = {transformed.data() + p * panel, blocks, words, start.data() + p * padded};
  }
  const bool direct = shuffles_in_place(columns, shuffle);
  const fxptq::Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, levels, out_scale, out_offset);
  const int64_t one[] = {1, 1}, three[] = {3, 3};
  fxptq::ConvShape c = shape_of(codes, three, one, padding, direct ? shuffle : 1);
  c.channel_bytes = (c.channels + 63) / 64 * 64;
  c.patch = 2;
  c.copy_width = c.out_width + c.out_width % 2 + 2;  // whole patches
  const Output output{columns, fxptq::padded_columns(panels[0]), 4, row_scale && !fxptq::has_sum_column(columns),
                      epilogue, bias, taps, residual};
  const Tensor out = convolved(c, codes, output, [&] { return fxptq::Winograd(c, panels.data(), (uint8_t)largest); });
  return direct ? out : spread(out, shuffle);
}

// The pixel shuffle of channels ordered by position (`places_first`): whole runs of channels move.
Tensor spread(const Tensor& x, int64_t factor) {
  if (factor == 1) return x;
  const Tensor from = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t batch = x.size(0), height = x.size(2), width = x.size(3), channels = x.size(1) / (factor * factor);
  Tensor out = at::empty({batch, channels, height * factor, width * factor}, x.options(), at::MemoryFormat::ChannelsLast);
  // A run: the channels of one pixel for one row of its block.
  const int64_t run = factor * channels * x.element_size();
  const auto* source = static_cast<const uint8_t*>(from.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  at::parallel_for(0, batch * height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t place = 0; place < factor; ++place) {
        const uint8_t* at = source + (line * width * factor + place) * run;
        uint8_t* next = to + (line * factor + place) * width * run;
        for (int64_t i = 0; i < width; ++i) std::memcpy(next + i * run, at + i * factor * run, run);
      }
    }
  });
  return out;
}

// The right factor of one batch as packed columns of centred codes, and the sum of each column. Codes are `k` and `n`
// bytes apart along the two axes.
void pack_columns(const uint8_t* from, int64_t depth, int64_t columns, int64_t k, int64_t n, fxptq::Centre centre,
                  int8_t* to, int32_t* sums) {
  const int64_t words = words_of(depth);
  std::memset(to, 0, (columns + kLanes - 1) / kLanes * words * 64);
  for (int64_t block = 0; block * kLanes < columns; ++block, to += words * 64) {
    const int64_t count = std::min<int64_t>(kLanes, columns - block * kLanes);
    for (int64_t i = 0; i < depth; ++i) {
      int8_t* line = to + i / 4 * 64 + i % 4;
      const uint8_t* at = from + i * k + block * kLanes * n;
      for (int64_t j = 0; j < count; ++j) line[4 * j] = (int8_t)(uint8_t)(at[j * n] * centre.multiple - centre.shift);
    }
    for (int64_t j = 0; j < kLanes; ++j) sums[block * kLanes + j] = 0;
    for (int64_t w = 0; w < words; ++w) {
      const fxptq::Ints total = fxptq::dot4(fxptq::load<fxptq::Ints>(sums + block * kLanes), fxptq::Words{} + 0x01010101u,
                                            fxptq::load<fxptq::Words>(to + w * 64));
      fxptq::store(sums + block * kLanes, total);
    }
  }
}

// A sum of more products of two 8-bit codes than this could exceed 32 bits; a multiple of four, the depth of one step.
constexpr int64_t kDepth = 1 << 16;

Tensor matmul_of_batches(const Tensor& lhs, const Tensor& rhs, int64_t bits, at::ArrayRef<double> terms) {
  const int64_t rows = lhs.size(-2), depth = lhs.size(-1), columns = rhs.size(-1);
  const double scale = terms[0], row_scale = terms[1], column_scale = terms[2];
  const double constant = terms[3] * (double)depth + terms[4];
  std::vector<int64_t> shape = lhs.sizes().vec();
  shape.back() = columns;
  Tensor out = at::empty(shape, lhs.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  // Rows of groups of four: depth padded with zeros, which meet the zeros of the packed columns.
  const Tensor a = depth % 4 ? at::constant_pad_nd(lhs, {0, 4 - depth % 4}) : lhs.contiguous();
  const Tensor b = rhs.flatten(0, -3);
  const int words = words_of(depth), blocks = (int)((columns + kLanes - 1) / kLanes);
  const int64_t padded = (columns + kGroup - 1) / kGroup * kGroup, batches = out.numel() / (rows * columns);
  const uint8_t *from_a = a.const_data_ptr<uint8_t>(), *from_b = b.const_data_ptr<uint8_t>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, batches, 1, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> packed((size_t)blocks * words * 64);
    std::vector<int32_t> column_sums(padded), acc(padded * fxptq::kTileRows);
    std::vector<float> scales(padded, (float)scale), row_scales(padded, (float)row_scale), bias(padded);
    float sums[fxptq::kTileRows] = {};
    const fxptq::Epilogue epilogue{(int)columns, scales.data(), row_scale != 0.0 ? row_scales.data() : nullptr,
                                   fxptq::Activation::kNone, 0.0f, nullptr, 1.0f, 0.0f};
    const fxptq::Finish finish = fxptq::finish_of(epilogue, false);
    const fxptq::Panels panels{packed.data(), blocks, words, nullptr};
    for (int64_t batch = begin; batch < end; ++batch) {
      pack_columns(from_b + batch * b.stride(0), depth, columns, b.stride(1), b.stride(2), centre_of(bits), packed.data(),
                   column_sums.data());
      for (int64_t j = 0; j < padded; ++j) bias[j] = (float)(column_sums[j] * column_scale + constant);
      const fxptq::Rows line{from_a + batch * rows * words * 4, (ptrdiff_t)words * 4, 1, 0, words};
      for (int64_t first = 0; first < rows; first += fxptq::kTileRows) {
        const int count = (int)std::min<int64_t>(fxptq::kTileRows, rows - first);
        fxptq::accumulate(line, first, count, panels, acc.data(), padded);
        for (int r = 0; row_scale != 0.0 && r < count; ++r) sums[r] = (float)fxptq::row_sum(line, first + r);
        finish(epilogue, {acc.data(), (ptrdiff_t)padded, count, bias.data(), sums, nullptr,
                          to + (batch * rows + first) * columns, nullptr, columns});
      }
    }
  });
  return out;
}

Tensor matmul(const Tensor& left, const Tensor& right, int64_t bits, at::ArrayRef<double> terms) {
  TORCH_CHECK(left.dim() >= 2 && right.dim() >= 2 && left.size(-1) == right.size(-2), "the factors ", left.sizes(), " and ",
              right.sizes(), " do not fit");
  // Batches of one factor are broadcast to the batches of the other, as in torch.matmul.
  std::vector<int64_t> batch = at::infer_size(left.sizes().slice(0, left.dim() - 2), right.sizes().slice(0, right.dim() - 2));
  if (batch.empty()) batch.push_back(1);
  const auto repeated = [&](const Tensor& t) {
    std::vector<int64_t> sizes = batch;
    sizes.insert(sizes.end(), {t.size(-2), t.size(-1)});
    return t.sizes() == at::IntArrayRef(sizes) ? t : t.expand(sizes).contiguous();
  };
  const Tensor lhs = repeated(left), rhs = repeated(right);
  const int64_t depth = lhs.size(-1);
  Tensor out = matmul_of_batches(lhs.narrow(-1, 0, std::min(depth, kDepth)), rhs.narrow(-2, 0, std::min(depth, kDepth)), bits, terms);
  std::vector<double> more = terms.vec();
  more[4] = 0.0;
  for (int64_t first = kDepth; first < depth; first += kDepth) {
    const int64_t count = std::min(kDepth, depth - first);
    out.add_(matmul_of_batches(lhs.narrow(-1, first, count), rhs.narrow(-2, first, count), bits, more));
  }
  return left.dim() == 2 && right.dim() == 2 ? out.squeeze(0) : out;
}

fxptq::Heads heads_of(const Tensor& t) {
  const uint8_t* from = t.const_data_ptr<uint8_t>();
  int64_t last = 0;
  for (int64_t axis = 0; axis < 4; ++axis) last += (t.size(axis) - 1) * t.stride(axis);
  return {from, from + last + 1, t.stride(0), t.stride(1), t.stride(2), t.size(2), t.size(3)};
}

Tensor dense_rows(const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1 ? t : t.contiguous(); }

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const optional<Tensor>& bias,
                 const optional<Tensor>& mask, int64_t key_bits, int64_t value_bits, at::ArrayRef<double> logit,
                 at::ArrayRef<double> prob, at::ArrayRef<double> out, int64_t levels) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "attention takes [windows, heads, rows, width]");
  const Tensor q = dense_rows(query), k = dense_rows(key), v = dense_rows(value);
  const int64_t windows = q.size(0), heads = q.size(1), rows = q.size(2), width = v.size(3), keys = k.size(2);
  TORCH_CHECK(q.sizes().slice(0, 2) == k.sizes().slice(0, 2) && q.sizes().slice(0, 2) == v.sizes().slice(0, 2) &&
                  q.size(3) == k.size(3) && keys == v.size(2),
              "the factors ", q.sizes(), ", ", k.sizes(), " and ", v.sizes(), " do not fit");
  TORCH_CHECK(keys < kDepth, "attention over ", keys, " keys: its sums do not fit 32 bits");
  const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
  for (const optional<Tensor>* term : {&bias, &mask}) {
    TORCH_CHECK(!*term || ((*term)->dim() == 3 && (*term)->size(1) == keys && (*term)->size(2) == padded &&
                           (*term)->is_contiguous() && (*term)->scalar_type() == at::kFloat),
                "a term of the logits does not fit");
  }
  TORCH_CHECK(!bias || bias->size(0) == 1 || bias->size(0) == heads, "a bias for each of ", heads, " heads, not ", bias->size(0));
  TORCH_CHECK(!mask || (mask->size(0) > 0 && windows % mask->size(0) == 0), "masks for ", windows, " windows, not ", mask->size(0));
  const fxptq::AttentionSettings settings{
      centre_of(key_bits), centre_of(value_bits), (float)logit[0], (float)logit[1], (float)prob[0], (float)prob[1],
      (uint8_t)prob[2],    (float)out[0],         (float)out[2],   (float)out[1],
      (float)(out[3] * (double)k.size(2) + out[4]),          (uint8_t)levels,
      data<float>(bias),   bias && bias->size(0) > 1 ? bias->stride(0) : 0,         data<float>(mask),
      mask ? mask->size(0) : 1};
  Tensor result = at::empty({windows, rows, heads, width}, q.options().dtype(levels ? at::kByte : at::kFloat));
  float* values = levels ? nullptr : result.mutable_data_ptr<float>();
  uint8_t* codes = levels ? result.mutable_data_ptr<uint8_t>() : nullptr;
  const fxptq::Heads from_q = heads_of(q), from_k = heads_of(k), from_v = heads_of(v);
  at::parallel_for(0, windows, 1, [&](int64_t begin, int64_t end) {
    fxptq::Attention one(settings, from_q, from_k, from_v);
    for (int64_t window = begin; window < end; ++window) {
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t at = (window * rows * heads + head) * width;
        if (levels) {
          one.run(window, head, codes + at, heads * width);
        } else {
          one.run(window, head, values + at, heads * width);
        }
      }
    }
  });
  return result.transpose(1, 2);
}

std::string isa() { return fxptq::isa(); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(fxptq_native, m) { m.def("isa() -> str", &isa); }

TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("quantize", &quantize);
  m.impl("layer_norm_codes", &layer_norm_codes);
  m.impl("linear", &linear);
  m.impl("attention", &attention);
  m.impl("conv2d", &conv2d);
  m.impl("narrow_conv2d", &narrow_conv2d);
  m.impl("conv3x3", &conv3x3);
  m.impl("matmul", &matmul);
}

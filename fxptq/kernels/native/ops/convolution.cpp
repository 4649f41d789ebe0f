// Convolutions on codes: directly, for few columns, depthwise, and 3x3 by Winograd.
#include <array>
#include <deque>

#include "../conv.h"
#include "../depthwise.h"
#include "../winograd.h"
#include "../winograd4.h"
#include "common.h"

namespace fxptq {
namespace {

// Columns that read the same channels, with their own part of the arguments.
struct Group {
  int64_t channel, column;  // the first of each
  Epilogue epilogue;
  const float *bias, *taps;  // taps or null
};

// The parameters with which a convolution writes its sums.
struct Output {
  int64_t columns;
  ptrdiff_t acc_columns;
  int factor;  // of the sums
  bool pixel_sums;
  const optional<Tensor>& residual;
  std::vector<Group> groups;
};

constexpr int64_t kStripRows = 16;  // few enough for a cache, and enough to make the rows that strips share cheap

// Runs a kernel over strips of output rows; every thread makes kernels of its own with `make`, from the number of a group.
template <class Make>
Tensor convolved(const ConvShape& c, const Tensor& codes, const Output& output, Make make) {
  const bool coded = output.groups[0].epilogue.levels != nullptr;
  Tensor out = empty_channels_last(codes.size(0), output.columns / (c.shuffle * c.shuffle), c.out_height * c.shuffle,
                                   c.out_width * c.shuffle, output_type(coded));
  // At least two strips a thread, of whole patches.
  // A residual has the layout of the sums, before any shuffle; residual and shuffle never occur together.
  const int64_t sums[] = {codes.size(0), output.columns, c.out_height, c.out_width};
  const optional<Tensor> added = added_to(output.residual, sums, channels_last);
  FXPTQ_CHECK(!added || c.shuffle == 1, "a residual behind a pixel shuffle");
  const uint8_t* from = data<uint8_t>(codes);
  const float* add = data<float>(added);
  float* values = writable<float>(out);
  uint8_t* next = writable<uint8_t>(out);
  const int64_t share = codes.size(0) * c.out_height / (2 * torch::stable::get_num_threads());
  const int64_t unit = std::max(c.patch, 2);
  const int64_t rows = std::clamp<int64_t>(share, unit, kStripRows) / unit * unit, strips = (c.out_height + rows - 1) / rows;
  std::atomic<bool> nan = false;
  parallel_for(codes.size(0) * strips, 1, [&](int64_t first, int64_t last) {
    bool here = false;
    Strip strip(c, rows, output.pixel_sums);
    for (size_t g = 0; g < output.groups.size(); ++g) {
      const Group& group = output.groups[g];
      auto kernel = make(g);
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / strips, begin = i % strips * rows;
        const int64_t at = image * c.out_height * c.out_width * output.columns + group.column;
        strip.fill({from + image * codes.stride(0) + group.channel * codes.stride(1), codes.stride(1), codes.stride(2),
                    codes.stride(3)},
                   begin);
        PixelFinish finish(c, strip, output.factor, group.epilogue, group.bias, group.taps,
                           {nullptr, output.acc_columns, 0, nullptr, nullptr, add ? add + at : nullptr,
                            values ? values + at : nullptr, next ? next + at : nullptr, output.columns, nullptr, &here});
        kernel.run(strip, finish, begin, std::min(begin + rows, c.out_height));
      }
    }
    if (here) nan = true;
  });
  check_numbers(nan);
  return out;
}

int64_t padded_to_groups(int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }

// The groups of a convolution, each with its part of the epilogue padded as kernels read it.
class Groups {
 public:
  Groups(int64_t count, int64_t channels, const Epilogue& whole, const Tensor& bias, const optional<Tensor>& taps, int64_t tap_count)
      : columns_(whole.columns / count), padded_(padded_to_groups(columns_)) {
    const int64_t all = padded_to_groups(whole.columns);
    for (int64_t g = 0; g < count; ++g) {
      Group group{g * (channels / count), g * columns_, whole, data<float>(bias), data<float>(taps)};
      if (count > 1) {
        group.epilogue.columns = (int)columns_;
        group.epilogue.scale = part(whole.scale, g, 1, all);
        group.epilogue.row_scale = part(whole.row_scale, g, 1, all);
        group.epilogue.levels = part(whole.levels, g, 1, all);
        group.epilogue.out_scale = part(whole.out_scale, g, 1, all);
        group.epilogue.out_offset = part(whole.out_offset, g, 1, all);
        group.bias = part(group.bias, g, 1, all);
        group.taps = part(group.taps, g, tap_count, all);
      }
      groups_.push_back(group);
    }
  }

  const std::vector<Group>& groups() const { return groups_; }

 private:
  // The columns of group g of rows [count][padded columns of all groups].
  const float* part(const float* rows, int64_t g, int64_t count, int64_t all) {
    if (!rows) return nullptr;
    std::vector<float>& copy = copies_.emplace_back(count * padded_);
    for (int64_t i = 0; i < count; ++i) std::copy_n(rows + i * all + g * columns_, columns_, copy.data() + i * padded_);
    return copy.data();
  }

  const int64_t columns_, padded_;
  std::vector<Group> groups_;
  std::deque<std::vector<float>> copies_;
};

ConvShape shape_of(const Tensor& codes, int64_t channels, IntHeaderOnlyArrayRef kernel, IntHeaderOnlyArrayRef stride,
                   IntHeaderOnlyArrayRef padding, int64_t shuffle, int64_t dilation_y = 1, int64_t dilation_x = 1) {
  ConvShape c{channels, codes.size(2), codes.size(3), 0, 0, (int)kernel[0], (int)kernel[1], (int)stride[0], (int)stride[1],
              (int)padding[0], (int)padding[1], (channels + 3) / 4 * 4, 0, 1, (int)shuffle, (int)dilation_y, (int)dilation_x};
  const int64_t height = dilation_y * (kernel[0] - 1) + 1, width = dilation_x * (kernel[1] - 1) + 1;
  c.out_height = (c.height + 2 * padding[0] - height) / stride[0] + 1;
  c.out_width = (c.width + 2 * padding[1] - width) / stride[1] + 1;
  c.copy_width = (c.out_width - 1) * stride[1] + width;
  return c;
}

// Whether each position of a pixel shuffle has whole groups of columns, so that a kernel can write the shuffled output.
bool shuffles_in_place(int64_t columns, int64_t shuffle) { return columns % (shuffle * shuffle * kGroup) == 0; }

Tensor spread(const Tensor& x, int64_t factor);

Tensor conv2d(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest, IntHeaderOnlyArrayRef kernel, IntHeaderOnlyArrayRef stride,
              IntHeaderOnlyArrayRef padding, int64_t groups, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps,
              const Tensor& scale, const optional<Tensor>& row_scale, int64_t activation, double slope,
              const optional<Tensor>& residual, const optional<Tensor>& levels, const optional<Tensor>& out_scale,
              const optional<Tensor>& out_offset) {
  FXPTQ_CHECK(groups >= 1 && columns % groups == 0 && codes.size(1) % groups == 0, "groups do not divide the channels");
  const bool direct = groups == 1 && shuffles_in_place(columns, shuffle);
  const Tensor bytes = widened(weight);
  Panels panels = panels_of(bytes);
  FXPTQ_CHECK(panels.blocks % groups == 0, "weight is not packed by groups");
  panels.blocks /= (int)groups;
  const Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, residual, levels, out_scale, out_offset);
  const ConvShape c = shape_of(codes, codes.size(1) / groups, kernel, stride, padding, direct ? shuffle : 1);
  FXPTQ_CHECK(panels.words * 4 == kernel[0] * kernel[1] * c.channel_bytes, "weight does not fit the input");
  const Groups parts(groups, codes.size(1), epilogue, bias, taps, kernel[0] * kernel[1]);
  const Output output{columns, padded_columns(panels), 1, row_scale && (groups > 1 || !has_sum_column(columns)), residual,
                      parts.groups()};
  std::vector<Panels> own(groups, panels);
  std::vector<Buffer<int8_t>> pairs(groups);
  for (int64_t g = 0; g < groups; ++g) {
    own[g].data += g * panels.blocks * panels.words * 64;
    own[g] = prepared(own[g], (int)largest, pairs[g]);
  }
  const Tensor out = convolved(c, codes, output, [&](size_t group) { return DirectConvolution(c, own[group]); });
  return direct ? out : spread(out, shuffle);
}

Tensor depthwise_conv2d(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest, IntHeaderOnlyArrayRef kernel,
                        IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding, IntHeaderOnlyArrayRef dilation,
                        int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps, const Tensor& scale,
                        const optional<Tensor>& row_scale, int64_t activation, double slope, const optional<Tensor>& residual,
                        const optional<Tensor>& levels, const optional<Tensor>& out_scale,
                        const optional<Tensor>& out_offset) {
  const bool direct = shuffles_in_place(columns, shuffle);
  const Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, residual, levels, out_scale, out_offset);
  ConvShape c = shape_of(codes, columns, kernel, stride, padding, direct ? shuffle : 1, dilation[0], dilation[1]);
  c.channel_bytes = DepthwiseConvolution::channel_bytes(columns);
  FXPTQ_CHECK(codes.size(1) == columns && weight.is_contiguous() && holds<int8_t>(weight) &&
                  weight.numel() == kernel[0] * kernel[1] * c.channel_bytes,
              "weight does not fit the input");
  const auto* packed = data<int8_t>(weight);
  const bool small = DepthwiseConvolution::fits_16_bits(packed, (int)(kernel[0] * kernel[1]), c.channel_bytes, (int)largest);
  const Output output{columns, c.channel_bytes, 1, false, residual, {{0, 0, epilogue, data<float>(bias), data<float>(taps)}}};
  const Tensor out = convolved(c, codes, output, [&](size_t) { return DepthwiseConvolution(c, packed, small, row_scale.has_value()); });
  return direct ? out : spread(out, shuffle);
}

Tensor narrow_conv2d(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest, IntHeaderOnlyArrayRef kernel,
                     IntHeaderOnlyArrayRef padding, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps,
                     const Tensor& scale, const optional<Tensor>& row_scale, int64_t activation, double slope,
                     const optional<Tensor>& residual, const optional<Tensor>& levels, const optional<Tensor>& out_scale,
                     const optional<Tensor>& out_offset) {
  const Tensor bytes = widened(weight);
  Buffer<int8_t> pairs;
  const Panels panels = prepared(panels_of(bytes), (int)largest, pairs);
  const Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, residual, levels, out_scale, out_offset);
  const int64_t one[] = {1, 1};
  const ConvShape c = shape_of(codes, codes.size(1), kernel, one, padding, 1);
  FXPTQ_CHECK(panels.words * 4 == c.channel_bytes && panels.blocks * kLanes >= kernel[0] * kernel[1] * columns,
              "weight does not fit the input");
  const Output output{columns, kGroup, 1, row_scale.has_value(), residual,
                      {{0, 0, epilogue, data<float>(bias), data<float>(taps)}}};
  const Tensor out = convolved(c, codes, output, [&](size_t) { return NarrowConvolution(c, panels, (int)columns); });
  return spread(out, shuffle);
}

// The shape of a 3x3 convolution with stride 1 that a kernel computes in whole patches.
ConvShape patched_shape(const Tensor& codes, IntHeaderOnlyArrayRef padding, int64_t shuffle, int patch, int64_t channel_bytes) {
  const int64_t one[] = {1, 1}, three[] = {3, 3};
  ConvShape c = shape_of(codes, codes.size(1), three, one, padding, shuffle);
  c.patch = patch;
  c.channel_bytes = channel_bytes;
  c.copy_width = (c.out_width + patch - 1) / patch * patch + 2;
  return c;
}

// The factors of columns divided by a power of two, for sums that a kernel has multiplied by it.
std::vector<float> divided(const float* scale, int64_t columns, int factor) {
  std::vector<float> result(scale, scale + columns);
  for (float& one : result) one /= (float)factor;
  return result;
}

// Whether F(2x2) in bytes is faster than F(4x4) in 16 bits, where both are exact: a product of bytes costs as much as one of
// 16-bit integers, of which there are 9 for 16, but the weights of F(2x2) take a fifth of the memory. An instruction that
// multiplies and adds up bytes makes up for the products as soon as the weights of F(4x4) fill a cache, and at once where
// there is none for 16-bit integers.
bool bytes_are_faster(int blocks, int words) {
  return kDotBytes && (!kDotPairs || Winograd4::weight_bytes(blocks, words) > 1 << 19);
}

Tensor conv3x3(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest, bool narrow,
               IntHeaderOnlyArrayRef padding, int64_t shuffle, const Tensor& bias, const optional<Tensor>& taps, const Tensor& scale,
               const optional<Tensor>& row_scale, int64_t activation, double slope, const optional<Tensor>& residual,
               const optional<Tensor>& levels, const optional<Tensor>& out_scale,
               const optional<Tensor>& out_offset) {
  const Tensor bytes = widened(weight);
  FXPTQ_CHECK(bytes.dim() == 5 && bytes.size(0) == 9 && (!narrow || largest <= 63), "weight is not packed by taps");
  const int blocks = (int)bytes.size(1), words = (int)bytes.size(2);
  FXPTQ_CHECK(words == words_of(codes.size(1)), "weight does not fit the input");
  const int64_t padded = padded_to_groups(columns);
  const bool direct = shuffles_in_place(columns, shuffle), by_two = narrow && bytes_are_faster(blocks, words);
  const int factor = by_two ? Winograd::kFactor : Winograd4::kFactor;
  Epilogue epilogue = epilogue_of(columns, scale, bias, row_scale, activation, slope, residual, levels, out_scale, out_offset);
  const std::vector<float> small_scale = divided(epilogue.scale, padded, factor);
  const std::vector<float> small_row_scale =
      epilogue.row_scale ? divided(epilogue.row_scale, padded, factor) : std::vector<float>();
  epilogue.scale = small_scale.data();
  if (epilogue.row_scale) epilogue.row_scale = small_row_scale.data();
  const Output output{columns, padded, factor, row_scale && !has_sum_column(columns), residual,
                      {{0, 0, epilogue, data<float>(bias), data<float>(taps)}}};
  const int64_t places = direct ? shuffle : 1;
  const auto* packed = data<int8_t>(bytes);

  const auto run_by_two = [&] {
    const ConvShape c = patched_shape(codes, padding, places, 2, (codes.size(1) + 63) / 64 * 64);
    const int64_t panel = (int64_t)blocks * words * 64;
    Buffer<int8_t> transformed(kPositions * panel);
    Buffer<int32_t> start(kPositions * padded);
    transform_weight(packed, blocks, words, codes.size(1), (int)largest, transformed.data(), start.data(), padded);
    std::array<Panels, kPositions> panels;
    std::array<Buffer<int8_t>, kPositions> storage;
    for (int64_t p = 0; p < kPositions; ++p) {
      panels[p] = {transformed.data() + p * panel, blocks, words, start.data() + p * padded};
      if constexpr (kCodeShift != 0) panels[p] = prepared(panels[p], 255, storage[p]);
    }
    return convolved(c, codes, output, [&](size_t) { return Winograd(c, panels.data(), (uint8_t)largest); });
  };
  const auto run_by_four = [&] {
    const ConvShape c = patched_shape(codes, padding, places, Winograd4::kPatch, Winograd4::channel_bytes(codes.size(1)));
    Buffer<int8_t> transformed(Winograd4::weight_bytes(blocks, words));
    Winograd4::transform_weight(packed, blocks, words, transformed.data());
    return convolved(c, codes, output, [&](size_t) { return Winograd4(c, transformed.data(), blocks, words); });
  };
  const Tensor out = by_two ? run_by_two() : run_by_four();
  return direct ? out : spread(out, shuffle);
}

// The pixel shuffle of channels ordered by position (`places_first`): whole runs of channels move.
Tensor spread(const Tensor& x, int64_t factor) {
  if (factor == 1) return x;
  const Tensor from = channels_last(x);
  const int64_t batch = x.size(0), height = x.size(2), width = x.size(3), channels = x.size(1) / (factor * factor);
  Tensor out = empty_channels_last(batch, channels, height * factor, width * factor, type_number(x));
  // A run: the channels of one pixel for one row of its block.
  const int64_t run = factor * channels * (int64_t)x.element_size();
  const auto* source = static_cast<const uint8_t*>(from.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  parallel_for(batch * height, 4, [&](int64_t begin, int64_t end) {
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

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("narrow_conv2d", TORCH_BOX(&narrow_conv2d));
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
}

}  // namespace
}  // namespace fxptq

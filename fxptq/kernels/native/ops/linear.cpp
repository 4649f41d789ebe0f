// Linear layers on codes.
#include "common.h"

namespace fxptq {
namespace {

Tensor linear(const Tensor& codes, const Tensor& weight, int64_t columns, int64_t largest, const Tensor& bias,
              const Tensor& scale, const optional<Tensor>& row_scale, int64_t activation, double slope,
              const optional<Tensor>& residual, const optional<Tensor>& levels, const optional<Tensor>& out_scale,
              const optional<Tensor>& out_offset) {
  const Tensor input = row_major(codes);
  std::vector<int64_t> shape = sizes_of(input);
  shape.back() = columns;
  const optional<Tensor> added = added_to(residual, shape, row_major);
  const Tensor bytes = widened(weight);
  Buffer<int8_t> pairs;
  const Panels panels = prepared(panels_of(bytes), (int)largest, pairs);
  const Epilogue epilogue =
      epilogue_of(columns, scale, bias, row_scale, activation, slope, residual, levels, out_scale, out_offset);
  const int64_t depth = input.size(-1), rows = depth ? input.numel() / depth : 0;
  FXPTQ_CHECK(panels.words == words_of(depth), "weight does not fit the input");
  Tensor out = empty(shape, output_type(levels.has_value()));
  float* values = writable<float>(out);
  uint8_t* next = writable<uint8_t>(out);
  const float* add = data<float>(added);
  const uint8_t* from = data<uint8_t>(input);
  const float* shift = data<float>(bias);

  const Finish finish = finish_of(epilogue, add != nullptr);
  const ptrdiff_t acc_stride = padded_columns(panels);
  std::atomic<bool> nan = false;
  parallel_for((rows + kTileRows - 1) / kTileRows, 16, [&](int64_t begin, int64_t end) {
    Buffer<int32_t> acc(acc_stride * kTileRows);
    std::vector<uint8_t> padded(depth % 4 ? (size_t)panels.words * 4 * kTileRows : 0);
    float sums[kTileRows];
    bool here = false;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kTileRows;
      const int count = (int)std::min<int64_t>(kTileRows, rows - first);
      Rows a{from + first * depth, depth, 1, 0, panels.words};
      if (!padded.empty()) {  // a group of four must not reach into the next row, nor past the tensor
        a.data = padded.data();
        a.stride = (ptrdiff_t)panels.words * 4;
        for (int r = 0; r < count; ++r) std::memcpy(padded.data() + r * a.stride, from + (first + r) * depth, depth);
      }
      accumulate(a, 0, count, panels, acc.data(), acc_stride);
      for (int r = 0; epilogue.row_scale && r < count; ++r) {
        sums[r] = has_sum_column(columns) ? (float)acc[r * acc_stride + columns] : (float)row_sum(a, r);
      }
      const int64_t at = first * columns;
      finish(epilogue, {acc.data(), acc_stride, count, shift, sums, add ? add + at : nullptr,
                        values ? values + at : nullptr, next ? next + at : nullptr, columns, nullptr, &here});
    }
    if (here) nan = true;
  });
  check_numbers(nan);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) { m.impl("linear", TORCH_BOX(&linear)); }

}  // namespace
}  // namespace fxptq

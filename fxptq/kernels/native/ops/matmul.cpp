// Products of two activations.
#include "products.h"

namespace fxptq {
namespace {

// The right factor of one batch as packed columns of centred codes, and the sum of each column. Codes are `k` and `n`
// bytes apart along the two axes.
void pack_columns(const uint8_t* from, int64_t depth, int64_t columns, int64_t k, int64_t n, Centre centre,
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
      const Ints total = dot4_small(load<Ints>(sums + block * kLanes), Words{} + 0x01010101u,
                                            load<Words>(to + w * 64));
      store(sums + block * kLanes, total);
    }
  }
}

// The values of both factors: unit * (code + shift), where the right code is centred. Plane 0 has the units, 1 the shifts.
struct Values {
  Numbers left, right;
  int64_t heads;
  bool row_sums;  // whether the sums of the left codes matter
  bool shares;    // whether left values are codes over the sum of their row
};

// Rows of a product whose rows have numbers of their own: out[j] = factor * (out[j] + shift * term[j]).
void finish_row(float* out, int64_t columns, float factor, float shift, const float* term) {
  for (int64_t j = 0; j < columns; ++j) out[j] = factor * (out[j] + shift * term[j]);
}

Tensor matmul_of_batches(const Tensor& lhs, const Tensor& rhs, int64_t bits, int64_t largest, const Values& values) {
  const int64_t rows = lhs.size(-2), depth = lhs.size(-1), columns = rhs.size(-1);
  const auto& [left, right, heads, row_sums, shares] = values;
  const bool by_row = left.varies() || shares;
  std::vector<int64_t> shape = sizes_of(lhs);
  shape.back() = columns;
  Tensor out = empty(shape, Element<float>::number());
  if (out.numel() == 0) return out;
  // Rows of groups of four: depth padded with zeros, which meet the zeros of the packed columns.
  const Tensor a = depth % 4 ? torch::stable::pad(lhs, {0, 4 - depth % 4}) : row_major(lhs);
  const Tensor b = torch::stable::flatten(rhs, 0, -3);
  const int words = words_of(depth), blocks = (int)((columns + kLanes - 1) / kLanes);
  const int64_t padded = (columns + kGroup - 1) / kGroup * kGroup, batches = out.numel() / (rows * columns);
  const uint8_t *from_a = data<uint8_t>(a), *from_b = data<uint8_t>(b);
  float* to = writable<float>(out);
  parallel_for(batches, 1, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> packed((size_t)blocks * words * 64);
    std::vector<int32_t> column_sums(padded), acc(padded * kTileRows);
    std::vector<float> scales(padded), row_scales(padded), bias(padded), terms(padded);
    float sums[kTileRows] = {};
    const Epilogue epilogue{(int)columns, scales.data(), row_sums ? row_scales.data() : nullptr,
                                   Activation::kNone, 0.0f, nullptr, nullptr, nullptr};
    const Finish finish = finish_of(epilogue, false);
    Buffer<int8_t> pairs;
    for (int64_t batch = begin; batch < end; ++batch) {
      pack_columns(from_b + batch * b.stride(0), depth, columns, b.stride(1), b.stride(2), centre_of(bits), packed.data(),
                   column_sums.data());
      const Panels panels = prepared({packed.data(), blocks, words, nullptr}, (int)largest, pairs);
      // Where rows have units and shifts of their own, they are added in `finish_row`.
      const int64_t head = batch % heads;
      const double unit = left.varies() ? 1.0 : left.at(0, head, 0), shift = left.varies() ? 0.0 : left.at(1, head, 0);
      for (int64_t j = 0; j < columns; ++j) {
        const double scale = unit * right.at(0, head, j), own = right.at(1, head, j);
        const double term = scale * (column_sums[j] + own * (double)depth);
        scales[j] = (float)scale, row_scales[j] = (float)(scale * own);
        bias[j] = (float)(shift * term), terms[j] = (float)term;
      }
      const Rows line{from_a + batch * rows * words * 4, (ptrdiff_t)words * 4, 1, 0, words};
      for (int64_t first = 0; first < rows; first += kTileRows) {
        const int count = (int)std::min<int64_t>(kTileRows, rows - first);
        accumulate(line, first, count, panels, acc.data(), padded);
        for (int r = 0; (row_sums || shares) && r < count; ++r) sums[r] = (float)row_sum(line, first + r);
        float* out_rows = to + (batch * rows + first) * columns;
        finish(epilogue, {acc.data(), (ptrdiff_t)padded, count, bias.data(), sums, nullptr, out_rows, nullptr, columns});
        for (int r = 0; by_row && r < count; ++r) {
          const float own = left.varies() ? (float)left.at(0, head, first + r) : 1.0f;
          const float shift_of_row = left.varies() ? (float)left.at(1, head, first + r) : 0.0f;
          finish_row(out_rows + r * columns, columns, shares ? own / std::max(sums[r], 1.0f) : own, shift_of_row, terms.data());
        }
      }
    }
  });
  return out;
}

// The sizes that batches of both sizes are broadcast to.
std::vector<int64_t> broadcast(IntHeaderOnlyArrayRef a, IntHeaderOnlyArrayRef b) {
  const size_t axes = std::max(a.size(), b.size());
  std::vector<int64_t> sizes(axes);
  for (size_t axis = 0; axis < axes; ++axis) {
    const int64_t left = axis + a.size() < axes ? 1 : a[axis + a.size() - axes];
    const int64_t right = axis + b.size() < axes ? 1 : b[axis + b.size() - axes];
    FXPTQ_CHECK(left == right || left == 1 || right == 1, "The size of tensor a (", left,
                ") must match the size of tensor b (", right, ") at non-singleton dimension ", axis);
    sizes[axis] = left == 1 ? right : left;
  }
  return sizes;
}

Tensor matmul(const Tensor& left, const Tensor& right, int64_t bits, int64_t largest, const Tensor& left_values,
              const Tensor& right_values, bool row_sums, bool shares) {
  FXPTQ_CHECK(left.dim() >= 2 && right.dim() >= 2 && left.size(-1) == right.size(-2), "the factors ",
              shown(left.sizes()), " and ", shown(right.sizes()), " do not fit");
  // Batches of one factor are broadcast to the batches of the other, as in torch.matmul.
  std::vector<int64_t> batch = broadcast(left.sizes().slice(0, left.dim() - 2), right.sizes().slice(0, right.dim() - 2));
  if (batch.empty()) batch.push_back(1);
  const auto repeated = [&](const Tensor& t) {
    std::vector<int64_t> sizes = batch;
    sizes.insert(sizes.end(), {t.size(-2), t.size(-1)});
    return std::ranges::equal(t.sizes(), sizes) ? t : row_major(expanded(t, sizes));
  };
  Tensor lhs = repeated(left), rhs = repeated(right);
  const int64_t depth = lhs.size(-1), heads = batch.back();
  FXPTQ_CHECK(!shares || depth <= kDepth, "shares of ", depth, " codes: their sums do not fit 32 bits");
  const Values values{Numbers(left_values, 2, heads, lhs.size(-2)), Numbers(right_values, 2, heads, rhs.size(-1)), heads, row_sums,
                      shares};
  const auto part = [&](int64_t first) {
    if (depth <= kDepth) return matmul_of_batches(lhs, rhs, bits, largest, values);
    const int64_t count = std::min(kDepth, depth - first);
    return matmul_of_batches(torch::stable::narrow(lhs, -1, first, count), torch::stable::narrow(rhs, -2, first, count),
                             bits, largest, values);
  };
  Tensor out = part(0);
  for (int64_t first = kDepth; first < depth; first += kDepth) {
    const Tensor next = part(first);
    const float* from = data<float>(next);
    float* to = writable<float>(out);
    for (int64_t i = 0; i < out.numel(); ++i) to[i] += from[i];
  }
  return left.dim() == 2 && right.dim() == 2 ? torch::stable::squeeze(out, 0) : out;
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) { m.impl("matmul", TORCH_BOX(&matmul)); }

}  // namespace
}  // namespace fxptq

// Codes of values and of normalised values, and the name of the instruction set.
#include "../elementwise.h"
#include "common.h"

namespace fxptq {
namespace {

// Whether the elements fill a piece of memory, each once, in any order of the axes.
bool is_dense(const Tensor& t) {
  std::vector<int64_t> axes;
  for (int64_t axis = 0; axis < t.dim(); ++axis) {
    if (t.size(axis) != 1) axes.push_back(axis);
  }
  std::ranges::sort(axes, {}, [&](int64_t axis) { return t.stride(axis); });
  return t.numel() == 0 || lies_in_order(t, axes);
}

Tensor quantize(const Tensor& x, double lower, double step, int64_t levels) {
  // Values and codes are read in the order of memory; values with gaps or repeats are copied first.
  Tensor dense = x;
  if (!x.is_contiguous() && !is_dense(x)) {
    dense = torch::stable::empty_like(x);
    torch::stable::copy_(dense, x);
  }
  Tensor codes = empty_strided(x.sizes(), dense.strides(), Element<uint8_t>::number());
  const float* from = data<float>(dense);
  uint8_t* to = writable<uint8_t>(codes);
  std::atomic<bool> nan = false;
  parallel_for(dense.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    if (fxptq::quantize(from + begin, to + begin, end - begin, (float)lower, (float)step, (float)levels)) nan = true;
  });
  check_numbers(nan);
  return codes;
}

Tensor layer_norm_codes(const Tensor& x, const Tensor& scale, const Tensor& offset, double eps, int64_t levels) {
  const Tensor rows = row_major(x);
  const int64_t width = rows.size(-1);
  Tensor codes = empty(rows.sizes(), Element<uint8_t>::number());
  const float *from = data<float>(rows), *s = data<float>(scale), *o = data<float>(offset);
  uint8_t* to = writable<uint8_t>(codes);
  const int64_t count = width ? rows.numel() / width : 0;
  std::atomic<bool> nan = false;
  parallel_for((count + kLanes - 1) / kLanes, 8, [&](int64_t begin, int64_t end) {
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

std::string instruction_set() { return isa(); }

STABLE_TORCH_LIBRARY_FRAGMENT(fxptq_native, m) { m.def("isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fxptq_native, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&instruction_set)); }

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("layer_norm_codes", TORCH_BOX(&layer_norm_codes));
}

}  // namespace
}  // namespace fxptq

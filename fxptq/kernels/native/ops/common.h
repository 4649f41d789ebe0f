// What the operators share: torch's stable C interface behind a few short names, and the checks of arguments.
//
// The operators are declared in Python (ops.py), which also holds their exact pure-torch form; the arguments and their
// meaning are documented there. Sources in this folder hold checks, shapes and threads; the arithmetic is in the headers
// above it, which know no torch. Only calls of torch's stable interface that version 2.11 has are used, so that one
// library serves every later version.
#pragma once

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../epilogue.h"
#include "../gemm.h"

namespace fxptq {

using std::optional;
using torch::headeronly::HeaderOnlyArrayRef;
using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::Tensor;

// ---- errors -------------------------------------------------------------------------------------------------------

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

// Raises a RuntimeError of Python with the parts as its message; the parts are evaluated only then.
#define FXPTQ_CHECK(condition, ...) \
  do {                              \
    if (!(condition)) [[unlikely]]  \
      ::fxptq::fail(__VA_ARGS__);   \
  } while (false)

// Sizes as a message shows them: [1, 2, 3].
inline std::string shown(IntHeaderOnlyArrayRef sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

// Raises for NaN, because no code stands for it; the caller then runs the network in float, where NaN stays NaN.
inline void check_numbers(bool nan) { FXPTQ_CHECK(!nan, "no code can stand for NaN"); }

// ---- threads ------------------------------------------------------------------------------------------------------

// Runs f(begin, end) over the parts of 0 .. count on torch's threads. An error must not cross torch's C interface: the
// first one waits here until all parts are done.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  struct Call {
    const F& f;
    std::atomic<bool> failed = false;
    std::exception_ptr error;
  } call{f};
  const auto part = [](int64_t begin, int64_t end, void* context) {
    Call& call = *static_cast<Call*>(context);
    try {
      call.f(begin, end);
    } catch (...) {
      if (!call.failed.exchange(true)) call.error = std::current_exception();
    }
  };
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, part, &call));
  if (call.error) std::rethrow_exception(call.error);
}

// ---- tensors ------------------------------------------------------------------------------------------------------

// The types of elements, by the number and the name that torch has for them.
template <class T>
struct Element;
template <>
struct Element<uint8_t> {
  static int32_t number() { return aoti_torch_dtype_uint8(); }
  static constexpr const char* name = "Byte";
};
template <>
struct Element<int8_t> {
  static int32_t number() { return aoti_torch_dtype_int8(); }
  static constexpr const char* name = "Char";
};
template <>
struct Element<double> {
  static int32_t number() { return aoti_torch_dtype_float64(); }
  static constexpr const char* name = "Double";
};
template <>
struct Element<float> {
  static int32_t number() { return aoti_torch_dtype_float32(); }
  static constexpr const char* name = "Float";
};

inline int32_t type_number(const Tensor& t) {
  int32_t number;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &number));
  return number;
}

template <class T>
bool holds(const Tensor& t) {
  return type_number(t) == Element<T>::number();
}

inline const char* type_name(const Tensor& t) { return torch::headeronly::toString(t.scalar_type()); }

// The elements of a tensor.
template <class T>
const T* data(const Tensor& t) {
  FXPTQ_CHECK(holds<T>(t), "expected scalar type ", Element<T>::name, " but found ", type_name(t));
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
const T* data(const optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// The elements of a new tensor, or nullptr if its elements are of another type.
template <class T>
T* writable(const Tensor& t) {
  return holds<T>(t) ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline Tensor empty_strided(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, int32_t type) {
  for (const int64_t size : sizes) {
    FXPTQ_CHECK(size >= 0, "Trying to create tensor with negative dimension ", size, ": ", shown(sizes));
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)sizes.size(), sizes.data(), strides.data(), type,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(IntHeaderOnlyArrayRef sizes, int32_t type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return empty_strided(sizes, strides, type);
}

inline Tensor empty_channels_last(int64_t batch, int64_t channels, int64_t height, int64_t width, int32_t type) {
  const int64_t sizes[] = {batch, channels, height, width};
  const int64_t strides[] = {height * width * channels, 1, width * channels, channels};
  return empty_strided(sizes, strides, type);
}

// The type of an output: codes for the next layer, or values.
inline int32_t output_type(bool coded) { return coded ? Element<uint8_t>::number() : Element<float>::number(); }

// Whether the elements lie without gaps and repeats, the axes from the last to the first as given.
inline bool lies_in_order(const Tensor& t, IntHeaderOnlyArrayRef axes) {
  int64_t step = 1;
  for (const int64_t axis : axes) {
    if (t.size(axis) == 1) continue;
    if (t.stride(axis) != step) return false;
    step *= t.size(axis);
  }
  return true;
}

inline Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline Tensor channels_last(const Tensor& t) {
  const int64_t axes[] = {1, 3, 2, 0};
  if (lies_in_order(t, axes)) return t;
  return torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

inline Tensor expanded(const Tensor& t, IntHeaderOnlyArrayRef sizes) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(t), torch::stable::detail::from(sizes),
                                    torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::expand", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Whether a tensor of the one sizes can be broadcast to the other.
inline bool is_expandable(IntHeaderOnlyArrayRef from, IntHeaderOnlyArrayRef to) {
  if (from.size() > to.size()) return false;
  for (size_t i = 1; i <= from.size(); ++i) {
    const int64_t size = from[from.size() - i];
    if (size != 1 && size != to[to.size() - i]) return false;
  }
  return true;
}

// ---- arguments ----------------------------------------------------------------------------------------------------

inline int words_of(int64_t bytes) { return (int)((bytes + 3) / 4); }

// A packed weight as bytes: the tensor itself, or an unpacked copy of 2, 3 or 4 bits a code that lasts as long as the call.
inline Tensor widened(const Tensor& weight) {
  FXPTQ_CHECK(weight.dim() >= 3 && weight.is_contiguous(), "weight is not packed");
  if (holds<int8_t>(weight)) return weight;
  const int64_t bits = weight.size(-1) / 8, vectors = weight.numel() / weight.size(-1);
  FXPTQ_CHECK(holds<uint8_t>(weight) && weight.size(-1) % 8 == 0 && bits >= 2 && bits <= 4, "weight is not packed");
  std::vector<int64_t> shape = sizes_of(weight);
  shape.back() = kLanes;
  shape.push_back(4);
  Tensor bytes = empty(shape, Element<int8_t>::number());
  unpack(data<uint8_t>(weight), (int)bits, vectors, writable<int8_t>(bytes));
  return bytes;
}

inline Panels panels_of(const Tensor& bytes) {
  FXPTQ_CHECK(bytes.dim() == 4, "weight is not packed");
  return {data<int8_t>(bytes), (int)bytes.size(0), (int)bytes.size(1), nullptr};
}

inline Epilogue epilogue_of(int64_t columns, const Tensor& scale, const Tensor& bias, const optional<Tensor>& row_scale,
                            int64_t activation, double slope, const optional<Tensor>& residual, const optional<Tensor>& levels,
                            const optional<Tensor>& out_scale, const optional<Tensor>& out_offset) {
  const int64_t padded = (columns + kGroup - 1) / kGroup * kGroup;
  const auto fits = [&](const Tensor& t) { return t.numel() == padded && holds<float>(t) && t.is_contiguous(); };
  FXPTQ_CHECK(fits(scale) && fits(bias), "bad epilogue");
  for (const optional<Tensor>* t : {&row_scale, &levels, &out_scale, &out_offset}) FXPTQ_CHECK(!*t || fits(**t), "bad epilogue");
  const bool is_linear = (Activation)activation == Activation::kNone && !residual;
  FXPTQ_CHECK(!levels || is_linear || (out_scale && out_offset), "codes behind an activation or a residual need the next grid");
  return {(int)columns, data<float>(scale),  data<float>(row_scale), (Activation)activation,
          (float)slope, data<float>(levels), data<float>(out_scale), data<float>(out_offset)};
}

// A residual in the sizes of the output, laid out by `in_order` as the output is; a smaller residual is broadcast.
template <class InOrder>
optional<Tensor> added_to(const optional<Tensor>& residual, IntHeaderOnlyArrayRef sizes, InOrder in_order) {
  if (!residual) return residual;
  FXPTQ_CHECK(is_expandable(residual->sizes(), sizes), "the residual ", shown(residual->sizes()),
              " cannot be added to an output of ", shown(sizes));
  FXPTQ_CHECK(holds<float>(*residual), "a residual is float32, not ", type_name(*residual));
  const bool same = std::ranges::equal(residual->sizes(), sizes);
  return in_order(same ? *residual : expanded(*residual, sizes));
}

}  // namespace fxptq

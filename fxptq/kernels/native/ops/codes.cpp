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

// The values without gaps and repeats in memory, in any order of the axes.
Tensor as_dense(const Tensor& x) {
  if (x.is_contiguous() || is_dense(x)) return x;
  Tensor dense = torch::stable::empty_like(x);
  torch::stable::copy_(dense, x);
  return dense;
}

Tensor quantize(const Tensor& x, double lower, double step, int64_t levels) {
  const Tensor dense = as_dense(x);  // values and codes are read in the order of memory
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

// A tensor in the order of memory as pieces that have one number each, or as rows that repeat the numbers of a table.
class MapInMemory {
 public:
  // `scale` and `offset` broadcast to the trailing axes of `x`, which is dense.
  MapInMemory(const Tensor& x, const Tensor& scale, const Tensor& offset) {
    const int64_t lead = x.dim() - scale.dim();
    FXPTQ_CHECK(lead >= 0 && std::ranges::equal(scale.sizes(), offset.sizes()) && scale.is_contiguous() && offset.is_contiguous(),
                "a map of ", shown(scale.sizes()), " does not fit values of ", shown(x.sizes()));
    std::vector<int64_t> axes;
    for (int64_t axis = 0; axis < x.dim(); ++axis) {
      const int64_t own = axis < lead ? 1 : scale.size(axis - lead);
      FXPTQ_CHECK(own == 1 || own == x.size(axis), "a map of ", shown(scale.sizes()), " does not fit values of ", shown(x.sizes()));
      if (x.size(axis) != 1) axes.push_back(axis);
    }
    std::ranges::sort(axes, {}, [&](int64_t axis) { return -x.stride(axis); });
    // The numbers in the order of memory, and neighbouring axes of one kind as one.
    std::vector<int64_t> places = {0};
    for (const int64_t axis : axes) {
      const bool mapped = axis >= lead && scale.size(axis - lead) != 1;
      if (mapped) {
        const int64_t step = scale.stride(axis - lead);
        std::vector<int64_t> next;
        for (const int64_t place : places) {
          for (int64_t i = 0; i < x.size(axis); ++i) next.push_back(place + i * step);
        }
        places = std::move(next);
      }
      if (!parts_.empty() && parts_.back().mapped == mapped) {
        parts_.back().size *= x.size(axis);
      } else {
        parts_.push_back({x.size(axis), mapped});
      }
    }
    for (const int64_t place : places) {
      scales_.push_back(data<float>(scale)[place]), offsets_.push_back(data<float>(offset)[place]);
    }
    varies_ = !parts_.empty() && parts_.back().mapped;
    width_ = varies_ ? parts_.back().size : 1;
    piece_ = parts_.empty() ? 1 : parts_.back().size;
    if (!parts_.empty()) parts_.pop_back();
    if (varies_) {
      if (!parts_.empty()) piece_ *= parts_.back().size, parts_.pop_back();
      repeat();
    }
  }

  // Calls work(place, count, scale, offset) for runs of values, at most one table long where each value has its own numbers.
  template <class Work>
  void each(int64_t count, const Work& work) const {
    const int64_t run = varies_ ? period_ : kRun, runs = (piece_ + run - 1) / run, pieces = count / piece_;
    parallel_for(pieces * runs, std::max<int64_t>(1, kRun / std::min(run, piece_)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t piece = i / runs, first = i % runs * run, table = row_of(piece) * (varies_ ? stride_ : 1);
        work(piece * piece_ + first, std::min(run, piece_ - first), scales_.data() + table, offsets_.data() + table);
      }
    });
  }

  bool varies() const { return varies_; }

 private:
  static constexpr int64_t kRun = 1 << 15, kTable = 1024;

  struct Part {
    int64_t size;
    bool mapped;
  };

  // Rows of numbers side by side, so that whole vectors are read of narrow rows too.
  void repeat() {
    const int64_t rows = (int64_t)scales_.size() / width_;
    period_ = std::max<int64_t>(1, std::min(kTable / width_, piece_ / width_)) * width_;
    stride_ = (period_ + kGroup - 1) / kGroup * kGroup;
    for (std::vector<float>* numbers : {&scales_, &offsets_}) {
      std::vector<float> wide(rows * stride_);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < period_; ++i) wide[row * stride_ + i] = (*numbers)[row * width_ + i % width_];
      }
      *numbers = std::move(wide);
    }
  }

  // The row of numbers that a piece has.
  int64_t row_of(int64_t piece) const {
    int64_t row = 0, step = 1;
    for (size_t i = parts_.size(); i-- > 0;) {
      if (parts_[i].mapped) row += piece % parts_[i].size * step, step *= parts_[i].size;
      piece /= parts_[i].size;
    }
    return row;
  }

  std::vector<Part> parts_;  // outside a piece, the outermost first
  std::vector<float> scales_, offsets_;
  bool varies_ = false;
  int64_t width_ = 1, piece_ = 1, period_ = 1, stride_ = 1;
};

Tensor affine_codes(const Tensor& x, const Tensor& scale, const Tensor& offset, int64_t levels) {
  const Tensor dense = as_dense(x);
  Tensor codes = empty_strided(x.sizes(), dense.strides(), Element<uint8_t>::number());
  const float* from = data<float>(dense);
  uint8_t* to = writable<uint8_t>(codes);
  if (dense.numel() == 0) return codes;
  const MapInMemory map(dense, scale, offset);
  std::atomic<bool> nan = false;
  map.each(dense.numel(), [&](int64_t place, int64_t count, const float* s, const float* o) {
    const auto make = map.varies() ? fxptq::affine_codes<true> : fxptq::affine_codes<false>;
    if (make(from + place, to + place, count, s, o, (float)levels)) nan = true;
  });
  check_numbers(nan);
  return codes;
}

Tensor share_codes(const Tensor& x, double scale, int64_t levels) {
  const Tensor rows = row_major(x);
  const int64_t width = rows.size(-1), count = width ? rows.numel() / width : 0;
  Tensor codes = empty(rows.sizes(), Element<uint8_t>::number());
  const float* from = data<float>(rows);
  uint8_t* to = writable<uint8_t>(codes);
  std::atomic<bool> nan = false;
  parallel_for(count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(width, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (fxptq::share_codes(from + r * width, to + r * width, width, (float)scale, (float)levels)) nan = true;
    }
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
  m.impl("affine_codes", TORCH_BOX(&affine_codes));
  m.impl("share_codes", TORCH_BOX(&share_codes));
  m.impl("layer_norm_codes", TORCH_BOX(&layer_norm_codes));
}

}  // namespace
}  // namespace fxptq

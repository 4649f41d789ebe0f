// Depthwise convolution: each channel has a kernel of its own.
//
// A product of a code and a weight fits 16 bits, and so does a sum of a few of them; these sums go into sums of 32 bits. The
// lanes are channels. Where the weights have an offset, each channel needs the sum of its own codes.
#pragma once

#include "conv.h"

namespace fxptq {

class DepthwiseConvolution {
 public:
  // Bytes of a pixel of the copy: whole groups of columns.
  static int64_t channel_bytes(int64_t channels) { return (channels + kGroup - 1) / kGroup * kGroup; }

  // Taps whose products add up in 16 bits, for weights [taps][channel bytes] and codes up to `largest`; at least one.
  static int taps_in_16_bits(const int8_t* weights, int64_t count, int largest) {
    int most = 1;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs((int)weights[i]));
    return std::max(1, 32767 / (most * std::max(largest, 1)));
  }

  // Weights [taps][channel bytes]; `sums`: whether the epilogue needs sums of codes.
  DepthwiseConvolution(const ConvShape& shape, const int8_t* weights, int taps_in_16_bits, bool sums)
      : c_(shape), taps_(c_.kernel_height * c_.kernel_width), run_(taps_in_16_bits), weights_(taps_ * c_.channel_bytes),
        acc_(kPixels * c_.channel_bytes), sums_(sums ? kPixels * c_.channel_bytes : 0) {
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = weights[i];
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx) {
        offsets_.push_back(ky * c_.dilation_y * c_.row_bytes() + kx * c_.dilation_x * c_.channel_bytes);
      }
    }
  }

  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      finish.row(y);
      const uint8_t* line = strip.row(y * c_.stride_y);
      for (int64_t x = 0; x < c_.out_width; x += kPixels) {
        const int64_t count = std::min<int64_t>(kPixels, c_.out_width - x);
        for (int64_t i = 0; i < count; ++i) {
          const uint8_t* at = line + (x + i) * c_.stride_x * c_.channel_bytes;
          run_ >= taps_ ? pixel<true>(at, i * c_.channel_bytes) : pixel<false>(at, i * c_.channel_bytes);
        }
        if (sums_.empty()) {
          finish.run(x, count, acc_.data());
        } else {
          finish.run_each(x, count, acc_.data(), sums_.data());
        }
      }
    }
  }

 private:
  static constexpr int kPixels = 16;               // pixels that the epilogue takes together
  static constexpr int kChannels = kRegister / 2;  // of a register of 16-bit integers

  typedef uint8_t HalfBytes __attribute__((vector_size(kChannels)));

  static FXPTQ_INLINE Shorts widened(const uint8_t* p) {
    HalfBytes codes;
    std::memcpy(&codes, p, sizeof codes);
    return __builtin_convertvector(codes, Shorts);
  }

  // The sums of one pixel, for all channels. `kOnce`: the products of all taps add up in 16 bits.
  template <bool kOnce>
  void pixel(const uint8_t* at, int64_t to) {
    for (int64_t channel = 0; channel < c_.channel_bytes; channel += kChannels) {
      Pairs even = {}, odd = {};
      Shorts codes_sum = {};
      for (int tap = 0; tap < taps_;) {
        const int end = kOnce ? taps_ : std::min(tap + run_, taps_);
        Shorts some = {};
        for (; tap < end; ++tap) {
          const Shorts codes = widened(at + offsets_[tap] + channel);
          some = some + codes * load_register<Shorts>(weights_.data() + tap * c_.channel_bytes + channel);
          codes_sum = codes_sum + codes;
        }
        even = even + (Pairs)((Signed)((Pairs)some << 16) >> 16), odd = odd + (Pairs)((Signed)some >> 16);
      }
      interleave(even, odd, acc_.data() + to + channel);
      if (!sums_.empty()) {
        const Signed low = (Signed)((Pairs)codes_sum & 0xffff), high = (Signed)((Pairs)codes_sum >> 16);
        interleave(__builtin_convertvector(low, Reals), __builtin_convertvector(high, Reals), sums_.data() + to + channel);
      }
    }
  }

  typedef int32_t Signed __attribute__((vector_size(kRegister)));
  typedef float Reals __attribute__((vector_size(kRegister)));

  // Lanes of two registers in turns.
  template <class V, class T>
  static FXPTQ_INLINE void interleave(V even, V odd, T* to) {
    V low, high;
    if constexpr (kRegister == 64) {
      low = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      high = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    } else if constexpr (kRegister == 32) {
      low = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
      high = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
      low = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
      high = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
    }
    store_register(to, low), store_register(to + kRegister / 4, high);
  }

  const ConvShape c_;
  const int taps_, run_;
  Buffer<int16_t> weights_;  // [taps][channel bytes]
  Buffer<int32_t> acc_;      // [pixels][channel bytes]
  Buffer<float> sums_;       // likewise
  std::vector<ptrdiff_t> offsets_;  // of the taps of a pixel in the copy
};

}  // namespace fxptq

// Depthwise convolution: each channel has a kernel of its own; the lanes are channels.
//
// Where the sums over all taps fit 16 bits, products are made and added up there; otherwise two taps at a time give sums of
// 32 bits. Where the weights have an offset, each channel needs the sum of its own codes.
#pragma once

#include "conv.h"

namespace fxptq {

class DepthwiseConvolution {
 public:
  // Bytes of a pixel of the copy: whole groups of columns.
  static int64_t channel_bytes(int64_t channels) { return (channels + kGroup - 1) / kGroup * kGroup; }

  // Whether all partial sums fit 16 bits, for weights [taps][channel bytes] and codes up to `largest`.
  static bool fits_16_bits(const int8_t* weights, int taps, int64_t channel_bytes, int largest) {
    int most = 0;
    for (int64_t i = 0; i < taps * channel_bytes; ++i) most = std::max(most, std::abs((int)weights[i]));
    return (int64_t)taps * most * largest <= 32767;
  }

  // Weights [taps][channel bytes]; `small`: `fits_16_bits`; `sums`: whether the epilogue needs sums of codes.
  DepthwiseConvolution(const ConvShape& shape, const int8_t* weights, bool small, bool sums)
      : c_(shape), taps_(c_.kernel_height * c_.kernel_width), weights_((taps_ + 1) / 2 * 2 * c_.channel_bytes),
        acc_(kPixels * c_.channel_bytes), sums_(sums ? kPixels * c_.channel_bytes : 0),
        pixels_(small ? sums ? &DepthwiseConvolution::pixels<true, true> : &DepthwiseConvolution::pixels<true, false>
                : sums ? &DepthwiseConvolution::pixels<false, true> : &DepthwiseConvolution::pixels<false, false>) {
    for (int ky = 0; ky < c_.kernel_height; ++ky) {
      for (int kx = 0; kx < c_.kernel_width; ++kx) {
        offsets_.push_back(ky * c_.dilation_y * c_.row_bytes() + kx * c_.dilation_x * c_.channel_bytes);
      }
    }
    offsets_.push_back(0);  // an odd tap has a partner with the weight zero
    for (int64_t i = 0; i < taps_ * c_.channel_bytes; ++i) weights_[i] = weights[i];
    if (small) return;
    for (int tap = 0; tap < taps_; tap += 2) {
      int16_t* pair = weights_.data() + tap * c_.channel_bytes;
      Buffer<int16_t> two(pair, pair + 2 * c_.channel_bytes);
      for (int64_t channel = 0; channel < c_.channel_bytes; channel += kChannels) {
        const auto one = load_register<Shorts>(two.data() + channel);
        const auto other = load_register<Shorts>(two.data() + c_.channel_bytes + channel);
        store_register(pair + 2 * channel, zip_first(one, other));
        store_register(pair + 2 * channel + kChannels, zip_last(one, other));
      }
    }
  }

  void run(const Strip& strip, PixelFinish& finish, int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      finish.row(y);
      const uint8_t* line = strip.row(y * c_.stride_y);
      for (int64_t x = 0; x < c_.out_width; x += kPixels) {
        const int count = (int)std::min<int64_t>(kPixels, c_.out_width - x);
        (this->*pixels_)(line + x * c_.stride_x * c_.channel_bytes, count);
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
  typedef int32_t Signed __attribute__((vector_size(kRegister)));
  typedef float Reals __attribute__((vector_size(kRegister)));

  static FXPTQ_INLINE Shorts widened(const uint8_t* p) {
    HalfBytes codes;
    std::memcpy(&codes, p, sizeof codes);
    return __builtin_convertvector(codes, Shorts);
  }

  template <bool kSmall, bool kSums>
  void pixels(const uint8_t* at, int count) {
    const int64_t step = c_.stride_x * c_.channel_bytes;
    for (int64_t channel = 0; channel < c_.channel_bytes; channel += kChannels) {
      int i = 0;
      for (; i + 4 <= count; i += 4) some<kSmall, kSums, 4>(at + i * step + channel, i * c_.channel_bytes + channel);
      for (; i < count; ++i) some<kSmall, kSums, 1>(at + i * step + channel, i * c_.channel_bytes + channel);
    }
  }

  // The sums of P pixels in a register of channels.
  template <bool kSmall, bool kSums, int P>
  FXPTQ_INLINE void some(const uint8_t* at, int64_t to) {
    const int64_t step = c_.stride_x * c_.channel_bytes, bytes = c_.channel_bytes;
    const int16_t* weights = weights_.data() + to % bytes * (kSmall ? 1 : 2);
    Shorts codes_sum[P] = {}, small[P] = {};
    Pairs first[P] = {}, last[P] = {};
    if constexpr (kSmall) {
      for (int tap = 0; tap < taps_; ++tap, weights += bytes) {
        const Shorts w = load_register<Shorts>(weights);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const Shorts codes = widened(at + offsets_[tap] + p * step);
          small[p] = small[p] + codes * w;
          if constexpr (kSums) codes_sum[p] = codes_sum[p] + codes;
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) first[p] = zip_first(small[p], small[p] >> 15), last[p] = zip_last(small[p], small[p] >> 15);
    } else {
      for (int tap = 0; tap < taps_; tap += 2, weights += 2 * bytes) {
        const Pairs w_first = load_register<Pairs>(weights), w_last = load_register<Pairs>(weights + kChannels);
        const bool both = tap + 1 < taps_;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const Shorts one = widened(at + offsets_[tap] + p * step), other = widened(at + offsets_[tap + 1] + p * step);
          first[p] = dot2(first[p], zip_first(one, other), w_first);
          last[p] = dot2(last[p], zip_last(one, other), w_last);
          if constexpr (kSums) codes_sum[p] = codes_sum[p] + (both ? one + other : one);
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      store_in_order(first[p], last[p], acc_.data() + to + p * bytes);
      if constexpr (kSums) {
        const auto real = [](Pairs sums) { return __builtin_convertvector((Signed)sums, Reals); };
        const Shorts none = {};
        store_in_order(real(zip_first(codes_sum[p], none)), real(zip_last(codes_sum[p], none)), sums_.data() + to + p * bytes);
      }
    }
  }

  // Stores what zip_first and zip_last have made in the order of the channels.
  template <class V, class T>
  static FXPTQ_INLINE void store_in_order(V first, V last, T* to) {
    V low, high;
    if constexpr (kRegister == 64) {
      low = __builtin_shufflevector(first, last, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      high = __builtin_shufflevector(first, last, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    } else if constexpr (kRegister == 32) {
      low = __builtin_shufflevector(first, last, 0, 1, 2, 3, 8, 9, 10, 11);
      high = __builtin_shufflevector(first, last, 4, 5, 6, 7, 12, 13, 14, 15);
    } else {
      low = first, high = last;
    }
    store_register(to, low), store_register(to + kRegister / 4, high);
  }

  const ConvShape c_;
  const int taps_;
  Buffer<int16_t> weights_;  // [taps][channel bytes]; in pairs of taps for sums of 32 bits
  Buffer<int32_t> acc_;      // [pixels][channel bytes]
  Buffer<float> sums_;       // likewise
  void (DepthwiseConvolution::*pixels_)(const uint8_t*, int);  // sums of some pixels, one beside the other
  std::vector<ptrdiff_t> offsets_;  // of the taps of a pixel in the copy
};

}  // namespace fxptq

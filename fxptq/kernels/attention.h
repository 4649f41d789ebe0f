// Attention on codes, one (window, head) at a time and all of it in cache: q k^T in integers, scale, bias and mask,
// softmax, the quantizer of its output, and the product with v in integers.
//
// Sixteen queries stand in the lanes from the first product to the last, so that softmax runs along the loop over the keys
// and never across lanes. Terms of a logit that are the same for all keys of a query leave softmax unchanged and are left
// out: of q = s_q A + l_q and k = s_k K + c_k (K centred, signed) there remain s_q s_k sum(A K) + l_q s_k sum(K).
#pragma once

#include <algorithm>

#include "simd.h"

namespace fxptq {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// Codes as they lie in memory; the last axis is dense.
struct Heads {
  const uint8_t* data;
  const uint8_t* end;  // one past the last code
  int64_t window, head, row;  // strides, bytes
  int64_t rows, width;
};

// signed code = multiple * code - shift, in 8 bits.
struct Centre {
  uint8_t multiple, shift;
};

struct AttentionSettings {
  Centre key, value;
  float logit_scale, key_scale;                          // times log2(e), for 2^x
  float prob_scale, prob_offset;                         // code = round(clip(p * scale + offset, 0, levels))
  uint8_t prob_levels;
  float out_scale, out_column, out_row, out_constant;    // of sum(P V), sum(V) of the column, sum(P) of the row, 1
  uint8_t out_levels;                                    // 0: the output is values
  const float* bias;                                     // [heads or 1, keys, padded queries] or null
  int64_t bias_head;                                     // stride
  const float* mask;                                     // [masks, keys, padded queries] or null
  int64_t masks;
};

class Attention {
 public:
  Attention(const AttentionSettings& settings, const Heads& q, const Heads& k, const Heads& v)
      : s_(settings), q_(q), k_(k), v_(v) {
    words_ = (int)((q.width + 3) / 4);
    queries_ = (q.rows + kLanes - 1) / kLanes * kLanes;
    keys_ = (k.rows + 3) / 4 * 4;
    value_width_ = (v.width + kLanes - 1) / kLanes * kLanes;
    queries_words_.resize((words_ + 3) / 4 * 4 * queries_);
    key_codes_.resize(keys_ * words_ * 4 + 16);
    key_offsets_.resize(keys_);
    value_codes_.resize(keys_ * value_width_);
    column_terms_.resize(value_width_);
    weights_.resize(keys_ * kLanes, kNever);
    probs_.resize(keys_ / 4);
    sums_.resize(value_width_ * kLanes);
    zeros_.resize(kLanes);
  }

  // Output row i of this window and head starts at out + i * stride.
  template <class T>
  void run(int64_t window, int64_t head, T* out, int64_t stride) {
    pack_queries(q_.data + window * q_.window + head * q_.head);
    pack_keys(k_.data + window * k_.window + head * k_.head);
    pack_values(v_.data + window * v_.window + head * v_.head);
    const float* bias = s_.bias ? s_.bias + head * s_.bias_head : nullptr;
    const float* mask = s_.mask ? s_.mask + window % s_.masks * k_.rows * queries_ : nullptr;
    for (int64_t first = 0; first < q_.rows; first += kLanes) {
      // 2^x of the logits themselves is right as long as the sum stays well within the range of float; where it does
      // not, the largest logit is taken off first.
      Floats total = weights(first, bias, mask, Floats{}, true);
      if (!moderate(total)) {
        const Floats top = weights(first, bias, mask, Floats{}, false);
        total = weights(first, bias, mask, top, true);
      }
      const Ints row_sum = probabilities(s_.prob_scale / total);
      products();
      write(out + first * stride, stride, (int)std::min<int64_t>(kLanes, q_.rows - first), row_sum);
    }
  }

 private:
  static constexpr float kNever = -1e30f;  // the weight of keys that only fill up a group of four: its code is 0

  // Up to sixteen codes of a row, from `column` on; what lies beyond the row is unspecified.
  static Bytes16 load_codes(const Heads& h, const uint8_t* row, int64_t column) {
    Bytes16 codes = {};
    const uint8_t* at = row + column;
    if (at + 16 <= h.end) {
      std::memcpy(&codes, at, 16);
    } else {
      std::memcpy(&codes, at, std::min<int64_t>(16, h.width - column));
    }
    return codes;
  }

  static Bytes16 signed_codes(Bytes16 codes, Centre centre) {
    return codes + (codes & splat_bytes(centre.multiple == 2 ? 255 : 0)) - splat_bytes(centre.shift);
  }

  static Bytes16 splat_bytes(uint8_t byte) {
    Bytes16 all;
    std::memset(&all, byte, sizeof all);
    return all;
  }

  // The first n bytes set, the others zero.
  static Bytes16 first_bytes(int64_t n) {
    static const uint8_t mask[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    Bytes16 first;
    std::memcpy(&first, mask + 16 - std::min<int64_t>(n, 16), 16);
    return first;
  }

  // [words][queries]: groups of four codes of sixteen queries side by side. Codes beyond a row's end meet zeros of the keys.
  void pack_queries(const uint8_t* from) {
    typedef uint32_t Quad __attribute__((vector_size(16)));
    for (int64_t i = 0; i < q_.rows; i += 4) {
      const int64_t last = q_.rows - 1;
      for (int64_t column = 0; column < q_.width; column += 16) {
        Quad r[4];
        for (int64_t n = 0; n < 4; ++n) r[n] = (Quad)load_codes(q_, from + std::min(i + n, last) * q_.row, column);
        const Quad low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
        const Quad high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
        const Quad low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
        const Quad high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
        uint32_t* to = queries_words_.data() + column / 4 * queries_ + i;
        store(to, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
        store(to + queries_, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
        store(to + 2 * queries_, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
        store(to + 3 * queries_, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
      }
    }
  }

  // [keys][words * 4] signed codes, zero beyond the row's end, and l_q s_k times their sum.
  void pack_keys(const uint8_t* from) {
    uint8_t* to = key_codes_.data();
    for (int64_t j = 0; j < k_.rows; ++j, from += k_.row, to += 4 * words_) {
      int32_t total = 0;
      for (int64_t column = 0; column < k_.width; column += 16) {
        const Bytes16 codes = signed_codes(load_codes(k_, from, column), s_.key) & first_bytes(k_.width - column);
        store(to + column, codes);  // the zeros past the row are overwritten by the next row
        total += sum_signed(codes);
      }
      key_offsets_[j] = s_.key_scale * (float)total;
    }
  }

  static int32_t sum_signed(Bytes16 codes) {
#if FXPTQ_AVX512
    // Bytes plus 128, summed by eights.
    const __m128i sums = _mm_sad_epu8(_mm_xor_si128((__m128i)codes, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2) - 16 * 128;
#else
    int32_t total = 0;
    for (int i = 0; i < 16; ++i) total += (int8_t)codes[i];
    return total;
#endif
  }

  // [keys / 4][padded width][4] signed codes; what fills up the last four has probability 0.
  void pack_values(const uint8_t* from) {
    for (int64_t j = 0; j < keys_; j += 4) {
      for (int64_t column = 0; column < v_.width; column += 16) {
        Bytes16 r[4];
        for (int64_t n = 0; n < 4; ++n) {
          r[n] = signed_codes(load_codes(v_, from + std::min(j + n, v_.rows - 1) * v_.row, column), s_.value);
        }
        const Bytes16 low01 = __builtin_shufflevector(r[0], r[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const Bytes16 low23 = __builtin_shufflevector(r[2], r[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const Bytes16 high01 =
            __builtin_shufflevector(r[0], r[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        const Bytes16 high23 =
            __builtin_shufflevector(r[2], r[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        uint8_t* to = value_codes_.data() + j * value_width_ + 4 * column;
        store(to, pairs_low(low01, low23));
        store(to + 16, pairs_high(low01, low23));
        store(to + 32, pairs_low(high01, high23));
        store(to + 48, pairs_high(high01, high23));
      }
    }
    std::fill(column_terms_.begin(), column_terms_.end(), s_.out_constant);
    if (s_.out_column == 0.0f) return;
    for (int64_t d = 0; d < v_.width; ++d) {
      int32_t total = 0;
      for (int64_t j = 0; j < v_.rows; ++j) total += (int8_t)value_codes_[j / 4 * 4 * value_width_ + 4 * d + j % 4];
      column_terms_[d] += s_.out_column * (float)total;
    }
  }

  static Bytes16 pairs_low(Bytes16 a, Bytes16 b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  }
  static Bytes16 pairs_high(Bytes16 a, Bytes16 b) {
    return __builtin_shufflevector(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  }

  static bool moderate(Floats total) {
    const Ints in_range = (total > 1e-15f) & (total < 1e30f);
    return sum(in_range) == -kLanes;
  }

  // Of sixteen queries: fills weights_[key][lane] with 2^(logit - top) and returns their sum, or returns the largest logit.
  Floats weights(int64_t first, const float* bias, const float* mask, Floats top, bool exponential) {
    if (!exponential) return weights_of<0, false, true>(first, bias, mask, top);
    if (mask) return weights_in<true>(first, bias, mask, top);
    return weights_in<false>(first, bias, mask, top);
  }

  template <bool kMask>
  Floats weights_in(int64_t first, const float* bias, const float* mask, Floats top) {
    switch (words_) {
      case 2: return weights_of<2, true, kMask>(first, bias, mask, top);
      case 3: return weights_of<3, true, kMask>(first, bias, mask, top);
      case 4: return weights_of<4, true, kMask>(first, bias, mask, top);
      case 8: return weights_of<8, true, kMask>(first, bias, mask, top);
      default: return weights_of<0, true, kMask>(first, bias, mask, top);
    }
  }

  // kWords = 0: any number of words. With kMask the mask may still be null.
  template <int kWords, bool kExponential, bool kMask>
  Floats weights_of(int64_t first, const float* bias, const float* mask, Floats top) {
    Floats result = kExponential ? Floats{} : splat(-__builtin_inff());
    Words q[kWords ? kWords : 1];
    for (int c = 0; c < kWords; ++c) q[c] = load<Words>(queries_words_.data() + first + c * queries_);
    Logits at{kWords ? kWords : words_,
              queries_,
              queries_words_.data() + first,
              key_codes_.data(),
              key_offsets_.data(),
              bias ? bias + first : zeros_.data(),
              kMask && mask ? mask + first : zeros_.data(),
              bias ? queries_ : 0,
              kMask && mask ? queries_ : 0,
              splat(s_.logit_scale),
              top,
              weights_.data()};
    int64_t j = 0;
    for (; j + 4 <= k_.rows; j += 4) keys_of<4, kWords, kExponential, kMask>(at, q, result);
    for (; j < k_.rows; ++j) keys_of<1, kWords, kExponential, kMask>(at, q, result);
    return result;
  }

  // Where a loop over keys stands.
  struct Logits {
    int words;
    int64_t row;
    const uint32_t* queries;
    const uint8_t* key;
    const float *offset, *bias, *mask;
    int64_t bias_step, mask_step;
    Floats scale, top;
    float* weight;
  };

  template <int N, int kWords, bool kExponential, bool kMask>
  static inline __attribute__((always_inline)) void keys_of(Logits& at, const Words* q, Floats& result) {
    const int words = kWords ? kWords : at.words;
    Ints acc[N] = {};
    for (int c = 0; c < words; ++c) {
      const Words query = kWords ? q[c] : load<Words>(at.queries + c * at.row);
      for (int i = 0; i < N; ++i) acc[i] = dot4(acc[i], query, splat_word(at.key + 4 * (i * words + c)));
    }
    Floats x[N];
    for (int i = 0; i < N; ++i) x[i] = to_floats(acc[i]) * at.scale + load<Floats>(at.bias + i * at.bias_step);
    for (int i = 0; i < N; ++i) x[i] = x[i] + at.offset[i];
    if constexpr (kMask) {
      for (int i = 0; i < N; ++i) x[i] = x[i] + load<Floats>(at.mask + i * at.mask_step);
      at.mask += N * at.mask_step;
    }
    if constexpr (kExponential) {
      for (int i = 0; i < N; ++i) x[i] = x[i] - at.top;
      exp2(x);
      for (int i = 0; i < N; ++i) store(at.weight + i * kLanes, x[i]);
      for (int i = 0; i < N; ++i) result = result + x[i];
    } else {
      for (int i = 0; i < N; ++i) result = maximum(result, x[i]);
    }
    at.key += 4 * N * words, at.offset += N, at.bias += N * at.bias_step, at.weight += N * kLanes;
  }

  // Fills probs_[keys / 4] with the codes of four keys in each lane and returns their sum.
  Ints probabilities(Floats scale) {
    Ints row_sum = {};
    const int64_t fours = keys_ / 4;
    const float* weight = weights_.data();
    const Floats offset = splat(s_.prob_offset);
    const uint8_t levels = s_.prob_levels;
    Words* probs = probs_.data();
    for (int64_t j = 0; j < fours; ++j, weight += 4 * kLanes) {
      Floats y[4];
      for (int i = 0; i < 4; ++i) y[i] = load<Floats>(weight + i * kLanes) * scale + offset;
      probs[j] = four_codes(y, levels);
      row_sum = dot4(row_sum, probs[j], Words{} + 0x01010101u);
    }
    return row_sum;
  }

  // sums_[column][lane]: blocks of columns as even as possible, at most twelve accumulators at a time.
  void products() {
    const int width = (int)v_.width, blocks = (width + 11) / 12;
    for (int b = 0, column = 0; b < blocks; ++b) {
      const int here = (width - column + blocks - b - 1) / (blocks - b);
      products_of(here, column);
      column += here;
    }
  }

  void products_of(int columns, int column) {
    static constexpr void (Attention::*table[])(int) = {
        &Attention::product<1>, &Attention::product<2>, &Attention::product<3>,  &Attention::product<4>,
        &Attention::product<5>, &Attention::product<6>, &Attention::product<7>,  &Attention::product<8>,
        &Attention::product<9>, &Attention::product<10>, &Attention::product<11>, &Attention::product<12>};
    (this->*table[columns - 1])(column);
  }

  template <int kColumns>
  void product(int column) {
    Ints acc[kColumns];
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) acc[c] = Ints{};
    const uint8_t* values = value_codes_.data() + 4 * column;
    const int64_t fours = keys_ / 4, step = 4 * value_width_;
    const Words* probs = probs_.data();
    for (int64_t j = 0; j < fours; ++j, values += step) {
      const Words p = probs[j];
#pragma GCC unroll 12
      for (int c = 0; c < kColumns; ++c) acc[c] = dot4(acc[c], p, splat_word(values + 4 * c));
    }
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) store(sums_.data() + (column + c) * kLanes, acc[c]);
  }

  Floats output(int64_t column, Floats row_term) const {
    return to_floats(load<Ints>(sums_.data() + column * kLanes)) * s_.out_scale + row_term + column_terms_[column];
  }

  void write(float* out, int64_t stride, int rows, Ints row_sum) const {
    const Floats row_term = to_floats(row_sum) * s_.out_row;
    for (int64_t d = 0; d < v_.width; ++d) {
      const Floats y = output(d, row_term);
      for (int i = 0; i < rows; ++i) out[i * stride + d] = y[i];
    }
  }

  // Sixteen columns at a time: their codes stand four to a lane, and a transposition of 4 x 4 words makes rows of them.
  void write(uint8_t* out, int64_t stride, int rows, Ints row_sum) const {
    const Floats row_term = to_floats(row_sum) * s_.out_row;
    for (int64_t d = 0; d < v_.width; d += kLanes) {
      const int n = (int)std::min<int64_t>(kLanes, v_.width - d);
      Words words[4] = {};
      for (int c = 0; c < n; c += 4) {
        Floats y[4];
        for (int i = 0; i < 4; ++i) y[i] = output(d + c + i, row_term);
        words[c / 4] = four_codes(y, s_.out_levels);
      }
      alignas(64) uint8_t bytes[kLanes * 16];
      rows_of_words(words, bytes);
      for (int i = 0; i < rows; ++i) copy_bytes(out + i * stride + d, bytes + 16 * i, n);
    }
  }

  static void copy_bytes(uint8_t* to, const uint8_t* from, int n) {
    if (n == 16) {
      std::memcpy(to, from, 16);
      return;
    }
    if (n & 8) std::memcpy(to, from, 8), to += 8, from += 8;
    if (n & 4) std::memcpy(to, from, 4), to += 4, from += 4;
    if (n & 2) std::memcpy(to, from, 2), to += 2, from += 2;
    if (n & 1) *to = *from;
  }

  const AttentionSettings s_;
  const Heads q_, k_, v_;
  int words_;
  int64_t queries_, keys_, value_width_;
  Buffer<uint32_t> queries_words_;
  Buffer<uint8_t> key_codes_, value_codes_;
  Buffer<float> key_offsets_, column_terms_, weights_, zeros_;
  Buffer<Words> probs_;
  Buffer<int32_t> sums_;
};

}  // namespace fxptq

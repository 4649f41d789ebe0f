// Attention on codes, one (window, head) at a time and all of it in cache: q k^T in integers, scale, bias and mask,
// softmax, the quantizer of its output, and the product with v in integers.
//
// Sixteen queries stand in the lanes from the first product to the last, so that softmax runs along the loop over the keys
// and never across lanes. Terms of a logit that are the same for all keys of a query leave softmax unchanged and are left
// out: of q = s_q A + l_q and k = s_k K + c_k (K centred, signed) there remain s_q s_k sum(A K) + l_q s_k sum(K).
#pragma once

#include <algorithm>
#include <vector>

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
  float prob_scale, prob_offset, prob_levels;            // code = round(clip(p * scale + offset, 0, levels))
  float out_scale, out_column, out_row, out_constant;    // of sum(P V), sum(V) of the column, sum(P) of the row, 1
  float out_levels;                                      // 0: the output is values
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
    queries_words_.resize(words_ * queries_);
    key_codes_.resize(keys_ * words_ * 4 + 16);
    key_offsets_.resize(keys_);
    value_codes_.resize(keys_ * value_width_);
    column_terms_.resize(value_width_);
    logits_.resize(keys_ * kLanes);
    probs_.resize(keys_ / 4);
    sums_.resize(value_width_ * kLanes);
    zeros_.resize(kLanes);
  }

  // Output row i of this window and head starts at out + i * stride.
  template <class T>
  void run(int64_t window, int64_t head, T* out, int64_t stride) {
    pack_queries(window, head);
    pack_keys(window, head);
    pack_values(window, head);
    const float* bias = s_.bias ? s_.bias + head * s_.bias_head : nullptr;
    const float* mask = s_.mask ? s_.mask + window % s_.masks * k_.rows * queries_ : nullptr;
    for (int64_t first = 0; first < q_.rows; first += kLanes) {
      const Floats top = logits(first, bias, mask);
      const Floats total = exponentials(top);
      const Ints row_sum = probabilities(s_.prob_scale / total);
      products();
      write(out + first * stride, stride, (int)std::min<int64_t>(kLanes, q_.rows - first), row_sum);
    }
  }

 private:
  // Up to sixteen codes of a row, from `column` on; what lies beyond the row is unspecified.
  static Bytes16 load_codes(const Heads& h, const uint8_t* row, int64_t column) {
    Bytes16 codes = {};
    if (row + column + 16 <= h.end) {
      std::memcpy(&codes, row + column, 16);
    } else {
      std::memcpy(&codes, row + column, std::min<int64_t>(16, h.width - column));
    }
    return codes;
  }

  // The first n bytes as they are, the others zero.
  static Bytes16 keep_bytes(Bytes16 codes, int64_t n) {
    static const uint8_t mask[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    if (n >= 16) return codes;
    Bytes16 kept;
    std::memcpy(&kept, mask + 16 - n, 16);
    return codes & kept;
  }

  // [words][queries]: groups of four codes of sixteen queries side by side. Codes beyond a row's end meet zeros of the keys.
  void pack_queries(int64_t window, int64_t head) {
    const uint8_t* from = q_.data + window * q_.window + head * q_.head;
    for (int64_t i = 0; i < q_.rows; ++i, from += q_.row) {
      for (int c = 0; c < words_; ++c) {
        uint32_t word = 0;
        const uint8_t* at = from + 4 * c;
        std::memcpy(&word, at, at + 4 <= q_.end ? 4 : q_.end - at);
        queries_words_[c * queries_ + i] = word;
      }
    }
  }

  // [keys][words * 4] signed codes, zero beyond the row's end, and l_q s_k times their sum.
  void pack_keys(int64_t window, int64_t head) {
    const uint8_t* from = k_.data + window * k_.window + head * k_.head;
    uint8_t* to = key_codes_.data();
    for (int64_t j = 0; j < k_.rows; ++j, from += k_.row, to += 4 * words_) {
      int32_t total = 0;
      for (int64_t column = 0; column < k_.width; column += 16) {
        const Bytes16 codes = load_codes(k_, from, column) * s_.key.multiple - s_.key.shift;
        const Bytes16 kept = keep_bytes(codes, k_.width - column);
        std::memcpy(to + column, &kept, 16);  // the zeros past the row are overwritten by the next row
        total += sum_signed(kept);
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

  // [keys / 4][padded width][4] signed codes; rows beyond the last key are zero, as are their probabilities.
  void pack_values(int64_t window, int64_t head) {
    const uint8_t* from = v_.data + window * v_.window + head * v_.head;
    for (int64_t j = 0; j < keys_; j += 4) {
      for (int64_t column = 0; column < v_.width; column += 16) {
        Bytes16 r[4] = {};
        for (int i = 0; i < 4 && j + i < v_.rows; ++i) {
          r[i] = load_codes(v_, from + (j + i) * v_.row, column) * s_.value.multiple - s_.value.shift;
        }
        const Bytes16 low01 = __builtin_shufflevector(r[0], r[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const Bytes16 low23 = __builtin_shufflevector(r[2], r[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const Bytes16 high01 =
            __builtin_shufflevector(r[0], r[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        const Bytes16 high23 =
            __builtin_shufflevector(r[2], r[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        const Bytes16 quads[4] = {pairs_low(low01, low23), pairs_high(low01, low23), pairs_low(high01, high23),
                                  pairs_high(high01, high23)};
        std::memcpy(value_codes_.data() + j * value_width_ + 4 * column, quads, 64);
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

  Floats logits(int64_t first, const float* bias, const float* mask) {
    switch (words_) {
      case 2: return masked_logits<2>(first, bias, mask);
      case 3: return masked_logits<3>(first, bias, mask);
      case 4: return masked_logits<4>(first, bias, mask);
      case 8: return masked_logits<8>(first, bias, mask);
      default: return masked_logits<0>(first, bias, mask);
    }
  }

  template <int kWords>
  Floats masked_logits(int64_t first, const float* bias, const float* mask) {
    return mask ? logits_of<kWords, true>(first, bias, mask) : logits_of<kWords, false>(first, bias, nullptr);
  }

  // Fills logits_[key][lane], in powers of two, and returns the largest of each lane. kWords = 0: any number of words.
  template <int kWords, bool kMask>
  Floats logits_of(int64_t first, const float* bias, const float* mask) {
    const int words = kWords ? kWords : words_;
    const float* added = bias ? bias + first : zeros_.data();
    const int64_t step = bias ? queries_ : 0;
    const float* hidden = kMask ? mask + first : nullptr;
    const uint32_t* queries = queries_words_.data() + first;
    const uint8_t* key = key_codes_.data();
    Words q[kWords ? kWords : 1];
    for (int c = 0; c < kWords; ++c) q[c] = load<Words>(queries + c * queries_);
    Floats top = splat(-__builtin_inff());
    for (int64_t j = 0; j < k_.rows; ++j, key += 4 * words, added += step) {
      Ints acc = {};
      for (int c = 0; c < words; ++c) acc = dot4(acc, kWords ? q[c] : load<Words>(queries + c * queries_), splat_word(key + 4 * c));
      Floats x = to_floats(acc) * s_.logit_scale + load<Floats>(added) + key_offsets_[j];
      if constexpr (kMask) {
        x = x + load<Floats>(hidden);
        hidden += queries_;
      }
      top = maximum(top, x);
      store(logits_.data() + j * kLanes, x);
    }
    return top;
  }

  Floats exponentials(Floats top) {
    Floats total = {};
    for (int64_t j = 0; j < k_.rows; ++j) {
      const Floats e = exp2_negative(load<Floats>(logits_.data() + j * kLanes) - top);
      total = total + e;
      store(logits_.data() + j * kLanes, e);
    }
    return total;
  }

  // Fills probs_[keys / 4] with the codes of four keys in each lane and returns their sum where the output needs it.
  Ints probabilities(Floats scale) {
    Ints row_sum = {};
    for (int64_t j = 0; j < keys_; j += 4) {
      Words four = {};
      const int n = (int)std::min<int64_t>(4, k_.rows - j);
      if (n == 4) {
        for (int i = 0; i < 4; ++i) four |= prob_code(j + i, scale) << (8 * i);
      } else {
        for (int i = 0; i < n; ++i) four |= prob_code(j + i, scale) << (8 * i);
      }
      probs_[j / 4] = four;
      if (s_.out_row != 0.0f) row_sum = dot4(row_sum, four, Words{} + 0x01010101u);
    }
    return row_sum;
  }

  Words prob_code(int64_t j, Floats scale) const {
    const Floats y = load<Floats>(logits_.data() + j * kLanes) * scale + s_.prob_offset;
    return (Words)nearest(minimum(maximum(y, splat(0.0f)), splat(s_.prob_levels)));
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
    Ints acc[kColumns] = {};
    const uint8_t* values = value_codes_.data() + 4 * column;
    for (int64_t j = 0; j < keys_ / 4; ++j, values += 4 * value_width_) {
      const Words p = probs_[j];
      for (int c = 0; c < kColumns; ++c) acc[c] = dot4(acc[c], p, splat_word(values + 4 * c));
    }
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

  void write(uint8_t* out, int64_t stride, int rows, Ints row_sum) const {
    const Floats row_term = to_floats(row_sum) * s_.out_row;
    for (int64_t d = 0; d < v_.width; d += 4) {
      const int n = (int)std::min<int64_t>(4, v_.width - d);
      Words four = {};
      for (int c = 0; c < n; ++c) {
        const Floats y = minimum(maximum(output(d + c, row_term), splat(0.0f)), splat(s_.out_levels));
        four |= (Words)nearest(y) << (8 * c);
      }
      uint32_t words[kLanes];
      store(words, four);
      if (n == 4) {
        for (int i = 0; i < rows; ++i) std::memcpy(out + i * stride + d, words + i, 4);
      } else {
        for (int i = 0; i < rows; ++i) std::memcpy(out + i * stride + d, words + i, n);
      }
    }
  }

  const AttentionSettings s_;
  const Heads q_, k_, v_;
  int words_;
  int64_t queries_, keys_, value_width_;
  std::vector<uint32_t> queries_words_;
  std::vector<uint8_t> key_codes_, value_codes_;
  std::vector<float> key_offsets_, column_terms_, logits_, zeros_;
  std::vector<Words> probs_;
  std::vector<int32_t> sums_;
};

}  // namespace fxptq

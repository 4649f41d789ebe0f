// Attention on codes, one (window, head) at a time and all of it in cache: q k^T in integers, scale, bias and mask,
// softmax, the quantizer of its output, and the product with v in integers.
//
// Sixteen queries stand in the lanes from the first product to the last, so that softmax runs along the loop over the keys
// and never across lanes. Terms of a logit that are the same for all keys of a query leave softmax unchanged and are
// omitted: of q = s_q A + l_q and k = s_k K + c_k (K centred, signed) there remain s_q s_k sum(A K) + l_q s_k sum(K). Every head
// has numbers of its own, and so has every column of v. The softmax's codes P stand for values on a grid, or for shares: P / sum(P).
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "tile.h"

namespace fxptq {

// Codes in memory; the last axis is dense.
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
  const float *logit_scale, *key_scale;                  // [heads], times log2(e), for 2^x
  bool shares;                                           // whether P stands for P / sum(P), and p for p / largest of its row
  float prob_scale, prob_offset;                         // code P = round(clip(p * scale + offset, 0, levels))
  uint8_t prob_levels;
  // [heads][padded columns], of sum(P V) (of shares: divided by sum(P)), sum(V) of the column, sum(P) of the row, and 1.
  const float *out_scale, *out_column, *out_row, *out_constant;
  bool row_sums;                                         // whether out_row is more than zeros
  uint8_t out_levels;                                    // 0: the output is values
  const float* bias;                                     // [heads or 1, keys, padded queries] or null
  int64_t bias_head;                                     // stride
  const float* mask;                                     // [masks, keys, padded queries] or null
  int64_t masks;
  uint8_t query_levels = 255;                             // largest code of the queries
};

#if FXPTQ_SPLIT
constexpr int kKeysAtOnce = 2, kColumnsAtOnce = 6;  // sums of sixteen queries that stay in registers
#else
constexpr int kKeysAtOnce = 4, kColumnsAtOnce = 12;
#endif

class Attention {
 public:
  Attention(const AttentionSettings& settings, const Heads& q, const Heads& k, const Heads& v)
      : s_(settings), q_(q), k_(k), v_(v) {
    words_ = (int)((q.width + 3) / 4);
    queries_ = (q.rows + kLanes - 1) / kLanes * kLanes;
    keys_ = (k.rows + 3) / 4 * 4;
    value_width_ = (v.width + kLanes - 1) / kLanes * kLanes;
    queries_words_.resize((words_ + 3) / 4 * 4 * queries_);
    key_codes_.resize(keys_ * words_ * 4 + 64);
    key_sums_.resize(2 * keys_);
    key_offsets_.resize(keys_);
    key_starts_.resize(kCodeShift ? keys_ : 0);
    value_starts_.resize(kCodeShift ? value_width_ : 0);
    value_codes_.resize(keys_ * value_width_);
    column_terms_.resize(value_width_);
    weights_.resize(keys_ * kLanes, kNever);
    probs_.resize(keys_ / 4);
    sums_.resize(value_width_ * kLanes);
    zeros_.resize(kLanes);
#if FXPTQ_DOT16
    const Sums16 logits = sums16(s_.query_levels, largest_of(s_.key)), outputs = sums16(s_.prob_levels, largest_of(s_.value));
    logit_product_ = words_ <= logits.steps ? Product::kSums16 : Product::kPairs;
    output_product_ = outputs.product == Product::kSums16 ? Product::kSums16 : Product::kPairs;
    output_steps_ = outputs.steps;
    if (logit_product_ == Product::kPairs) wide_keys_.resize(2 * key_codes_.size());
    if (output_product_ == Product::kPairs) wide_values_.resize(2 * value_codes_.size());
#endif
  }

  // Output row i of this window and head starts at out + i * stride.
  template <class T>
  void run(int64_t window, int64_t head, T* out, int64_t stride) {
    logit_scale_ = s_.logit_scale[head], key_scale_ = s_.key_scale[head];
    out_ = head * value_width_;
    pack_queries(q_.data + window * q_.window + head * q_.head);
    pack_keys(k_.data + window * k_.window + head * k_.head);
    pack_values(v_.data + window * v_.window + head * v_.head);
#if FXPTQ_DOT16
    if (logit_product_ == Product::kPairs) widen(key_codes_, wide_keys_);
    if (output_product_ == Product::kPairs) widen(value_codes_, wide_values_);
#endif
    const float* bias = s_.bias ? s_.bias + head * s_.bias_head : nullptr;
    const float* mask = s_.mask ? s_.mask + window % s_.masks * k_.rows * queries_ : nullptr;
    for (int64_t first = 0; first < q_.rows; first += kLanes) {
      // 2^x of the logits themselves is exact enough while the sum (of shares: the largest power) stays well within the range
      // of float; elsewhere the largest logit is subtracted first.
      Floats total = weights(first, bias, mask, Floats{}, true);
      if (!moderate(total)) {
        const Floats top = weights(first, bias, mask, Floats{}, false);
        total = weights(first, bias, mask, top, true);
      }
      const Floats row_sum = to_floats(probabilities(s_.prob_scale / total));
      products();
      write(out + first * stride, stride, (int)std::min<int64_t>(kLanes, q_.rows - first), row_sum);
    }
  }

 private:
  static constexpr float kNever = -1e30f;  // the weight of keys that pad a group of four: its code is 0

  static int largest_of(Centre centre) { return centre.multiple == 2 ? centre.shift : 128; }

#if FXPTQ_DOT16
  // Each group of four signed codes as two pairs of 16-bit integers: the even bytes, then the odd ones.
  static void widen(const Buffer<uint8_t>& from, Buffer<uint8_t>& to) {
    for (size_t i = 0; i + 64 <= from.size(); i += 64) {
      const Words four = load<Words>(from.data() + i);
      store_in_turns(to.data() + 2 * i, even_signed(four), odd_signed(four));
    }
  }
#endif

  // Sixteen codes of a row, from `column` on; codes beyond the row have any value.
  static FXPTQ_INLINE Bytes16 some_codes(const Heads& h, const uint8_t* row, int64_t column) {
    if (row + column + 16 <= h.end) return load<Bytes16>(row + column);
    Bytes16 few = {};
    std::memcpy(&few, row + column, std::min<int64_t>(16, h.width - column));
    return few;
  }

  // Sixteen codes of four rows side by side; rows beyond the last one repeat it.
  static FXPTQ_INLINE Bytes four_rows(const Heads& h, const uint8_t* from, int64_t row, int64_t column) {
    const uint8_t *r0 = from + row * h.row, *last = from + (h.rows - 1) * h.row;
    const uint8_t *r1 = std::min(r0 + h.row, last), *r2 = std::min(r0 + 2 * h.row, last), *r3 = std::min(r0 + 3 * h.row, last);
    return join(some_codes(h, r0, column), some_codes(h, r1, column), some_codes(h, r2, column), some_codes(h, r3, column));
  }

  static FXPTQ_INLINE Bytes signed_codes(Bytes codes, Centre centre) {
    return codes + (codes & splat_byte(centre.multiple == 2 ? 255 : 0)) - splat_byte(centre.shift);
  }

  // [words][queries]: groups of four codes of sixteen queries side by side. Codes beyond a row's end meet zeros of the keys.
  void pack_queries(const uint8_t* from) {
    for (int64_t i = 0; i < q_.rows; i += 4) {
      for (int64_t column = 0; column < q_.width; column += 16) {
        alignas(64) uint8_t words[64];
        store(words, shifted(by_word(four_rows(q_, from, i, column))));
        uint32_t* to = queries_words_.data() + column / 4 * queries_ + i;
        for (int c = 0; c < 4; ++c) std::memcpy(to + c * queries_, words + 16 * c, 16);
      }
    }
  }

  // [keys][words * 4] signed codes, zero beyond the row's end, and l_q s_k times their sum.
  void pack_keys(const uint8_t* from) {
    const int row_bytes = 4 * words_;
    for (int64_t j = 0; j < k_.rows; j += 4) {
      Sums sums = {};
      for (int64_t column = 0; column < k_.width; column += 16) {
        const int n = (int)std::min<int64_t>(16, k_.width - column);
        const Bytes codes = signed_codes(four_rows(k_, from, j, column), s_.key) & first_of_rows(n);
        sums = sums + row_sums(codes);
        alignas(64) uint8_t rows[64];
        store(rows, codes);
        uint8_t* to = key_codes_.data() + j * row_bytes + column;
        // Where a row fits sixteen bytes, the bytes past it are overwritten by the next row.
        const int here = row_bytes <= 16 ? 16 : std::min(16, row_bytes - (int)column);
        for (int i = 0; i < 4; ++i) copy_bytes(to + i * row_bytes, rows + 16 * i, here);
      }
      store(key_sums_.data() + 2 * j, sums);
    }
    const int64_t keys = k_.rows;
    const int64_t* sums = key_sums_.data();
    for (int64_t j = 0; j < keys; ++j) key_offsets_[j] = key_scale_ * (float)(sums[2 * j] + sums[2 * j + 1]);
    if constexpr (kCodeShift != 0) {
      for (int64_t j = 0; j < keys; ++j) key_starts_[j] = kCodeShift * (int32_t)(sums[2 * j] + sums[2 * j + 1]);
    }
  }

  // [keys / 4][padded width][4] signed codes; keys that pad the last four have probability 0.
  void pack_values(const uint8_t* from) {
    for (int64_t j = 0; j < keys_; j += 4) {
      for (int64_t column = 0; column < v_.width; column += 16) {
        const Words words = by_word(signed_codes(four_rows(v_, from, j, column), s_.value));
        store(value_codes_.data() + j * value_width_ + 4 * column, turn_fours((Bytes)words));
      }
    }
    for (int64_t d = 0; d < value_width_; d += kLanes) {
      Ints total = {};
      for (int64_t j = 0; j < keys_; j += 4) {
        // Keys that pad the last four do not count.
        const uint32_t ones = v_.rows - j >= 4 ? 0x01010101u : 0x01010101u >> (8 * (4 - (v_.rows - j)));
        total = dot4_small(total, Words{} + ones, load<Words>(value_codes_.data() + j * value_width_ + 4 * d));
      }
      store(column_terms_.data() + d,
            to_floats(total) * load<Floats>(s_.out_column + out_ + d) + load<Floats>(s_.out_constant + out_ + d));
      if constexpr (kCodeShift != 0) {
        Ints all = {};  // keys that pad the last four count too, because 0 is shifted as well
        for (int64_t j = 0; j < keys_; j += 4) {
          all = dot4(all, Words{} + 0x01010101u, load<Words>(value_codes_.data() + j * value_width_ + 4 * d));
        }
        store(value_starts_.data() + d, all * splat(kCodeShift));
      }
    }
  }

  static bool moderate(Floats total) {
    const Ints in_range = (total > 1e-15f) & (total < 1e30f);
    return sum(in_range) == -kLanes;
  }

  // For sixteen queries: fills weights_[key][lane] with 2^(logit - top) and returns their sum (of shares: the largest of them), or
  // returns the largest logit.
  Floats weights(int64_t first, const float* bias, const float* mask, Floats top, bool exponential) {
#if FXPTQ_DOT16
    if (logit_product_ == Product::kSums16) return weights_by<Product::kSums16>(first, bias, mask, top, exponential);
    return weights_by<Product::kPairs>(first, bias, mask, top, exponential);
#else
    return weights_by<Product::kBytes>(first, bias, mask, top, exponential);
#endif
  }

  template <Product P>
  Floats weights_by(int64_t first, const float* bias, const float* mask, Floats top, bool exponential) {
    if (!exponential) return weights_of<P, 0, false, true>(first, bias, mask, top);
    if (mask) return weights_in<P, true>(first, bias, mask, top);
    return weights_in<P, false>(first, bias, mask, top);
  }

  template <Product P, bool kMask>
  Floats weights_in(int64_t first, const float* bias, const float* mask, Floats top) {
    switch (words_) {
      case 2: return weights_of<P, 2, true, kMask>(first, bias, mask, top);
      case 3: return weights_of<P, 3, true, kMask>(first, bias, mask, top);
      case 4: return weights_of<P, 4, true, kMask>(first, bias, mask, top);
      case 8: return weights_of<P, 8, true, kMask>(first, bias, mask, top);
      default: return weights_of<P, 0, true, kMask>(first, bias, mask, top);
    }
  }

  // kWords = 0: any number of words. With kMask the mask may still be null.
  template <Product P, int kWords, bool kExponential, bool kMask>
  Floats weights_of(int64_t first, const float* bias, const float* mask, Floats top) {
    // Members are copied first, because the compiler must assume that every store below changes them.
    constexpr int kWord = Arithmetic<P>::kWord;
    const int words = kWords ? kWords : words_;
    const int64_t keys = k_.rows, row = queries_;
    const int64_t bias_step = bias ? row : 0, mask_step = kMask && mask ? row : 0;
    const uint32_t* queries = queries_words_.data() + first;
    const uint8_t* key = P == Product::kPairs ? wide_keys_.data() : key_codes_.data();
    const float* offset = key_offsets_.data();
    [[maybe_unused]] const int32_t* start = key_starts_.data();
    const float* added = bias ? bias + first : zeros_.data();
    const float* hidden = kMask && mask ? mask + first : zeros_.data();
    const Floats scale = splat(logit_scale_);
    const bool shares = s_.shares;
    float* weight = weights_.data();
    Words q[kWords ? kWords : 1];
    for (int c = 0; c < kWords; ++c) q[c] = load<Words>(queries + c * row);
    Floats result = kExponential ? Floats{} : splat(-__builtin_inff());
    const auto step = [&]<int N>(std::integral_constant<int, N>) __attribute__((always_inline)) {
      Ints acc[N];
      for (int i = 0; i < N; ++i) acc[i] = kCodeShift ? splat(start[i]) : Ints{};
      for (int c = 0; c < words; ++c) {
        const Words query = kWords ? q[c] : load<Words>(queries + c * row);
        for (int i = 0; i < N; ++i) acc[i] = Arithmetic<P>::add_shared(acc[i], query, key + kWord * (i * words + c));
      }
      Floats x[N];
      for (int i = 0; i < N; ++i) x[i] = to_floats(Arithmetic<P>::total(acc[i])) * scale + load<Floats>(added + i * bias_step);
      for (int i = 0; i < N; ++i) x[i] = x[i] + offset[i];
      if constexpr (kMask) {
        for (int i = 0; i < N; ++i) x[i] = x[i] + load<Floats>(hidden + i * mask_step);
      }
      if constexpr (kExponential) {
        for (int i = 0; i < N; ++i) x[i] = x[i] - top;
        if constexpr (kMask) {
          // A mask hides a key by a large negative term; powers below the normal floats would cost a hundred cycles each.
          for (int i = 0; i < N; ++i) x[i] = maximum(x[i], splat(-125.0f));
        }
        exp2(x);
        for (int i = 0; i < N; ++i) store(weight + i * kLanes, x[i]);
        if (shares) {
          for (int i = 0; i < N; ++i) result = maximum(result, x[i]);
        } else {
          for (int i = 0; i < N; ++i) result = result + x[i];
        }
      } else {
        for (int i = 0; i < N; ++i) result = maximum(result, x[i]);
      }
      key += kWord * N * words, offset += N, added += N * bias_step, hidden += N * mask_step, weight += N * kLanes;
      if constexpr (kCodeShift != 0) start += N;
    };
    int64_t j = 0;
    for (; j + kKeysAtOnce <= keys; j += kKeysAtOnce) step(std::integral_constant<int, kKeysAtOnce>{});
    for (; j < keys; ++j) step(std::integral_constant<int, 1>{});
    return result;
  }

  // Fills probs_[keys / 4] with the codes of four keys in each lane and returns their sum.
  Ints probabilities(Floats scale) {
    const int64_t fours = keys_ / 4;
    Ints row_sum = kCodeShift ? splat((int32_t)(kCodeShift * keys_)) : Ints{};
    const float* weight = weights_.data();
    const Floats offset = splat(s_.prob_offset);
    const uint8_t levels = s_.prob_levels;
    Words* probs = probs_.data();
    for (int64_t j = 0; j < fours; ++j, weight += 4 * kLanes) {
      Floats y[4];
      for (int i = 0; i < 4; ++i) y[i] = load<Floats>(weight + i * kLanes) * scale + offset;
      const Words four = four_codes(y, levels), ones = Words{} + 0x01010101u;
      probs[j] = shifted(four);
      row_sum = kCodeShift ? dot(row_sum, probs[j], ones) : dot4_small(row_sum, four, ones);
    }
    return row_sum;
  }

  // sums_[column][lane]: blocks of columns as even as possible, at most kColumnsAtOnce accumulators at a time.
  void products() {
    const int width = (int)v_.width, blocks = (width + kColumnsAtOnce - 1) / kColumnsAtOnce;
    for (int b = 0, column = 0; b < blocks; ++b) {
      const int here = (width - column + blocks - b - 1) / (blocks - b);
#if FXPTQ_DOT16
      if (output_product_ == Product::kSums16) {
        // A sum of 16 bits takes `output_steps_` groups of keys.
        const int64_t fours = keys_ / 4, most = output_steps_;
        for (int64_t j = 0; j < fours; j += most) products_of<Product::kSums16>(here, column, j, std::min(j + most, fours));
      } else {
        products_of<Product::kPairs>(here, column, 0, keys_ / 4);
      }
#else
      products_of<Product::kBytes>(here, column, 0, keys_ / 4);
#endif
      column += here;
    }
  }

  template <Product P>
  void products_of(int columns, int column, int64_t begin, int64_t end) {
    static constexpr auto table = []<int... kColumns>(std::integer_sequence<int, kColumns...>) {
      return std::array<void (Attention::*)(int, int64_t, int64_t), sizeof...(kColumns)>{&Attention::product<P, kColumns + 1>...};
    }(std::make_integer_sequence<int, kColumnsAtOnce>{});
    (this->*table[columns - 1])(column, begin, end);
  }

  // Groups of keys [begin, end); groups before `begin` are in sums_ already.
  template <Product P, int kColumns>
  void product(int column, int64_t begin, int64_t end) {
    constexpr int kWord = Arithmetic<P>::kWord;
    Ints acc[kColumns];
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) acc[c] = kCodeShift ? splat(value_starts_[column + c]) : Ints{};
    const int64_t step = kWord * value_width_;
    const uint8_t* values = (P == Product::kPairs ? wide_values_ : value_codes_).data() + kWord * column + begin * step;
    const Words* probs = probs_.data();
    for (int64_t j = begin; j < end; ++j, values += step) {
      const Words p = probs[j];
      if constexpr (P == Product::kBytes) {
        dot_words(acc, p, values);
      } else {
#pragma GCC unroll 12
        for (int c = 0; c < kColumns; ++c) {
          acc[c] = Arithmetic<P>::add_shared(acc[c], p, values + kWord * c);
          keep(acc[c]);
        }
      }
    }
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) {
      int32_t* to = sums_.data() + (column + c) * kLanes;
      const Ints total = Arithmetic<P>::total(acc[c]);
      store(to, P == Product::kSums16 && begin ? total + load<Ints>(to) : total);
    }
  }

  // `row` is the sum of each row's codes; of shares one divided by it.
  FXPTQ_INLINE Floats output(int64_t column, Floats row) const {
    const Floats sum = to_floats(load<Ints>(sums_.data() + column * kLanes));
    if (s_.shares) return sum * row * s_.out_scale[out_ + column] + column_terms_[column];
    const Floats y = sum * s_.out_scale[out_ + column] + column_terms_[column];
    return s_.row_sums ? y + row * s_.out_row[out_ + column] : y;
  }

  FXPTQ_INLINE Floats row_terms(Floats row_sum) const { return s_.shares ? splat(1.0f) / row_sum : row_sum; }

  void write(float* out, int64_t stride, int rows, Floats row_sum) const {
    const Floats row = row_terms(row_sum);
    for (int64_t d = 0; d < v_.width; ++d) {
      const Floats y = output(d, row);
      for (int i = 0; i < rows; ++i) out[i * stride + d] = y[i];
    }
  }

  // Sixteen columns at a time: their codes stand four to a lane, and a transposition of 4 x 4 words makes rows of them.
  void write(uint8_t* out, int64_t stride, int rows, Floats row_sum) const {
    const Floats row = row_terms(row_sum);
    for (int64_t d = 0; d < v_.width; d += kLanes) {
      const int n = (int)std::min<int64_t>(kLanes, v_.width - d);
      Words words[4] = {};
      for (int c = 0; c < n; c += 4) {
        Floats y[4];
        for (int i = 0; i < 4; ++i) y[i] = output(d + c + i, row);
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
  float logit_scale_ = 0.0f, key_scale_ = 0.0f;  // of the head at hand
  int64_t out_ = 0;                              // where its columns begin
  Product logit_product_ = Product::kBytes, output_product_ = Product::kBytes;
  int output_steps_ = 0;
  int64_t queries_, keys_, value_width_;
  Buffer<uint32_t> queries_words_;
  Buffer<uint8_t> key_codes_, value_codes_, wide_keys_, wide_values_;  // the wide ones hold pairs of 16-bit integers
  Buffer<int64_t> key_sums_;
  Buffer<float> key_offsets_, column_terms_, weights_, zeros_;
  Buffer<Words> probs_;
  Buffer<int32_t> sums_, key_starts_, value_starts_;  // the last two where codes are shifted
};

}  // namespace fxptq

// Attention on codes.
#include "products.h"

namespace fxptq {
namespace {

Heads heads_of(const Tensor& t) {
  const uint8_t* from = data<uint8_t>(t);
  int64_t last = 0;
  for (int64_t axis = 0; axis < 4; ++axis) last += (t.size(axis) - 1) * t.stride(axis);
  return {from, from + last + 1, t.stride(0), t.stride(1), t.stride(2), t.size(2), t.size(3)};
}

Tensor dense_rows(const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1 ? t : row_major(t); }

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const optional<Tensor>& bias,
                 const optional<Tensor>& mask, int64_t query_bits, int64_t key_bits, int64_t value_bits, const Tensor& logit,
                 HeaderOnlyArrayRef<double> prob, const Tensor& out, int64_t levels, bool row_sums, bool shares) {
  FXPTQ_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "attention takes [windows, heads, rows, width]");
  const Tensor q = dense_rows(query), k = dense_rows(key), v = dense_rows(value);
  const int64_t windows = q.size(0), heads = q.size(1), rows = q.size(2), width = v.size(3), keys = k.size(2);
  const auto same_batch = [&](const Tensor& t) { return t.size(0) == windows && t.size(1) == heads; };
  FXPTQ_CHECK(same_batch(k) && same_batch(v) && q.size(3) == k.size(3) && keys == v.size(2),
              "the factors ", shown(q.sizes()), ", ", shown(k.sizes()), " and ", shown(v.sizes()), " do not fit");
  FXPTQ_CHECK(keys < kDepth, "attention over ", keys, " keys: its sums do not fit 32 bits");
  const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
  for (const optional<Tensor>* term : {&bias, &mask}) {
    FXPTQ_CHECK(!*term || ((*term)->dim() == 3 && (*term)->size(1) == keys && (*term)->size(2) == padded &&
                           (*term)->is_contiguous() && holds<float>(**term)),
                "a term of the logits does not fit");
  }
  FXPTQ_CHECK(!bias || bias->size(0) == 1 || bias->size(0) == heads, "a bias for each of ", heads, " heads, not ", bias->size(0));
  FXPTQ_CHECK(!mask || (mask->size(0) > 0 && windows % mask->size(0) == 0), "masks for ", windows, " windows, not ", mask->size(0));
  const Numbers of_logits(logit, 2, heads, 1), of_outputs(out, 5, heads, width);
  std::vector<float> logit_terms(2 * heads);
  const int64_t columns = (width + kLanes - 1) / kLanes * kLanes, plane = heads * columns;
  std::vector<float> out_terms(4 * plane);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < 2; ++i) logit_terms[i * heads + head] = (float)of_logits.at(i, head, 0);
    for (int64_t d = 0; d < width; ++d) {
      const auto term = [&](int64_t i) { return of_outputs.at(i, head, d); };
      float* to = out_terms.data() + head * columns + d;
      to[0] = (float)term(0), to[plane] = (float)term(2), to[2 * plane] = (float)term(1);
      to[3 * plane] = (float)(term(3) * (double)keys + term(4));
    }
  }
  const float* terms = out_terms.data();
  const AttentionSettings settings{.key = centre_of(key_bits),
                                   .value = centre_of(value_bits),
                                   .logit_scale = logit_terms.data(),
                                   .key_scale = logit_terms.data() + heads,
                                   .shares = shares,
                                   .prob_scale = (float)prob[0],
                                   .prob_offset = (float)prob[1],
                                   .prob_levels = (uint8_t)prob[2],
                                   .out_scale = terms,
                                   .out_column = terms + plane,
                                   .out_row = terms + 2 * plane,
                                   .out_constant = terms + 3 * plane,
                                   .row_sums = row_sums,
                                   .out_levels = (uint8_t)levels,
                                   .bias = data<float>(bias),
                                   .bias_head = bias && bias->size(0) > 1 ? bias->stride(0) : 0,
                                   .mask = data<float>(mask),
                                   .masks = mask ? mask->size(0) : 1,
                                   .query_levels = (uint8_t)((1 << query_bits) - 1)};
  const int64_t sizes[] = {windows, heads, rows, width};
  const int64_t strides[] = {rows * heads * width, width, heads * width, 1};  // the memory of [windows, rows, heads, width]
  Tensor result = empty_strided(sizes, strides, output_type(levels != 0));
  float* values = writable<float>(result);
  uint8_t* codes = writable<uint8_t>(result);
  const Heads from_q = heads_of(q), from_k = heads_of(k), from_v = heads_of(v);
  parallel_for(windows, 1, [&](int64_t begin, int64_t end) {
    Attention one(settings, from_q, from_k, from_v);
    for (int64_t window = begin; window < end; ++window) {
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t at = (window * rows * heads + head) * width;
        if (levels) {
          one.run(window, head, codes + at, heads * width);
        } else {
          one.run(window, head, values + at, heads * width);
        }
      }
    }
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) { m.impl("attention", TORCH_BOX(&attention)); }

}  // namespace
}  // namespace fxptq

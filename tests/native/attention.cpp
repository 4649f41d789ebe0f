// Attention on codes against its definition in integers and double: attention.h.
#include "check.h"

#include "attention.h"

namespace native {
namespace {

struct AttentionCase {
  int windows, heads, queries, keys, width, value_width;
  int query_bits, key_bits, value_bits, prob_bits, out_bits;  // out_bits 0: values
  Fill fill;
  bool bias, bias_of_heads, mask;
  double reach;  // size of the logits
  bool shares;

  std::string name() const {
    std::string text = "attention of " + std::to_string(windows) + " windows, " + std::to_string(heads) + " heads, " +
                       std::to_string(queries) + " queries, " + std::to_string(keys) + " keys, widths " + std::to_string(width) +
                       " and " + std::to_string(value_width) + ", bits";
    for (const int bits : {query_bits, key_bits, value_bits, prob_bits, out_bits}) text += " " + std::to_string(bits);
    return text + " " + name_of(fill) + (bias ? " bias" : "") + (mask ? " mask" : "") + (shares ? " shares" : "") + ", logits to " + std::to_string(reach);
  }
};

fxptq::Centre centre_of(int bits) {
  return bits < 8 ? fxptq::Centre{2, (uint8_t)((1 << bits) - 1)} : fxptq::Centre{1, 128};
}

// Codes [windows][rows][heads][width]; rows are `row` bytes apart, as in a tensor that holds more than one factor.
struct Codes {
  std::vector<uint8_t> bytes;
  int heads, rows, width, row;

  Codes(Random& random, int windows, int heads, int rows, int width, int bits, Fill fill)
      : heads(heads), rows(rows), width(width), row(heads * width + (int)random.between(0, 7)) {
    bytes = codes(random, (size_t)windows * rows * row - (row - heads * width), bits, fill);
  }

  uint8_t at(int window, int head, int r, int i) const { return bytes[((size_t)window * rows + r) * row + head * width + i]; }

  fxptq::Heads view() const { return {bytes.data(), bytes.data() + bytes.size(), (int64_t)rows * row, width, row, rows, width}; }
};

void check_case(Checks& checks, Random& random, const AttentionCase& c) {
  const Codes q(random, c.windows, c.heads, c.queries, c.width, c.query_bits, c.fill);
  const Codes k(random, c.windows, c.heads, c.keys, c.width, c.key_bits, c.fill);
  const Codes v(random, c.windows, c.heads, c.keys, c.value_width, c.value_bits, c.fill);
  const int padded = (c.queries + 15) / 16 * 16, masks = c.mask ? c.windows : 1;
  const double products = std::sqrt((double)c.width) * (1 << c.query_bits) * (1 << c.key_bits);
  std::vector<float> bias = reals(random, (size_t)(c.bias_of_heads ? c.heads : 1) * c.keys * padded, -c.reach / 2, c.reach / 2);
  std::vector<float> mask((size_t)masks * c.keys * padded);
  for (float& m : mask) m = random.between(0, 2) ? 0.0f : -144.27f;
  fxptq::AttentionSettings s{};
  s.key = centre_of(c.key_bits), s.value = centre_of(c.value_bits);
  // Numbers of each head and column; the padding of columns is zero.
  const float logit = (float)(c.reach / products);
  const std::vector<float> logit_scale = reals(random, c.heads, 0.5 * logit, logit);
  const std::vector<float> key_scale = reals(random, c.heads, 0.1 * logit, 0.3 * logit);
  s.logit_scale = logit_scale.data(), s.key_scale = key_scale.data(), s.shares = c.shares;
  s.query_levels = (uint8_t)((1 << c.query_bits) - 1), s.prob_levels = (uint8_t)((1 << c.prob_bits) - 1);
  s.prob_scale = (float)s.prob_levels * (c.keys > 4 ? 2.5f : 1.0f), s.prob_offset = random.coin() ? 0.0f : 0.3f;
  if (c.shares) s.prob_scale = (float)(s.prob_levels / random.real(0.5, 1.0)), s.prob_offset = 0.0f;
  const double sum = 2.0 * s.prob_levels * (1 << c.value_bits), top = c.out_bits ? (1 << c.out_bits) : 2.0;
  const int columns = (c.value_width + 15) / 16 * 16;
  const auto by_column = [&](double low, double high) {
    std::vector<float> all((size_t)c.heads * columns);
    for (int head = 0; head < c.heads; ++head) {
      for (int d = 0; d < c.value_width; ++d) all[head * columns + d] = (float)random.real(low, high);
    }
    return all;
  };
  const double largest_value = 1 << c.value_bits;
  const std::vector<float> out_scale = c.shares ? by_column(0.3 * top / largest_value, top / largest_value)
                                                : by_column(0.3 * top / sum, top / sum);
  const std::vector<float> out_column = by_column(0, c.shares ? 0 : 0.2 * top / sum);
  const std::vector<float> out_row = by_column(0, 0.1 * top / s.prob_levels), out_constant = by_column(0.2 * top, 0.8 * top);
  s.out_scale = out_scale.data(), s.out_column = out_column.data(), s.out_row = out_row.data(), s.out_constant = out_constant.data();
  s.row_sums = !c.shares && random.coin();
  s.out_levels = (uint8_t)(c.out_bits ? (1 << c.out_bits) - 1 : 0);
  s.bias = c.bias ? bias.data() : nullptr, s.bias_head = c.bias_of_heads ? (int64_t)c.keys * padded : 0;
  s.mask = c.mask ? mask.data() : nullptr, s.masks = masks;

  const size_t count = (size_t)c.windows * c.queries * c.heads * c.value_width;
  Guarded<float> values(c.out_bits ? 0 : count);
  Guarded<uint8_t> out(c.out_bits ? count : 0);
  fxptq::Attention attention(s, q.view(), k.view(), v.view());
  std::vector<Expected> want(count);
  for (int window = 0; window < c.windows; ++window) {
    for (int head = 0; head < c.heads; ++head) {
      const size_t first = ((size_t)window * c.queries * c.heads + head) * c.value_width;
      const int64_t stride = c.heads * c.value_width;
      if (c.out_bits) {
        attention.run(window, head, out.data() + first, stride);
      } else {
        attention.run(window, head, values.data() + first, stride);
      }
      for (int i = 0; i < c.queries; ++i) {
        std::vector<double> logits(c.keys);
        double largest = -1e300, size = 0, total = 0;
        for (int j = 0; j < c.keys; ++j) {
          int64_t product = 0, key_sum = 0;
          for (int d = 0; d < c.width; ++d) {
            const int64_t key = centred(k.at(window, head, j, d), c.key_bits);
            product += q.at(window, head, i, d) * key, key_sum += key;
          }
          const double scaled = (double)logit_scale[head] * (double)product, offset = (double)key_scale[head] * (double)key_sum;
          const double added = c.bias ? bias[(c.bias_of_heads ? (size_t)head * c.keys * padded : 0) + (size_t)j * padded + i] : 0;
          const double hidden = c.mask ? mask[((size_t)(window % masks) * c.keys + j) * padded + i] : 0;
          logits[j] = scaled + offset + added + hidden;
          largest = std::fmax(largest, logits[j]);
          size = std::fmax(size, std::fabs(scaled) + std::fabs(offset) + std::fabs(added) + std::fabs(hidden));
        }
        for (double& x : logits) total += x = std::exp2(x - largest);
        if (c.shares) total = 1.0;  // the largest power
        std::vector<int64_t> p(c.keys), ties;
        for (int j = 0; j < c.keys; ++j) {
          const double scaled = s.prob_scale * logits[j] / total, y = scaled + s.prob_offset;
          p[j] = (int64_t)std::nearbyint(std::fmin(std::fmax(y, 0.0), (double)s.prob_levels));
          // Float logits of this size are off by some of their last bits, and the powers of two by as much relatively.
          const double error = scaled * 2e-6 * (1 + 0.3 * size) + 1e-6 * y;
          if (std::fabs(std::fabs(y - std::floor(y)) - 0.5) <= error) ties.push_back(j);
        }
        for (int d = 0; d < c.value_width; ++d) {
          int64_t product = 0, column = 0, row = 0, doubt = 0;
          for (int j = 0; j < c.keys; ++j) {
            const int64_t value = centred(v.at(window, head, j, d), c.value_bits);
            product += p[j] * value, column += value, row += p[j];
          }
          for (const int64_t j : ties) doubt += std::abs(centred(v.at(window, head, (int)j, d), c.value_bits));
          const int at = head * columns + d;
          const double divisor = c.shares ? (double)row : 1.0, constant = out_constant[at];
          const double a = (double)out_scale[at] * (double)product / divisor, b = (double)out_column[at] * (double)column;
          const double r = s.row_sums ? (double)out_row[at] * (double)row : 0.0, y = a + b + r + constant;
          // Of shares, a code beside a tie changes the divisor too.
          const double doubts = c.shares ? 2.2 * ((double)doubt + (double)ties.size() * std::fabs((double)product) / divisor) / divisor
                                         : (double)doubt;
          const double error = out_scale[at] * doubts + (s.row_sums ? out_row[at] * (double)ties.size() : 0.0) +
                               1e-6 * (std::fabs(a) + std::fabs(b) + std::fabs(r) + constant);
          const double clipped = c.out_bits ? std::fmin(std::fmax(y, 0.0), (double)s.out_levels) : y;
          want[first + (size_t)i * stride + d] = {clipped, error};
        }
      }
    }
  }
  if (c.out_bits) {
    checks.rounded(c.name(), out.data(), want);
  } else {
    checks.near(c.name(), values.data(), want);
  }
  checks.intact(c.name(), values);
  checks.intact(c.name(), out);
}

}  // namespace

void check_attention(Checks& checks) {
  Random random(30);
  // Every size of a step of the loops over words, keys, queries and columns, in turn.
  const int widths[] = {1, 4, 7, 8, 10, 12, 13, 16, 17, 30, 32, 33}, rows[] = {1, 2, 15, 16, 17, 31, 49, 64, 67};
  for (int trial = 0; trial < 108; ++trial) {
    AttentionCase c{};
    c.windows = 1 + trial % 2, c.heads = 1 + trial % 3;
    c.queries = rows[trial % 9], c.keys = rows[trial / 2 % 9];
    c.width = widths[trial % 12], c.value_width = trial % 5 ? c.width : (int)random.between(1, 40);
    c.query_bits = 2 + trial % 7, c.key_bits = 2 + trial / 2 % 7, c.value_bits = 2 + trial / 3 % 7, c.prob_bits = 2 + trial / 5 % 7;
    c.out_bits = trial % 3 ? 2 + trial / 4 % 7 : 0;
    c.fill = kFills[trial % 11 < 8 ? 0 : trial % 11 - 7];
    c.bias = random.coin(), c.bias_of_heads = random.coin(), c.mask = random.coin();
    c.shares = trial % 4 == 1;
    c.reach = trial % 6 ? 6.0 : 300.0;  // with the large ones 2^x overflows, so that the largest logit is subtracted
    check_case(checks, random, c);
  }
  // Sums of 16 bits hold 288 products of two 4-bit codes, and 68 of two 5-bit codes.
  for (const int bits : {4, 5}) {
    for (const int depth : {bits == 4 ? 288 : 68, bits == 4 ? 292 : 72}) {
      for (const Fill fill : kFills) {
        AttentionCase c{1, 1, 17, depth, depth, 9, bits, bits, bits, bits, 0, fill, false, false, false, 6.0, false};
        check_case(checks, random, c);
      }
    }
  }
}

}  // namespace native

// The integer product and its epilogue: gemm.h and epilogue.h.
#include "finish.h"

#include "panels.h"

namespace native {
namespace {

using fxptq::kLanes;
using fxptq::kTileRows;

std::string bits_of(int a, int w, Fill fill) {
  return "A" + std::to_string(a) + " W" + std::to_string(w) + " " + name_of(fill);
}

// Every number of rows and blocks of a tile, with and without start values, in one run of bytes or several.
void check_tiles(Checks& checks) {
  Random random(1);
  for (int rows = 1; rows <= kTileRows; ++rows) {
    for (int blocks = 1; blocks <= 2 * fxptq::kTileBlocks + 3; ++blocks) {
      for (int segments = 1; segments <= 3; ++segments) {
        const int words = (int)random.between(1, 9), depth = 4 * words * segments, columns = blocks * kLanes;
        const ptrdiff_t run = 4 * words + random.between(0, 5), stride = segments * run + random.between(0, 5);
        const Fill fill = kFills[random.between(0, 3)];
        const bool start = random.coin();
        const int a_bits = (int)random.between(7, 8);
        const std::vector<uint8_t> bytes = codes(random, rows * stride, a_bits, fill);
        const std::vector<int8_t> w = weights(random, (size_t)columns * depth, (int)random.between(7, 8), fill);
        std::vector<int32_t> starts(columns);
        for (int32_t& s : starts) s = (int32_t)random.between(-1000000, 1000000);
        const Packed packed = pack(w, columns, depth);
        const ptrdiff_t out_stride = columns + random.between(0, 3) * kLanes;
        Guarded<int32_t> out((rows - 1) * out_stride + columns);
        fxptq::Buffer<int8_t> storage;
        fxptq::Panels panels = packed.panels(start ? starts.data() : nullptr);
        if (random.coin()) panels = fxptq::prepared(panels, (1 << a_bits) - 1, storage);
        fxptq::accumulate({bytes.data(), stride, segments, run, words}, 0, rows, panels, out.data(), out_stride);
        const std::string what = "accumulate " + std::to_string(rows) + " rows, " + std::to_string(blocks) + " blocks, " +
                                 std::to_string(segments) + " runs of " + std::to_string(words) + " words";
        for (int r = 0; r < rows; ++r) {
          std::vector<int64_t> want(columns);
          for (int c = 0; c < columns; ++c) {
            want[c] = start ? starts[c] : 0;
            for (int k = 0; k < depth; ++k) {
              want[c] += (int64_t)bytes[r * stride + k / (4 * words) * run + k % (4 * words)] * w[(size_t)c * depth + k];
            }
          }
          checks.equal(what, out.data() + r * out_stride, want.data(), columns);
        }
        checks.intact(what, out);
      }
    }
  }
}

// A whole linear layer as the operator runs it. `columns` and `depth` are multiples of nothing.
void check_layer(Checks& checks, Random& random, int rows, int depth, int columns, int a_bits, int w_bits, Fill fill,
                 fxptq::Activation activation, bool row_scale, bool residual, bool coded) {
  const std::vector<uint8_t> a = codes(random, (size_t)rows * depth, a_bits, fill);
  std::vector<int8_t> w = weights(random, (size_t)columns * depth, w_bits, fill);
  const bool sum_column = row_scale && fxptq::has_sum_column(columns);
  if (sum_column) w.insert(w.end(), depth, 1);
  const Packed packed = pack(w, columns + sum_column, depth);
  fxptq::Buffer<int8_t> pairs;
  const fxptq::Panels panels = fxptq::prepared(packed.panels(), (1 << a_bits) - 1, pairs);
  const double sum = std::sqrt((double)depth) * (1 << a_bits) * (1 << w_bits) / 2;
  const FinishCase finish = FinishCase::of(random, columns, sum, activation, row_scale, residual, coded);
  const fxptq::Epilogue epilogue = finish.epilogue(columns);
  const std::vector<float> added = reals(random, (size_t)rows * columns, -3, 3);
  const ptrdiff_t acc_stride = fxptq::padded_columns(panels), stride = 4 * panels.words;
  std::vector<uint8_t> lines(rows * stride);
  for (int r = 0; r < rows; ++r) std::memcpy(lines.data() + r * stride, a.data() + (size_t)r * depth, depth);

  fxptq::Buffer<int32_t> acc(acc_stride * kTileRows);
  Guarded<float> values(coded ? 0 : (size_t)rows * columns);
  Guarded<uint8_t> out(coded ? (size_t)rows * columns : 0);
  std::vector<Expected> want;
  std::vector<int64_t> row_sums;
  const std::string what = "linear " + std::to_string(rows) + "x" + std::to_string(depth) + "x" + std::to_string(columns) + " " +
                           bits_of(a_bits, w_bits, fill) + finish.name();
  bool nan = false;
  for (int first = 0; first < rows; first += kTileRows) {
    const int count = rows - first < kTileRows ? rows - first : kTileRows;
    const fxptq::Rows line{lines.data(), stride, 1, 0, panels.words};
    fxptq::accumulate(line, first, count, panels, acc.data(), acc_stride);
    float sums[kTileRows];
    for (int r = 0; r < count; ++r) {
      int64_t total = 0;
      for (int k = 0; k < depth; ++k) total += a[(size_t)(first + r) * depth + k];
      const int64_t got = sum_column ? acc[r * acc_stride + columns] : fxptq::row_sum(line, first + r);
      checks.equal(what + ", sum of the codes", &got, &total, 1);
      sums[r] = (float)total;
      std::vector<int64_t> exact(columns);
      for (int c = 0; c < columns; ++c) {
        for (int k = 0; k < depth; ++k) exact[c] += (int64_t)a[(size_t)(first + r) * depth + k] * w[(size_t)c * depth + k];
        const double plus = residual ? added[(size_t)(first + r) * columns + c] : 0.0;
        want.push_back(finish.expected(c, (double)exact[c], (double)total, 0.0, plus));
      }
      checks.equal(what + ", sums", acc.data() + r * acc_stride, exact.data(), columns);
    }
    const ptrdiff_t at = (ptrdiff_t)first * columns;
    fxptq::finish_of(epilogue, residual)(
        epilogue, {acc.data(), acc_stride, count, finish.biases.data(), sums, residual ? added.data() + at : nullptr,
                   coded ? nullptr : values.data() + at, coded ? out.data() + at : nullptr, columns, nullptr, &nan});
  }
  if (coded) {
    checks.rounded(what, out.data(), want);
  } else {
    checks.near(what, values.data(), want);
  }
  checks.intact(what, values);
  checks.intact(what, out);
  checks.that(!nan, what + ": no NaN");
}

void check_widths(Checks& checks) {
  Random random(2);
  for (int a = 2; a <= 8; ++a) {
    for (int w = 2; w <= 8; ++w) {
      for (const Fill fill : kFills) {
        check_layer(checks, random, (int)random.between(1, 2 * kTileRows + 1), (int)random.between(1, 70),
                    (int)random.between(1, 70), a, w, fill, fxptq::Activation::kNone, random.coin(), false, random.coin());
      }
    }
  }
}

// All combinations of an epilogue.
void check_epilogues(Checks& checks) {
  Random random(3);
  for (int bits = 0; bits < 24; ++bits) {
    for (const int columns : {1, 3, 16, 17, 48, 60, 64, 65, 127, 131}) {
      check_layer(checks, random, 7, 13, columns, (int)random.between(2, 8), (int)random.between(2, 8), Fill::kRandom,
                  (fxptq::Activation)(bits / 8), bits & 1, bits & 2, bits & 4);
    }
  }
}

// The deepest sums that 32 bits hold, at both ends.
void check_depth(Checks& checks) {
  Random random(4);
  for (const Fill fill : kFills) {
    check_layer(checks, random, kTileRows, 65792, 17, 8, 8, fill, fxptq::Activation::kNone, true, false, false);
    check_layer(checks, random, 1, 4095, 67, 8, 8, fill, fxptq::Activation::kNone, false, false, true);
  }
}

// The depths at which sums of 16 bits are full, of every pair of widths, with sums that reach the bound.
void check_limits(Checks& checks) {
  Random random(7);
  for (int a = 2; a <= 8; ++a) {
    for (int w = 2; w <= 8; ++w) {
      const int largest = ((1 << a) - 1) * (w == 8 ? 128 : (1 << w) - 1), depth = 4 * (32767 / (2 * largest));
      for (const int more : {-4, 0, 1, 4, depth, depth + 1}) {
        if (depth + more <= 0) continue;
        for (const Fill fill : {Fill::kHighest, Fill::kLowest, Fill::kExtreme}) {
          check_layer(checks, random, kTileRows + 1, depth + more, 17, a, w, fill, fxptq::Activation::kNone, false, false, false);
        }
      }
    }
  }
  for (const int depth : {582, 583}) {
    for (const Fill fill : kFills) {
      check_layer(checks, random, 5, depth, 33, 4, 4, fill, fxptq::Activation::kNone, true, false, false);
    }
  }
}

// Several runs of bytes, the products chosen by bounds, and start values.
void check_runs(Checks& checks) {
  Random random(8);
  for (int a = 2; a <= 8; ++a) {
    for (int w = 2; w <= 8; ++w) {
      const int segments = 3, words = (int)random.between(1, 90), depth = 4 * words * segments, columns = 32, rows = kTileRows;
      const ptrdiff_t run = 4 * words + 8, stride = 5 * words;
      const Fill fill = kFills[(a + w) % 4];
      const std::vector<uint8_t> bytes = codes(random, (rows - 1) * stride + (segments - 1) * run + 4 * words, a, fill);
      const std::vector<int8_t> weight = weights(random, (size_t)columns * depth, w, fill);
      std::vector<int32_t> starts(columns);
      for (int32_t& s : starts) s = (int32_t)random.between(-1000000, 1000000);
      const Packed packed = pack(weight, columns, depth);
      fxptq::Buffer<int8_t> pairs;
      const fxptq::Panels panels = fxptq::prepared(packed.panels(starts.data()), (1 << a) - 1, pairs);
      Guarded<int32_t> out(rows * columns);
      fxptq::accumulate({bytes.data(), stride, segments, run, words}, 0, rows, panels, out.data(), columns);
      std::vector<int64_t> want(rows * columns);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          int64_t& sum = want[r * columns + c] = starts[c];
          for (int k = 0; k < depth; ++k) {
            sum += (int64_t)bytes[r * stride + k / (4 * words) * run + k % (4 * words)] * weight[(size_t)c * depth + k];
          }
        }
      }
      const std::string what = "accumulate runs of " + std::to_string(words) + " words " + bits_of(a, w, fill);
      checks.equal(what, out.data(), want.data(), want.size());
      checks.intact(what, out);
    }
  }
}

void check_unpack(Checks& checks) {
  Random random(5);
  const int vectors = 5;
  for (int bits = 2; bits <= 4; ++bits) {
    const std::vector<uint8_t> packed = codes(random, 8 * bits * vectors, 8, Fill::kRandom);
    std::vector<int64_t> want;
    for (int v = 0; v < vectors; ++v) {
      const uint8_t* from = packed.data() + 8 * bits * v;
      const int low = bits == 3 ? 2 : bits;  // a plane of two bits, and for three bits a plane of one behind it
      for (int i = 0; i < 64; ++i) {
        int code = from[i % (8 * low)] >> i / (8 * low) * low & ((1 << low) - 1);
        if (bits == 3) code |= (from[16 + i % 8] >> i / 8 & 1) << 2;
        want.push_back(2 * code - ((1 << bits) - 1));
      }
    }
    Guarded<int8_t> out(64 * vectors);
    fxptq::unpack(packed.data(), bits, vectors, out.data());
    checks.equal("unpack " + std::to_string(bits) + " bits", out.data(), want.data(), want.size());
    checks.intact("unpack " + std::to_string(bits) + " bits", out);
  }
}

// A residual that is not a number has no code, and only then is it reported.
void check_nan(Checks& checks) {
  Random random(6);
  const int columns = 35, rows = 3;
  for (const float bad : {NAN, INFINITY, -INFINITY, 1.0f}) {
    const FinishCase finish = FinishCase::of(random, columns, 100, fxptq::Activation::kNone, false, true, true);
    const fxptq::Epilogue epilogue = finish.epilogue(columns);
    std::vector<float> added = reals(random, rows * columns, -3, 3);
    added[2 * columns + 33] = bad;
    fxptq::Buffer<int32_t> acc(64 * rows);
    Guarded<uint8_t> out(rows * columns);
    bool nan = false;
    fxptq::finish_of(epilogue, true)(epilogue, {acc.data(), 64, rows, finish.biases.data(), nullptr, added.data(), nullptr,
                                                out.data(), columns, nullptr, &nan});
    checks.that(nan == (bad != bad), "epilogue reports a residual of " + std::to_string(bad));
  }
}

}  // namespace

void check_linear(Checks& checks) {
  check_tiles(checks);
  check_widths(checks);
  check_epilogues(checks);
  check_depth(checks);
  check_limits(checks);
  check_runs(checks);
  check_unpack(checks);
  check_nan(checks);
}

}  // namespace native

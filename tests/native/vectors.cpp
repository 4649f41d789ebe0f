// Every operation of an instruction set's header: simd/.
#include "check.h"

#include "simd.h"

namespace native {
namespace {

using fxptq::kLanes;

void check_parts(Checks& checks) {
  Random random(10);
  for (int n = 1; n <= kLanes; ++n) {
    const std::vector<float> x = reals(random, n, -9, 9);
    std::vector<float> want(kLanes, 0.0f), all(kLanes, 7.0f), kept(kLanes, 0.0f);
    std::copy(x.begin(), x.end(), want.begin());
    Guarded<float> out(kLanes), few(n);
    const std::string lanes = " " + std::to_string(n);
    fxptq::store(out.data(), fxptq::load_first(x.data(), n));
    checks.that(!std::memcmp(out.data(), want.data(), sizeof(float) * kLanes), "load_first" + lanes);
    std::fill(kept.begin(), kept.begin() + n, 7.0f);
    fxptq::store(out.data(), fxptq::keep_first(fxptq::load<fxptq::Floats>(all.data()), n));
    checks.that(!std::memcmp(out.data(), kept.data(), sizeof(float) * kLanes), "keep_first" + lanes);
    fxptq::store_first(few.data(), fxptq::load<fxptq::Floats>(want.data()), n);
    checks.that(!std::memcmp(few.data(), x.data(), sizeof(float) * n), "store_first" + lanes);
    checks.intact("store_first" + lanes, few);
    uint8_t bytes[64], first[64];
    fxptq::store(bytes, fxptq::first_of_rows(n));
    for (int i = 0; i < 64; ++i) first[i] = i % 16 < n ? 255 : 0;
    checks.equal("first_of_rows" + lanes, bytes, first, 64);
  }
  for (int n = 1; n <= 64; ++n) {
    const std::vector<float> x = reals(random, n, -9, 9);
    Guarded<float> few(n);
    for (int v = 0; v < 4; ++v) fxptq::store_part(few.data(), v, fxptq::load_part(x.data(), v, n), n);
    checks.that(!std::memcmp(few.data(), x.data(), sizeof(float) * n), "load_part, store_part " + std::to_string(n));
    checks.intact("store_part " + std::to_string(n), few);
  }
}

void check_arithmetic(Checks& checks) {
  Random random(11);
  for (int trial = 0; trial < 50; ++trial) {
    const std::vector<float> a = reals(random, kLanes, -100, 100), b = reals(random, kLanes, -100, 100);
    const fxptq::Floats va = fxptq::load<fxptq::Floats>(a.data()), vb = fxptq::load<fxptq::Floats>(b.data());
    float high[kLanes], low[kLanes], root[kLanes];
    fxptq::store(high, fxptq::maximum(va, vb));
    fxptq::store(low, fxptq::minimum(va, vb));
    fxptq::store(root, fxptq::square_root(va * va));
    int32_t whole[kLanes];
    fxptq::store(whole, fxptq::nearest(va));
    std::vector<Expected> highs, lows, roots;
    std::vector<int64_t> wholes;
    double total = 0;
    for (int i = 0; i < kLanes; ++i) {
      highs.push_back({std::fmax(a[i], b[i]), 0});
      lows.push_back({std::fmin(a[i], b[i]), 0});
      roots.push_back({std::fabs(a[i]), 1e-7 * std::fabs(a[i])});
      wholes.push_back((int64_t)std::nearbyint((double)a[i]));
      total += a[i];
    }
    checks.near("maximum", high, highs);
    checks.near("minimum", low, lows);
    checks.near("square_root", root, roots);
    checks.equal("nearest", whole, wholes.data(), kLanes);
    const float sum = fxptq::sum(va);
    checks.near("sum of floats", &sum, {{total, 2e-4}});
    int64_t exact = 0;
    for (const int64_t i : wholes) exact += i;
    const int32_t sum_of_ints = fxptq::sum(fxptq::nearest(va));
    checks.equal("sum of integers", &sum_of_ints, &exact, 1);
  }
  // Ties go to the even neighbour, also at the ends of the range.
  const float ties[kLanes] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 254.5f, 255.5f, 0.49999997f, -0.49999997f, 4194303.0f,
                              -4194303.0f, 2097151.5f, -2097151.5f, 0.0f, -0.0f};
  int32_t got[kLanes];
  int64_t want[kLanes];
  fxptq::store(got, fxptq::nearest(fxptq::load<fxptq::Floats>(ties)));
  for (int i = 0; i < kLanes; ++i) want[i] = (int64_t)std::nearbyint((double)ties[i]);
  checks.equal("nearest, ties", got, want, kLanes);
  // A number wins over NaN, whichever operand it is the bound.
  const fxptq::Floats nan = fxptq::splat(NAN), five = fxptq::splat(5.0f);
  float bound[kLanes];
  const std::vector<Expected> fives(kLanes, {5.0, 0.0});
  fxptq::store(bound, fxptq::minimum(nan, five));
  checks.near("minimum of NaN and a bound", bound, fives);
  fxptq::store(bound, fxptq::maximum(nan, five));
  checks.near("maximum of NaN and a bound", bound, fives);

  const std::vector<float> all = reals(random, kLanes * kLanes, -1, 1);
  fxptq::Floats rows[kLanes];
  std::vector<Expected> sums(kLanes, {0.0, 4e-6});
  for (int r = 0; r < kLanes; ++r) {
    rows[r] = fxptq::load<fxptq::Floats>(all.data() + r * kLanes);
    for (int i = 0; i < kLanes; ++i) sums[r].value += all[r * kLanes + i];
  }
  float of_rows[kLanes];
  fxptq::store(of_rows, fxptq::sum_rows(rows));
  checks.near("sum_rows", of_rows, sums);
}

void check_dot(Checks& checks) {
  Random random(12);
  for (int trial = 0; trial < 100; ++trial) {
    const std::vector<uint8_t> a = codes(random, 64, 8, kFills[trial % 4]);
    std::vector<int8_t> b(64);
    for (int8_t& x : b) x = (int8_t)chosen(random, kFills[trial % 4], -128, 127);  // all 256 values, even ones too
    int32_t start[kLanes], got[kLanes];
    int64_t want[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      want[i] = start[i] = (int32_t)random.between(-2000000000, 2000000000);
      for (int k = 0; k < 4; ++k) want[i] += (int64_t)a[4 * i + k] * b[4 * i + k];
    }
    fxptq::store(got, fxptq::dot4(fxptq::load<fxptq::Ints>(start), fxptq::load<fxptq::Words>(a.data()),
                                  fxptq::load<fxptq::Words>((const uint8_t*)b.data())));
    checks.equal("dot4", got, want, kLanes);
    // Two products of 7-bit codes fit 16 bits, and so do two of any codes with ones.
    std::vector<uint8_t> small(64);
    std::vector<int8_t> few(64);
    for (int i = 0; i < 64; ++i) {
      small[i] = trial % 2 ? 1 : a[i] / 2;
      few[i] = trial % 4 < 2 ? b[i] : (int8_t)1;
      if (trial % 4 == 2) small[i] = a[i];
    }
    for (int i = 0; i < kLanes; ++i) {
      want[i] = start[i];
      for (int k = 0; k < 4; ++k) want[i] += (int64_t)small[4 * i + k] * few[4 * i + k];
    }
    fxptq::store(got, fxptq::dot4_small(fxptq::load<fxptq::Ints>(start), fxptq::load<fxptq::Words>(small.data()),
                                        fxptq::load<fxptq::Words>((const uint8_t*)few.data())));
    checks.equal("dot4_small", got, want, kLanes);
  }
}

void check_bytes(Checks& checks) {
  Random random(13);
  for (int n = 0; n < 300; n += 1 + n / 70) {
    const std::vector<uint8_t> a = codes(random, n, 8, n % 2 ? Fill::kRandom : Fill::kHighest);
    int64_t total = 0;
    for (const uint8_t x : a) total += x;
    const int32_t got = fxptq::sum_bytes(a.data(), n);
    checks.equal("sum_bytes " + std::to_string(n), &got, &total, 1);
  }
  for (const Fill fill : kFills) {
    std::vector<int8_t> a(64);
    for (int8_t& x : a) x = (int8_t)chosen(random, fill, -128, 127);
    fxptq::Bytes16 part[4];
    std::memcpy(part, a.data(), 64);
    uint8_t got[64], want[64];
    const fxptq::Bytes joined = fxptq::join(part[0], part[1], part[2], part[3]);
    fxptq::store(got, joined);
    checks.that(!std::memcmp(got, a.data(), 64), "join");
    int64_t sums[8], pairs[4] = {}, exact[4] = {};
    fxptq::store(sums, fxptq::row_sums(joined));
    for (int i = 0; i < 8; ++i) pairs[i / 2] += sums[i];
    for (int i = 0; i < 64; ++i) exact[i / 16] += a[i];
    checks.equal("row_sums", pairs, exact, 4);
    fxptq::store(got, fxptq::turn_fours(joined));
    for (int i = 0; i < 64; ++i) want[i] = (uint8_t)a[i / 16 * 16 + i % 4 * 4 + i % 16 / 4];
    checks.equal("turn_fours", got, want, 64);
    fxptq::store(got, fxptq::by_word(joined));
    for (int i = 0; i < 64; ++i) want[i] = (uint8_t)a[i % 16 / 4 * 16 + i / 16 * 4 + i % 4];
    checks.equal("by_word", got, want, 64);
  }
  fxptq::Words words[4];
  uint32_t values[4][kLanes];
  for (int w = 0; w < 4; ++w) {
    for (uint32_t& x : values[w]) x = (uint32_t)random.next();
    words[w] = fxptq::load<fxptq::Words>(values[w]);
  }
  alignas(64) uint32_t rows[kLanes][4];
  fxptq::rows_of_words(words, (uint8_t*)rows);
  uint32_t want[kLanes][4];
  for (int i = 0; i < kLanes; ++i) {
    for (int w = 0; w < 4; ++w) want[i][w] = values[w][i];
  }
  checks.equal("rows_of_words", &rows[0][0], &want[0][0], 64);
}

// Values of codes: inside, at ties, outside the ends, far outside.
float value(Random& random, double top) {
  switch (random.between(0, 5)) {
    case 0: return (float)(std::floor(random.real(0, top)) + 0.5);
    case 1: return (float)random.real(-1e6, 0);
    case 2: return (float)random.real(-2, 1);
    default: return (float)random.real(0, top);
  }
}

void check_codes(Checks& checks) {
  Random random(14);
  for (int n = 1; n <= 64; ++n) {
    std::vector<float> x(64);
    for (float& v : x) v = std::fmin(value(random, 255), 255.0f);
    fxptq::Floats y[4];
    for (int v = 0; v < 4; ++v) y[v] = fxptq::load<fxptq::Floats>(x.data() + v * kLanes);
    Guarded<uint8_t> out(n);
    std::vector<int64_t> want(n);
    fxptq::store_codes(out.data(), y, n);
    for (int i = 0; i < n; ++i) want[i] = (int64_t)std::nearbyint(std::fmax((double)x[i], 0.0));
    checks.equal("store_codes " + std::to_string(n), out.data(), want.data(), n);
    checks.intact("store_codes " + std::to_string(n), out);
  }
  for (int bits = 2; bits <= 8; ++bits) {
    const int levels = (1 << bits) - 1;
    std::vector<float> x(64);
    for (float& v : x) v = random.between(0, 9) ? value(random, levels) : (float)random.real(levels, 2e9);
    fxptq::Floats y[4];
    for (int v = 0; v < 4; ++v) y[v] = fxptq::load<fxptq::Floats>(x.data() + v * kLanes);
    uint8_t got[64];
    int64_t want[64];
    fxptq::store((uint32_t*)got, fxptq::four_codes(y, (uint8_t)levels));
    for (int i = 0; i < 64; ++i) {
      want[i] = (int64_t)std::nearbyint(std::fmin(std::fmax((double)x[i % 4 * kLanes + i / 4], 0.0), levels));
    }
    checks.equal("four_codes " + std::to_string(bits), got, want, 64);
  }
}

void check_functions(Checks& checks) {
  Random random(15);
  for (int trial = 0; trial < 200; ++trial) {
    const double reach = trial % 2 ? 127 : 3;
    const std::vector<float> a = reals(random, 2 * kLanes, -reach, reach);
    fxptq::Floats x[2] = {fxptq::load<fxptq::Floats>(a.data()), fxptq::load<fxptq::Floats>(a.data() + kLanes)};
    fxptq::exp2(x);
    std::vector<Expected> want;
    for (const float v : a) {
      const double power = std::exp2((double)v);
      want.push_back({power, v > -125 ? 2e-7 * power + 1e-45 : 1e-36});
    }
    float got[2 * kLanes];
    for (int i = 0; i < 2; ++i) fxptq::store(got + i * kLanes, x[i]);
    checks.near("exp2", got, want);

    const std::vector<float> b = reals(random, 4 * kLanes, -2 * reach, 2 * reach);
    fxptq::Floats y[4];
    for (int i = 0; i < 4; ++i) y[i] = fxptq::load<fxptq::Floats>(b.data() + i * kLanes);
    fxptq::gelu(y);
    want.clear();
    for (const float v : b) want.push_back({v * 0.5 * std::erfc(-v / std::sqrt(2.0)), 1e-6 + 2e-7 * std::fabs(v)});
    float values[4 * kLanes];
    for (int i = 0; i < 4; ++i) fxptq::store(values + i * kLanes, y[i]);
    checks.near("gelu", values, want);
  }
  fxptq::Floats far[1] = {fxptq::splat(-1e30f)};
  fxptq::exp2(far);
  float got[kLanes];
  fxptq::store(got, far[0]);
  checks.near("exp2 of -1e30", got, std::vector<Expected>(kLanes, {0.0, 1e-36}));
}

}  // namespace

void check_vectors(Checks& checks) {
  check_parts(checks);
  check_arithmetic(checks);
  check_dot(checks);
  check_bytes(checks);
  check_codes(checks);
  check_functions(checks);
}

}  // namespace native

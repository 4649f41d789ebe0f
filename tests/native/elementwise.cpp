// Codes from values without a product: elementwise.h.
#include "check.h"

#include <algorithm>

#include "elementwise.h"

namespace native {
namespace {

using fxptq::kLanes;

// The simulation in float32, operation by operation: codes are equal, ties included.
void check_quantize(Checks& checks) {
  Random random(40);
  for (int trial = 0; trial < 60; ++trial) {
    const int bits = 2 + trial % 7, count = (int)random.between(1, 300);
    const float levels = (float)((1 << bits) - 1), lower = (float)random.real(-3, 1), step = (float)random.real(0.01, 0.3);
    std::vector<float> x = reals(random, count, lower - 0.2 * levels * step, lower + 1.2 * levels * step);
    for (int i = 0; i < count; i += 3) x[i] = lower + step * ((float)random.between(0, (int64_t)levels) + 0.5f);
    if (count > 9) x[7] = INFINITY, x[8] = -INFINITY, x[9] = 1e30f;
    std::vector<int64_t> want(count);
    for (int i = 0; i < count; ++i) {
      const float shifted = x[i] - lower;
      const volatile float code = shifted / step;  // rounded to float32
      want[i] = (int64_t)std::nearbyint(std::fmin(std::fmax((double)code, 0.0), (double)levels));
    }
    const std::string what = "quantize " + std::to_string(count) + " to " + std::to_string(bits) + " bits";
    Guarded<uint8_t> out(count);
    checks.that(!fxptq::quantize(x.data(), out.data(), count, lower, step, levels), what + ": no NaN");
    checks.equal(what, out.data(), want.data(), count);
    checks.intact(what, out);
    x[random.between(0, count - 1)] = NAN;
    checks.that(fxptq::quantize(x.data(), out.data(), count, lower, step, levels), what + " reports NaN");
  }
}

// Each value has its own scale and offset, or all have the same.
void check_affine(Checks& checks) {
  Random random(42);
  for (int trial = 0; trial < 60; ++trial) {
    const int bits = 2 + trial % 7, count = (int)random.between(1, 300);
    const bool varies = random.coin();
    const float levels = (float)((1 << bits) - 1);
    const std::vector<float> scale = padded_reals(random, count, 0.2 * levels, levels);
    const std::vector<float> offset = padded_reals(random, count, -0.5 * levels, levels);
    std::vector<float> x = reals(random, count, -1, 2);
    if (count > 2) x[1] = INFINITY, x[2] = -INFINITY;
    std::vector<Expected> want;
    for (int i = 0; i < count; ++i) {
      const double z = (double)x[i] * scale[varies ? i : 0] + offset[varies ? i : 0];
      want.push_back({std::fmin(std::fmax(z, 0.0), (double)levels), 1e-6 * levels});
    }
    const std::string what = std::string("affine_codes ") + (varies ? "each " : "one ") + std::to_string(count);
    const auto make = varies ? fxptq::affine_codes<true> : fxptq::affine_codes<false>;
    Guarded<uint8_t> out(count);
    checks.that(!make(x.data(), out.data(), count, scale.data(), offset.data(), levels), what + ": no NaN");
    checks.rounded(what, out.data(), want);
    checks.intact(what, out);
    x[random.between(0, count - 1)] = NAN;
    checks.that(make(x.data(), out.data(), count, scale.data(), offset.data(), levels), what + " reports NaN");
  }
}

void check_shares(Checks& checks) {
  Random random(43);
  for (int trial = 0; trial < 60; ++trial) {
    const int bits = 2 + trial % 7, width = (int)random.between(1, 200);
    const float levels = (float)((1 << bits) - 1), scale = levels / (float)random.real(0.5, 1.0);
    std::vector<float> x = reals(random, width, 0, trial % 5 ? 0.4 : 0.0);
    x[random.between(0, width - 1)] = trial % 5 ? 0.5f : -1.0f;  // also rows without a positive value
    const double largest = std::fmax(1e-30, *std::max_element(x.begin(), x.end()));
    std::vector<Expected> want;
    for (const float one : x) want.push_back({std::fmin(std::fmax(one / largest * scale, 0.0), (double)levels), 1e-6 * levels});
    const std::string what = "share_codes " + std::to_string(width) + " to " + std::to_string(bits) + " bits";
    Guarded<uint8_t> out(width);
    checks.that(!fxptq::share_codes(x.data(), out.data(), width, scale, levels), what + ": no NaN");
    checks.rounded(what, out.data(), want);
    checks.intact(what, out);
    x[random.between(0, width - 1)] = NAN;
    checks.that(fxptq::share_codes(x.data(), out.data(), width, scale, levels), what + " reports NaN");
  }
}

void check_layer_norm(Checks& checks) {
  Random random(41);
  for (int trial = 0; trial < 60; ++trial) {
    const int rows = (int)random.between(1, kLanes), width = (int)random.between(1, 150), bits = 2 + trial % 7;
    const float levels = (float)((1 << bits) - 1), eps = 1e-5f;
    const double mean_of_rows = trial % 3 ? 0.0 : 100.0;
    std::vector<float> x = reals(random, (size_t)rows * width, mean_of_rows - 2, mean_of_rows + 2);
    const std::vector<float> scale = padded_reals(random, width, -0.4 * levels, 0.4 * levels);
    const std::vector<float> offset = padded_reals(random, width, 0, levels);
    std::vector<Expected> want;
    for (int r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (int i = 0; i < width; ++i) mean += x[r * width + i];
      mean /= width;
      for (int i = 0; i < width; ++i) variance += (x[r * width + i] - mean) * (x[r * width + i] - mean);
      const double deviation = std::sqrt(variance / width + eps);
      // Floats near the mean are this far apart; a narrow row divides the distance by little.
      const double grain = (std::fabs(mean) + 2) * 4e-7 / deviation;
      for (int i = 0; i < width; ++i) {
        const double unit = (x[r * width + i] - mean) / deviation, z = unit * scale[i] + offset[i];
        const double error = (grain + 2e-6 * std::fabs(unit)) * std::fabs(scale[i]) + 1e-6 * levels;
        want.push_back({std::fmin(std::fmax(z, 0.0), (double)levels), error});
      }
    }
    const std::string what = "layer_norm_codes " + std::to_string(rows) + "x" + std::to_string(width);
    Guarded<uint8_t> out((size_t)rows * width);
    checks.that(!fxptq::layer_norm_codes(x.data(), out.data(), rows, width, scale.data(), offset.data(), eps, levels),
                what + ": no NaN");
    checks.rounded(what, out.data(), want);
    checks.intact(what, out);
    x[random.between(0, (int64_t)rows * width - 1)] = trial % 2 ? NAN : INFINITY;
    checks.that(fxptq::layer_norm_codes(x.data(), out.data(), rows, width, scale.data(), offset.data(), eps, levels),
                what + " reports NaN");
  }
}

}  // namespace

void check_elementwise(Checks& checks) {
  check_quantize(checks);
  check_affine(checks);
  check_shares(checks);
  check_layer_norm(checks);
}

}  // namespace native

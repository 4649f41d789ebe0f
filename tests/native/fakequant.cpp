// Values on a grid and their gradients: fakequant.h.
#include "check.h"

#include "fakequant.h"

namespace native {
namespace {

// The definition in float32, each operation rounded on its own.
struct Reference {
  float z, clipped, value;

  Reference(float x, float scale, float offset, float levels) {
    const volatile float distance = x - offset;
    const volatile float quotient = distance / scale;
    z = quotient;
    clipped = z < 0 ? 0 : z > levels ? levels : z;
    const volatile float product = std::nearbyint(clipped) * scale;
    const volatile float sum = product + offset;
    value = sum;
  }
};

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

float next_to(float x, int64_t steps) {
  for (; steps > 0; --steps) x = std::nextafter(x, INFINITY);
  for (; steps < 0; ++steps) x = std::nextafter(x, -INFINITY);
  return x;
}

// Values in and around the grid, on ties and beside them, and extreme ones.
std::vector<float> values(Random& random, int64_t count, float scale, float offset, float levels) {
  std::vector<float> x = reals(random, count, offset - 0.3 * levels * scale, offset + 1.3 * levels * scale);
  for (int64_t i = 0; i < count; i += 3) {
    x[i] = next_to(offset + scale * ((float)random.between(-2, (int64_t)levels + 2) / 2), random.between(-2, 2));
  }
  const float extremes[] = {INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f, 1e-45f};
  for (int64_t i = 1; i < count; i += 17) x[i] = extremes[random.between(0, 6)];
  return x;
}

void check_grid(Checks& checks, Random& random, int trial, int exponent) {
  const int bits = 2 + trial % 7;
  const int64_t count = random.between(1, 400);
  const float levels = (float)((1 << bits) - 1), scale = std::ldexp((float)random.real(1, 2), exponent);
  const float offset = trial % 5 ? (float)random.real(-1.5, 0.5) * levels * scale : 0.0f;
  const fxptq::fakequant::Grid grid(scale, offset, levels);
  std::vector<float> x = values(random, count, scale, offset, levels);
  const std::vector<float> upstream = reals(random, count, -1, 1);
  const std::string what = std::to_string(count) + " values on " + std::to_string(bits) + " bits, scale 2^" + std::to_string(exponent);

  double of_scale = 0, of_offset = 0, size = 0;
  std::vector<bool> outside(count);
  for (int64_t i = 0; i < count; ++i) {
    const Reference want(x[i], scale, offset, levels);
    outside[i] = want.z != want.clipped;
    of_scale += (outside[i] ? want.clipped : std::nearbyint(want.clipped) - want.clipped) * (double)upstream[i];
    of_offset += outside[i] ? upstream[i] : 0;
    size += std::fabs(upstream[i]) * levels;
  }
  Guarded<float> gradient(count);
  const fxptq::fakequant::GridGradient found = fxptq::fake_quantize_backward(x.data(), upstream.data(), gradient.data(), count, grid);
  bool right = true;
  for (int64_t i = 0; i < count; ++i) right = right && gradient.data()[i] == (outside[i] ? 0 : upstream[i]);
  checks.that(right, what + ": gradient of the values");
  checks.that(std::fabs(found.scale - of_scale) <= 3e-7 * size, what + ": gradient of the scale");
  checks.that(std::fabs(found.offset - of_offset) <= 3e-7 * size, what + ": gradient of the offset");
  checks.intact(what + ": gradient", gradient);
  const fxptq::fakequant::GridGradient alone = fxptq::fake_quantize_backward(x.data(), upstream.data(), nullptr, count, grid);
  checks.that(alone.scale == found.scale && alone.offset == found.offset, what + ": gradients of the grid alone");

  if (trial % 4 == 0) x[random.between(0, count - 1)] = NAN;
  Guarded<float> out(count);
  fxptq::fake_quantize(x.data(), out.data(), count, grid);
  right = true;
  for (int64_t i = 0; i < count; ++i) right = right && same(out.data()[i], Reference(x[i], scale, offset, levels).value);
  checks.that(right, what);
  checks.intact(what, out);
}

// The nearest value of a grid behind a factor and a center, each operation rounded on its own.
float mapped(float x, float scale, float offset, float levels, float factor, float center) {
  const volatile float distance = x - center;
  const volatile float on_grid = distance / factor;
  const volatile float product = Reference(on_grid, scale, offset, levels).value * factor;
  const volatile float sum = product + center;
  return sum;
}

// A pattern of factors and centers that repeats from a phase on; of one element, the map is constant.
void check_map(Checks& checks, Random& random, int trial) {
  using namespace fxptq::fakequant;
  const int64_t count = random.between(1, 400), pattern = trial % 3 ? random.between(1, 90) : 1, phase = random.between(0, pattern - 1);
  const float levels = (float)((1 << (2 + trial % 7)) - 1), scale = (float)random.real(0.1, 2), offset = (float)random.real(-9, 1);
  const Grid grid(scale, offset, levels);
  const std::vector<float> factor = reals(random, pattern, 0.1, 3), center = reals(random, pattern, -2, 2);
  const std::vector<float> upstream = reals(random, count, -1, 1);
  std::vector<float> factors(RepeatedMap::length(pattern)), centers(factors.size());
  for (size_t i = 0; i < factors.size(); ++i) factors[i] = factor[i % pattern], centers[i] = center[i % pattern];
  std::vector<float> x = values(random, count, scale, offset, levels);
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] * factor[(phase + i) % pattern] + center[(phase + i) % pattern];
  const std::string what = std::to_string(count) + " values behind a map of " + std::to_string(pattern);

  Guarded<float> out(count), gradient(count);
  GridGradient found;
  const auto run = [&](const auto& map) {
    fxptq::fake_quantize(x.data(), out.data(), count, grid, map);
    found = fxptq::fake_quantize_backward(x.data(), upstream.data(), gradient.data(), count, grid, map);
  };
  if (pattern == 1) {
    run(ConstantMap(factor[0], center[0]));
  } else {
    run(RepeatedMap(factors.data(), centers.data(), RepeatedMap::period(pattern), phase));
  }
  bool right = true, passed = true;
  double of_scale = 0, of_offset = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float f = factor[(phase + i) % pattern], c = center[(phase + i) % pattern];
    right = right && same(out.data()[i], mapped(x[i], scale, offset, levels, f, c));
    const volatile float distance = x[i] - c;
    const volatile float on_grid = distance / f;
    const Reference want(on_grid, scale, offset, levels);
    const bool outside = want.z != want.clipped;
    passed = passed && gradient.data()[i] == (outside ? 0 : upstream[i]);
    of_scale += (outside ? want.clipped : std::nearbyint(want.clipped) - want.clipped) * (double)upstream[i] * f;
    of_offset += outside ? (double)upstream[i] * f : 0;
    size += std::fabs(upstream[i]) * f * levels;
  }
  checks.that(right, what);
  checks.that(passed, what + ": gradient of the values");
  checks.that(std::fabs(found.scale - of_scale) <= 4e-7 * size, what + ": gradient of the scale");
  checks.that(std::fabs(found.offset - of_offset) <= 4e-7 * size, what + ": gradient of the offset");
  checks.intact(what, out);
  checks.intact(what + ": gradient", gradient);
}

// The quotient is the one of a division for every significand, here in steps, of many scales.
void check_quotients(Checks& checks) {
  Random random(51);
  for (int trial = 0; trial < 120; ++trial) {
    const float scale = trial == 0 ? 1.0f : trial == 1 ? 2.0f - 0x1p-23f : (float)random.real(1, 2);
    const fxptq::fakequant::Grid grid(scale, 0.0f, 255.0f);
    const float start = std::ldexp(1.0f, (int)random.between(-1, 7));
    bool right = true;
    for (uint32_t step = (uint32_t)random.between(0, 40); step < (1u << 23); step += 41 * fxptq::fakequant::kWidth) {
      float x[fxptq::fakequant::kWidth], wide[fxptq::fakequant::kWidth];
      for (int i = 0; i < fxptq::fakequant::kWidth; ++i) x[i] = start + std::ldexp(start, -23) * (float)((step + 41 * i) & 0x7fffff);
      const fxptq::fakequant::Values z = grid.clipped(grid.place<true>(fxptq::fakequant::load_values(x)));
      fxptq::fakequant::store_values(wide, z);
      for (int i = 0; i < fxptq::fakequant::kWidth; ++i) {
        const volatile float quotient = x[i] / scale;
        right = right && wide[i] == std::fmin(quotient, 255.0f);
      }
    }
    checks.that(right, "quotients by " + std::to_string(scale));
  }
}

}  // namespace

void check_fakequant(Checks& checks) {
  Random random(50);
  for (int trial = 0; trial < 300; ++trial) check_grid(checks, random, trial, (int)random.between(-30, 30));
  for (int trial = 0; trial < 30; ++trial) check_grid(checks, random, trial, trial % 2 ? -80 : 80);
  for (int trial = 0; trial < 300; ++trial) check_map(checks, random, trial);
  check_quotients(checks);
}

}  // namespace native

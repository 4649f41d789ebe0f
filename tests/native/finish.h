// The epilogue written out in double, for the families that end in one.
#pragma once

#include "check.h"

#include "epilogue.h"

namespace native {

// The parameters of an epilogue, and storage for them.
struct FinishCase {
  fxptq::Activation activation;
  bool row_scale, residual, codes;
  float slope = 0.0f;
  std::vector<float> scales, biases, row_scales, levels, out_scales, out_offsets;  // the last two: of codes that are not linear

  // `sum` is the size that sums have about; values come out near `0 .. 2^bits`, so that both clips occur.
  static FinishCase of(Random& random, int columns, double sum, fxptq::Activation activation, bool row_scale, bool residual,
                       bool codes) {
    FinishCase c{activation, row_scale, residual, codes};
    const int bits = (int)random.between(2, 8);
    const double top = codes ? (1 << bits) : 4.0;
    c.scales = padded_reals(random, columns, 0.1 * top / sum, top / sum);
    c.biases = padded_reals(random, columns, -0.5 * top, top);
    c.row_scales = padded_reals(random, columns, -0.2 * top / sum, 0.2 * top / sum);
    c.levels = std::vector<float>(c.scales.size());
    for (int i = 0; i < columns; ++i) c.levels[i] = (float)((1 << bits) - 1);
    if (activation == fxptq::Activation::kLeaky && random.coin()) c.slope = 0.2f;
    if (codes && (activation != fxptq::Activation::kNone || residual)) {
      c.out_scales = padded_reals(random, columns, 0.3, 0.9), c.out_offsets = padded_reals(random, columns, -0.5, 1.5);
    }
    return c;
  }

  fxptq::Epilogue epilogue(int columns) const {
    return {columns, scales.data(), row_scale ? row_scales.data() : nullptr, activation, slope, codes ? levels.data() : nullptr,
            out_scales.empty() ? nullptr : out_scales.data(), out_offsets.empty() ? nullptr : out_offsets.data()};
  }

  std::string name() const {
    static const char* const names[] = {"", " leaky", " gelu"};
    return std::string(names[(int)activation]) + (row_scale ? " row_scale" : "") + (residual ? " residual" : "") +
           (codes ? " codes" : " values");
  }

  // The output of a column from exact integers. `scale` and `row_scale` are factors of them; `added` joins the bias.
  Expected expected(int column, double sum, double row_sum, double added, double residual_value) const {
    const double scaled = scales[column] * sum, rows = row_scale ? row_scales[column] * row_sum : 0.0;
    double y = scaled + rows + biases[column] + added;
    double error = 1e-6 * (std::fabs(scaled) + std::fabs(rows) + std::fabs(biases[column]) + std::fabs(added));
    if (activation == fxptq::Activation::kLeaky && y < 0) y *= slope;
    if (activation == fxptq::Activation::kGelu) y *= 0.5 * std::erfc(-y / std::sqrt(2.0)), error = 1.2 * error + 2e-6;
    if (residual) y += residual_value, error += 1e-6 * std::fabs(y);
    if (!codes) return {y, error + 1e-7 * std::fabs(y)};
    if (!out_scales.empty()) y = y * out_scales[column] + out_offsets[column], error += 1e-6 * (std::fabs(y) + 1.5);
    return {std::fmin(std::fmax(y, 0.0), levels[column]), error};
  }
};

}  // namespace native

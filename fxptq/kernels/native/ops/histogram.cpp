// Histograms of the values that quantizers see (declared in fxptq/quant/operators.py).
#include "../histogram.h"
#include "common.h"

namespace fxptq {
namespace {

// Values are cut into pieces, and pieces are dealt to a few tables, whose number depends on the number of values alone: so
// do the sums, whatever the number of threads.
constexpr int64_t kPiece = 1 << 14, kTables = 4, kEnough = 3 << 14;

Tensor histogram_of(const Tensor& x, double scale, double first, int64_t bins) {
  FXPTQ_CHECK(x.dim() == 1 && x.is_contiguous(), "a histogram takes contiguous values [n]");
  FXPTQ_CHECK(bins > 0 && bins < 1 << 24, "a histogram has 1 to 2^24 bins, not ", bins);
  const float* from = data<float>(x);
  const int64_t n = x.size(0), pieces = (n + kPiece - 1) / kPiece;
  const int64_t tables = std::clamp<int64_t>(n / kEnough, 1, kTables);
  std::vector<histogram::Bin> parts(tables * bins);
  std::atomic<bool> inside = true;
  parallel_for(tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t piece = t; piece < pieces; piece += tables) {
        const int64_t start = piece * kPiece;
        const int64_t count = std::min(kPiece, n - start);
        if (!histogram::add(from + start, count, scale, first, bins, parts.data() + t * bins)) inside = false;
      }
    }
  });
  FXPTQ_CHECK(inside, "a value lies in none of ", bins, " bins");
  const int64_t shape[] = {3, bins};
  Tensor table = empty(shape, Element<double>::number());
  double *count = writable<double>(table), *sum = count + bins, *squares = sum + bins;
  for (int64_t i = 0; i < bins; ++i) {
    histogram::Bin all{};
    for (int64_t t = 0; t < tables; ++t) {
      const histogram::Bin& part = parts[t * bins + i];
      all.count += part.count, all.sum += part.sum, all.squares += part.squares;
    }
    count[i] = (double)all.count, sum[i] = all.sum, squares[i] = all.squares;
  }
  return table;
}

STABLE_TORCH_LIBRARY_IMPL(fxptq, CPU, m) { m.impl("histogram", TORCH_BOX(&histogram_of)); }

}  // namespace
}  // namespace fxptq

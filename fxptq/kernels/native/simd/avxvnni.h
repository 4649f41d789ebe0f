// AVX2 with the dot product of bytes of AVX-VNNI.
#pragma once

#include "avx2.h"

namespace fxptq::avxvnni {

using avx2::by_word;
using avx2::exp2;
using avx2::four_codes;
using avx2::gelu;
using avx2::join;
using avx2::keep;
using avx2::keep_first;
using avx2::kDotPairs;
using avx2::kRegister;
using avx2::Shorts;
using avx2::zip_first;
using avx2::zip_last;
using avx2::load_first;
using avx2::maximum;
using avx2::minimum;
using avx2::nearest;
using avx2::Pairs;
using avx2::row_sums;
using avx2::rows_of_words;
using avx2::square_root;
using avx2::store_codes;
using avx2::store_first;
using avx2::sum;
using avx2::sum_bytes;
using avx2::sum_rows;
using avx2::turn_fours;

FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  return {(Ints::Half)_mm256_dpbusd_avx_epi32((__m256i)acc.low, (__m256i)a.low, (__m256i)b.low),
          (Ints::Half)_mm256_dpbusd_avx_epi32((__m256i)acc.high, (__m256i)a.high, (__m256i)b.high)};
}

FXPTQ_INLINE Ints dot4_small(Ints acc, Words a, Words b) { return dot4(acc, a, b); }

constexpr bool kDotBytes = true;

FXPTQ_INLINE Pairs dot2(Pairs acc, Pairs a, Pairs b) {
  return (Pairs)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
}

}  // namespace fxptq::avxvnni

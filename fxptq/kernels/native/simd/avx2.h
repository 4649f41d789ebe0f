// The operations of portable.h on AVX2, where 256-bit instructions do better than the compiler.
#pragma once

#include <immintrin.h>

#include "portable.h"

namespace fxptq::avx2 {

using portable::by_word;
using portable::exp2;
using portable::four_codes;
using portable::gelu;
using portable::join;
using portable::keep_first;
using portable::load_first;
using portable::maximum;
using portable::minimum;
using portable::nearest;
using portable::row_sums;
using portable::rows_of_words;
using portable::square_root;
using portable::store_codes;
using portable::store_first;
using portable::sum;
using portable::sum_bytes;
using portable::sum_rows;
using portable::turn_fours;

FXPTQ_INLINE Ints dot4(Ints acc, Words a, Words b) {
  // maddubs saturates for 8-bit codes, so even and odd bytes are widened to 16 bits first.
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i* pa = (const __m256i*)&a;
  const __m256i* pb = (const __m256i*)&b;
  Ints out;
  for (int i = 0; i < 2; ++i) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(pa[i], low), _mm256_srai_epi16(_mm256_slli_epi16(pb[i], 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(pa[i], 8), _mm256_srai_epi16(pb[i], 8));
    ((__m256i*)&out)[i] = _mm256_add_epi32(((const __m256i*)&acc)[i], _mm256_add_epi32(even, odd));
  }
  return out;
}

}  // namespace fxptq::avx2

// Tables of 32 and of 16 entries in AVX-512's registers, and what else of its instructions a table's
// functions take (gates.h). In the masked forms: GCC 12 warns of what the others leave undefined.
#pragma once

#if !defined(FUSED_RNN_TABLES)  // tests have a model of them
#define FUSED_RNN_TABLES Avx512Tables

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

struct Avx512Tables {
  static constexpr __mmask16 kAll = 0xffff;

  template <class K>
  FUSED_RNN_INLINE static K truncated(Vec<float> v) {
    return same_bits<K>(_mm512_maskz_cvttps_epi32(kAll, v));
  }
  // table[k % 32]
  template <class V, class K>
  FUSED_RNN_INLINE static V entry(const float* table, K k) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), same_bits<__m512i>(k),
                                  _mm512_load_ps(table + 16));
  }
  // table[k % 16]
  template <class K>
  FUSED_RNN_INLINE static K sixteenth(const std::uint32_t* table, K k) {
    return same_bits<K>(
        _mm512_maskz_permutexvar_epi32(kAll, same_bits<__m512i>(k), _mm512_load_si512(table)));
  }
  // Within 2^-14 of it.
  FUSED_RNN_INLINE static Vec<float> reciprocal(Vec<float> v) {
    return _mm512_maskz_rcp14_ps(kAll, v);
  }
  // The instructions return their second operand where one is a NaN.
  FUSED_RNN_INLINE static Vec<float> clamp(Vec<float> x, float bound) {
    using V = Vec<float>;
    return _mm512_maskz_min_ps(kAll, V{} + bound, _mm512_maskz_max_ps(kAll, V{} - bound, x));
  }
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn
#endif

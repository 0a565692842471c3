// csrc/cpu/tiles/tables.h in plain C++, for CPUs without AVX-512: near it, as its reciprocal is exact.
#pragma once

#include <cstdint>

#include "../../csrc/macros.h"

namespace fused_rnn {

struct TableModel {
  // As the instruction, which knows no number for a NaN.
  template <class K, class V>
  FUSED_RNN_INLINE static K truncated(V v) {
    K k{};
    for (int i = 0; i < 16; ++i) {
      k[i] =
          v[i] == v[i] ? static_cast<std::uint32_t>(static_cast<std::int32_t>(v[i])) : 0x80000000u;
    }
    return k;
  }
  template <class V, class K>
  FUSED_RNN_INLINE static V entry(const float* table, K k) {
    V v{};
    for (int i = 0; i < 16; ++i) {
      v[i] = table[k[i] % 32];
    }
    return v;
  }
  template <class K>
  FUSED_RNN_INLINE static K sixteenth(const std::uint32_t* table, K k) {
    K found{};
    for (int i = 0; i < 16; ++i) {
      found[i] = table[k[i] % 16];
    }
    return found;
  }
  template <class V>
  FUSED_RNN_INLINE static V reciprocal(V v) {
    return 1.0f / v;
  }
  template <class V>
  FUSED_RNN_INLINE static V clamp(V x, float bound) {
    x = x < -bound ? V{} - bound : x;  // a NaN stays
    return x > bound ? V{} + bound : x;
  }
};

}  // namespace fused_rnn

// A SIMD level of the quantized scans whose instruction is modelled in plain C++, so that its packing and
// its loops run on any CPU. FUSED_RNN_LEVEL, the registers and FUSED_RNN_DOT stand on the command line.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fused_rnn {

// vpdpbusd.
struct VnniModel {
  template <class V>
  static void add(V& sums, const V& unsigned_bytes, const V& signed_bytes) {
    for (std::size_t i = 0; i < sizeof(V) / 4; ++i) {
      std::uint8_t u[4];
      std::int8_t s[4];
      const std::uint32_t us = unsigned_bytes[i], ss = signed_bytes[i];
      std::memcpy(u, &us, 4);
      std::memcpy(s, &ss, 4);
      for (int b = 0; b < 4; ++b) {
        sums[i] += static_cast<std::uint32_t>(u[b] * s[b]);
      }
    }
  }
};

}  // namespace fused_rnn

#define FUSED_RNN_SHOWN "model"
#include "../../csrc/cpu/quantized/level.inc"

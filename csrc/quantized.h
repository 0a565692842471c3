// The narrow waist of layers whose weights are stored in fewer bits: what scan.h is for the others.
#pragma once

#include "scan.h"

namespace fused_rnn {

enum class Stored { kInt8, kBFloat16 };

// Where x, states and biases are float32, and weights, w_ih, w_hh and w_hr, as `stored` says; but for
// int8, w_ih may be bfloat16. An int8 weight stands for itself times its row's scale.
struct QuantizedArgs : ForwardArgs {
  Stored stored;
  const float* s_ih;  // (G*H,)  null, here and below, for a weight that is bfloat16
  const float* s_hh;  // (G*H,)
  const float* s_hr;  // (P,)    null where P == 0
};

// The most columns of an int8 weight: a sum of so many products is a 32-bit integer.
constexpr std::int64_t kMostColumns = std::int64_t{1} << 17;
static_assert(kMostColumns * 127 * 128 < std::int64_t{1} << 31);

namespace cpu {

struct QuantizedLevel {
  const char* name;
  void (*forward)(const QuantizedArgs&);
};

// The best one that this machine has among those that FUSED_RNN_SIMD allows (scan.h's level()).
const QuantizedLevel& quantized_level(Stored stored);

}  // namespace cpu
}  // namespace fused_rnn

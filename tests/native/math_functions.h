// The functions of math.h under one signature, for whatever V the includer has.
#pragma once

#include "../../csrc/math.h"

namespace fused_rnn::bench {

enum class Function { kExp, kSigmoid, kTanh, kRelu };

template <class V>
FUSED_RNN_INLINE V apply(Function f, V x) {
  switch (f) {
    case Function::kSigmoid:
      return sigmoid(x);
    case Function::kTanh:
      return tanh(x);
    case Function::kRelu:
      return relu(x);
    default:
      break;
  }
  const ExpParts<V> e = exp_parts(x);
  return e.scale * e.fraction + e.scale;
}

}  // namespace fused_rnn::bench

// math.h with scalars for V, as a CUDA thread sees it: a library of its own, for ctypes.
#include <cstdint>

#include "math_functions.h"

namespace {

template <class T>
void evaluate(int function, const T* in, T* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = fused_rnn::bench::apply(static_cast<fused_rnn::bench::Function>(function), in[i]);
  }
}

}  // namespace

// `function` as fused_rnn::bench::Function counts.
extern "C" void evaluate_float(int function, const float* in, float* out, std::int64_t n) {
  evaluate(function, in, out, n);
}

extern "C" void evaluate_double(int function, const double* in, double* out, std::int64_t n) {
  evaluate(function, in, out, n);
}

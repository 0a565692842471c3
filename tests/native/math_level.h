// The arithmetic of math.h and dtypes.h over arrays, as one SIMD level compiles it.
#pragma once

#include <cstdint>

namespace fused_rnn::bench {

// From arrays of n elements to arrays of n elements, by whole registers and, at the end, a partly
// filled one. `function` as bench::Function counts.
struct MathLevel {
  void (*of_float)(int function, const float*, float*, std::int64_t n);
  void (*of_double)(int function, const double*, double*, std::int64_t n);
  void (*widen_half)(const std::uint16_t*, float*, std::int64_t n);
  void (*widen_bfloat16)(const std::uint16_t*, float*, std::int64_t n);
  void (*narrow_half)(const float*, std::uint16_t*, std::int64_t n);
  void (*narrow_bfloat16)(const float*, std::uint16_t*, std::int64_t n);
};

}  // namespace fused_rnn::bench

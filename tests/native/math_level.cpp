// math.h and dtypes.h for one SIMD level, which the command line names. Headers of the standard
// library come before the target is set, as in csrc/cpu/level.inc.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../../csrc/dtypes.h"
#include "../../csrc/cpu/scratch.h"
#include "math_level.h"

#if defined(FUSED_RNN_TARGET)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(FUSED_RNN_TARGET))), apply_to = function)
#else
#define FUSED_RNN_PRAGMA(text) _Pragma(#text)
#define FUSED_RNN_SET_TARGET(features) FUSED_RNN_PRAGMA(GCC target(features))
FUSED_RNN_SET_TARGET(FUSED_RNN_TARGET)
#endif
#endif

#include "math_functions.h"
#include "../../csrc/cpu/vec.h"

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {
namespace {

template <class T>
void evaluate(int function, const T* in, T* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes<T>) {
    const std::int64_t valid = std::min(kLanes<T>, n - i);
    const Vec<T> v = bench::apply(static_cast<bench::Function>(function), load(in + i, valid));
    store<T>(out + i, v, valid);
  }
}

template <class S>
void widen_all(const std::uint16_t* in, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes<float>) {
    const std::int64_t valid = std::min(kLanes<float>, n - i);
    store<float>(out + i, load(reinterpret_cast<const S*>(in + i), valid), valid);
  }
}

template <class S>
void narrow_all(const float* in, std::uint16_t* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes<float>) {
    const std::int64_t valid = std::min(kLanes<float>, n - i);
    store<S>(reinterpret_cast<S*>(out + i), load(in + i, valid), valid);
  }
}

}  // namespace

extern const bench::MathLevel kMath;
const bench::MathLevel kMath = {evaluate<float>,     evaluate<double>, widen_all<Half>,
                                widen_all<BFloat16>, narrow_all<Half>, narrow_all<BFloat16>};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

#if defined(FUSED_RNN_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif

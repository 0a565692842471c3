// Element types: the only list of them. A new one is a line here and a tolerance row in
// tests/conftest.py.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace fused_rnn {

struct Half {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

// X(name as in c10::ScalarType, stored type, type of the arithmetic)
#define FUSED_RNN_DTYPES(X) \
  X(Float, float, float)    \
  X(Double, double, double) \
  X(Half, Half, float)      \
  X(BFloat16, BFloat16, float)

enum class Dtype {
#define FUSED_RNN_ENUM(name, stored, compute) k##name,
  FUSED_RNN_DTYPES(FUSED_RNN_ENUM)
#undef FUSED_RNN_ENUM
};

template <class S>
struct ComputeType;
#define FUSED_RNN_COMPUTE(name, stored, compute) \
  template <>                                    \
  struct ComputeType<stored> {                   \
    using type = compute;                        \
  };
FUSED_RNN_DTYPES(FUSED_RNN_COMPUTE)
#undef FUSED_RNN_COMPUTE

template <class To, class From>
FUSED_RNN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

FUSED_RNN_INLINE float widen(float v) { return v; }
FUSED_RNN_INLINE double widen(double v) { return v; }

FUSED_RNN_INLINE float widen(BFloat16 v) {
  return bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16);
}

// GPUs have instructions for these conversions, which give the same but for the bits of a NaN:
// rounding in integers takes ten. Those of bfloat16 are sm_80's.
FUSED_RNN_INLINE float widen(Half v) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // The exponent is moved by a multiplication, which also normalises subnormal numbers.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(0x77800000u);  // 2^112
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(scaled));
#endif
}

template <class S>
FUSED_RNN_INLINE S narrow(typename ComputeType<S>::type v);

template <>
FUSED_RNN_INLINE float narrow<float>(float v) {
  return v;
}

template <>
FUSED_RNN_INLINE double narrow<double>(double v) {
  return v;
}

template <>
FUSED_RNN_INLINE BFloat16 narrow<BFloat16>(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 narrowed;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(v));
  return narrowed;
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};  // stay a NaN when the low bits go
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <>
FUSED_RNN_INLINE Half narrow<Half>(float v) {
#if defined(__CUDA_ARCH__)
  Half narrowed;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(v));
  return narrowed;
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(v);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and up round to infinity
    return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lets the FPU round at bit 2^-24
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (bit_cast<std::uint32_t>(shifted) - 0x3f000000u))};
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
#endif
}

}  // namespace fused_rnn

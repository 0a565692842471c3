// exp, sigmoid and tanh for a vector register, a scalar or a CUDA thread, from one polynomial.
//
// V is float, double or a GCC/Clang vector of them. All are branch-free, pass NaN through and stay
// within 3 units in the last place (tests/native measures it).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(FUSED_RNN_SIMT)
#include <cmath>
#endif

#include "dtypes.h"

namespace fused_rnn {

template <class V, bool = std::is_floating_point<V>::value>
struct Lanes {  // a vector
  using Scalar = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
  using Word = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;
  typedef Word Bits __attribute__((vector_size(sizeof(V))));
};

template <class V>
struct Lanes<V, true> {
  using Scalar = V;
  using Word = std::conditional_t<sizeof(V) == 4, std::uint32_t, std::uint64_t>;
  using Bits = Word;
};

// Minimax fits on |r| <= ln(2)/2 of q in exp(r) = 1 + r + r^2 q(r); relative error of exp below
// 3.1e-9 (float) and 5.3e-20 (double). ln(2) is split so that k * kLn2Hi is exact.
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int kTerms = 5;
  static FUSED_RNN_INLINE constexpr float q(int i) {
    constexpr float kQ[kTerms] = {0.4999999345f, 0.1666652067f, 0.04166838752f, 0.008368711233f,
                                  0.001381460719f};
    return kQ[i];
  }
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440055e-4f;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer
  static constexpr float kLowest = -87.0f, kHighest = 87.3f;  // the logarithm of 2^126 at most
  static constexpr int kMantissaBits = 23, kBias = 127;
};

template <>
struct ExpConstants<double> {
  static constexpr int kTerms = 11;
  static FUSED_RNN_INLINE constexpr double q(int i) {
    constexpr double kQ[kTerms] = {
        0.500000000000000004,    0.166666666666666834,    0.0416666666666660947,
        0.00833333333331704408,  0.00138888888891154884,  0.000198412698963573986,
        2.48015869268010337e-05, 2.75572348899313565e-06, 2.75575817790503238e-07,
        2.51120266135296272e-08, 2.08266286609179417e-09};
    return kQ[i];
  }
  static constexpr double kLn2Hi = 0.6931471803691238, kLn2Lo = 1.9082149292705878161e-10;
  static constexpr double kRound = 6755399441055744.0;         // 1.5 * 2^52
  static constexpr double kLowest = -708.0, kHighest = 708.3;  // of 2^1022
  static constexpr int kMantissaBits = 52, kBias = 1023;
};

// bit_cast for registers too. That of dtypes.h is included before a level's target is set, and clang
// hands no AVX register to a function that is not compiled for AVX, though it be inlined.
template <class To, class From>
FUSED_RNN_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// exp(x) = scale * (1 + fraction), scale a power of two and |fraction| < 0.42.
template <class V>
struct ExpParts {
  V scale, fraction;
};

template <class V>
FUSED_RNN_INLINE ExpParts<V> exp_parts(V x) {
  using T = typename Lanes<V>::Scalar;
  using Bits = typename Lanes<V>::Bits;
  using C = ExpConstants<T>;
  const V zero = V{};
  x = x < C::kLowest ? zero + C::kLowest : x;  // comparisons with a NaN are false: it stays
  x = x > C::kHighest ? zero + C::kHighest : x;
  const V shifted = x * static_cast<T>(1.4426950408889634) + C::kRound;
  const V k = shifted - C::kRound;
  const V r = (x - k * C::kLn2Hi) - k * C::kLn2Lo;
  V q = zero + C::q(C::kTerms - 1);
  for (int i = C::kTerms - 2; i >= 0; --i) {
    q = q * r + C::q(i);
  }
  using Word = typename Lanes<V>::Word;
  const Bits exponent = (same_bits<Bits>(shifted) << C::kMantissaBits) +
                        (static_cast<Word>(C::kBias) << C::kMantissaBits);
  return {same_bits<V>(exponent), r + r * r * q};
}

// a / b of gates, for 1 <= b <= exp(kHighest) + 2 and |a| <= b, or a NaN.
//
// A GPU has no instruction for it. For any b, a compiler adds to a quotient a branch that calls a
// function, for subnormal numbers and overflow, and the threads' gates, each with some such branches,
// run one after the other. Within these bounds neither happens: 1 / b, and its estimate, which has
// subnormal numbers as zero, is a normal number.
#if defined(__CUDA_ARCH__) || defined(FUSED_RNN_SIMT)
#if defined(__CUDA_ARCH__)
// Off by one unit in the last place at most.
FUSED_RNN_INLINE float reciprocal_estimate(float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  return r;
}

// Of b's upper half; with 20 good bits.
FUSED_RNN_INLINE double reciprocal_estimate(double b) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));
  return r;
}
#else
// The host bench's, as far off as a GPU's may be.
inline float reciprocal_estimate(float b) {
  const float r = 1.0f / b;
  return r < 0x1p-126f ? 0.0f : bit_cast<float>(bit_cast<std::uint32_t>(r) ^ 1u);
}

inline double reciprocal_estimate(double b) {
  const double r = 1.0 / b;
  return r < 0x1p-1022 ? 0.0 : bit_cast<double>(bit_cast<std::uint64_t>(r) >> 32 << 32);
}
#endif

FUSED_RNN_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
FUSED_RNN_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
FUSED_RNN_INLINE T quotient(T a, T b) {
  T r = reciprocal_estimate(b);
  if constexpr (sizeof(T) == 8) {
    r = fused(r, fused(-b, r, T{1}), r);  // twice as many good bits
  }
  const T q = a * r;
  return fused(fused(-b, q, a), r, q);  // and twice those
}
#else
template <class V>
FUSED_RNN_INLINE V quotient(V a, V b) {
  return a / b;
}
#endif

template <class V>
FUSED_RNN_INLINE V sigmoid(V x) {
  const ExpParts<V> e = exp_parts(V{} - x);
  using T = typename Lanes<V>::Scalar;
  const V one = V{} + static_cast<T>(1);
  return quotient(one, e.scale * e.fraction + (e.scale + static_cast<T>(1)));
}

// With m = exp(2x) - 1: m / (m + 2). m keeps its relative accuracy near zero, and so does tanh.
template <class V>
FUSED_RNN_INLINE V tanh(V x) {
  using T = typename Lanes<V>::Scalar;
  const ExpParts<V> e = exp_parts(x + x);
  const V m = e.scale * e.fraction + (e.scale - static_cast<T>(1));
  return quotient(m, m + static_cast<T>(2));
}

template <class V>
FUSED_RNN_INLINE V relu(V x) {
  return x < V{} ? V{} : x;  // a NaN stays a NaN, as in torch.relu
}

// The two that a cell takes from elsewhere where it may (cells.h).
struct ExactMath {
  template <class V>
  FUSED_RNN_INLINE static V sigmoid(V x) {
    return fused_rnn::sigmoid(x);
  }
  template <class V>
  FUSED_RNN_INLINE static V tanh(V x) {
    return fused_rnn::tanh(x);
  }
};

}  // namespace fused_rnn

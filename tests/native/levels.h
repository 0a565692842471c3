// The levels of this architecture, and what the CPU lacks to run one.
#pragma once

#include <cstring>

// FUSED_RNN_BENCH_LEVELS(X): X(level) for each that is linked in.
#if !defined(FUSED_RNN_BENCH_LEVELS)
#if defined(__x86_64__)
#define FUSED_RNN_BENCH_LEVELS(X) X(avx512) X(avx2) X(portable)
#else
#define FUSED_RNN_BENCH_LEVELS(X) X(portable)
#endif
#endif

namespace fused_rnn::bench {

// What csrc/cpu/levels.cpp asks for. Null: nothing is missing.
inline const char* lacks(const char* level) {
#if defined(__x86_64__)
  if (std::strcmp(level, "avx512") == 0) {
    return !__builtin_cpu_supports("avx512f")    ? "the CPU has no avx512f"
           : !__builtin_cpu_supports("avx512dq") ? "the CPU has no avx512dq"
           : !__builtin_cpu_supports("avx512bw") ? "the CPU has no avx512bw"
           : !__builtin_cpu_supports("avx512vl") ? "the CPU has no avx512vl"
           : !__builtin_cpu_supports("fma")      ? "the CPU has no fma"
                                                 : nullptr;
  }
  if (std::strcmp(level, "avx2") == 0) {
    return !__builtin_cpu_supports("avx2")  ? "the CPU has no avx2"
           : !__builtin_cpu_supports("fma") ? "the CPU has no fma"
                                            : nullptr;
  }
#else
  (void)level;
#endif
  return nullptr;
}

}  // namespace fused_rnn::bench

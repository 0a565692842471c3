// The levels of this architecture, and what the CPU lacks to run one.
#pragma once

#include <cstring>

#include "../../csrc/cpu/tiles/amx.h"

// FUSED_RNN_BENCH_LEVELS(X): X(level) for each that is linked in.
#if !defined(FUSED_RNN_BENCH_LEVELS)
#if defined(__x86_64__)
#define FUSED_RNN_BENCH_LEVELS(X) X(amx) X(avx512) X(avx2) X(portable)
#else
#define FUSED_RNN_BENCH_LEVELS(X) X(portable)
#endif
#endif

namespace fused_rnn::bench {

// What csrc/cpu/levels.cpp asks for. Null: nothing is missing.
inline const char* lacks(const char* level) {
#if defined(__x86_64__)
#if defined(FUSED_RNN_MODELLED_VECTORS)
  if (std::strcmp(level, "amx_model") == 0) {
    return lacks("avx2");
  }
#endif
  if (std::strncmp(level, "amx", 3) == 0) {
    const char* const missing = lacks("avx512");  // for the model of its registers too
    return missing != nullptr || std::strcmp(level, "amx_model") == 0 ? missing : amx_missing();
  }
  if (std::strcmp(level, "avx512") == 0) {
    return !__builtin_cpu_supports("avx512f")    ? "the CPU has no avx512f"
           : !__builtin_cpu_supports("avx512dq") ? "the CPU has no avx512dq"
           : !__builtin_cpu_supports("avx512bw") ? "the CPU has no avx512bw"
           : !__builtin_cpu_supports("avx512vl") ? "the CPU has no avx512vl"
           : !__builtin_cpu_supports("fma")      ? "the CPU has no fma"
                                                 : nullptr;
  }
  if (std::strcmp(level, "avx2") == 0) {
    return !__builtin_cpu_supports("avx2")   ? "the CPU has no avx2"
           : !__builtin_cpu_supports("fma")  ? "the CPU has no fma"
           : !__builtin_cpu_supports("f16c") ? "the CPU has no f16c"
                                             : nullptr;
  }
#else
  (void)level;
#endif
  return nullptr;
}

}  // namespace fused_rnn::bench

// Which SIMD level runs.
#include <cstdlib>
#include <cstring>

#include "../scan.h"

namespace fused_rnn {
#if defined(__x86_64__)
namespace avx512 {
extern const cpu::Level kLevel;
}
namespace avx2 {
extern const cpu::Level kLevel;
}
#endif
namespace portable {
extern const cpu::Level kLevel;
}

namespace cpu {
namespace {

const Level& pick() {
  const char* wanted = std::getenv("FUSED_RNN_SIMD");
  const auto allowed = [&](const Level& level) {
    return wanted == nullptr || std::strcmp(wanted, level.name) == 0;
  };
#if defined(__x86_64__)
  if (allowed(avx512::kLevel) && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return avx512::kLevel;
  }
  // A level asked for but not to be had gives the next lower one.
  if ((allowed(avx2::kLevel) || allowed(avx512::kLevel)) && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return avx2::kLevel;
  }
#endif
  return portable::kLevel;
}

}  // namespace

const Level& level() {
  static const Level& picked = pick();
  return picked;
}

}  // namespace cpu
}  // namespace fused_rnn

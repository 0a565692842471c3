// Which SIMD level runs.
#include <cstdlib>
#include <string_view>

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

std::string_view named() {
  const char* const value = std::getenv("FUSED_RNN_SIMD");
  const std::string_view name = value != nullptr ? value : "";
  for (const char* const known : {"avx512", "avx2", "portable"}) {
    if (name == known) {
      return name;
    }
  }
  return {};
}

const Level& pick() {
  // An empty or unknown name asks for nothing.
  const std::string_view wanted = named();
  const auto allowed = [&](const Level& level) { return wanted.empty() || wanted == level.name; };
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

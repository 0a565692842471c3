// Which SIMD level runs.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../scan.h"
#include "tiles/amx.h"

namespace fused_rnn {
// Weak: a level that was left out of the build (setup.py), or that this architecture has not, is
// null here.
#define FUSED_RNN_WEAK __attribute__((weak))
namespace amx {
extern const cpu::Level kLevel FUSED_RNN_WEAK;
}
namespace avx512 {
extern const cpu::Level kLevel FUSED_RNN_WEAK;
}
namespace avx2 {
extern const cpu::Level kLevel FUSED_RNN_WEAK;
}
namespace portable {
extern const cpu::Level kLevel FUSED_RNN_WEAK;
}

namespace cpu {
namespace {

struct Candidate {
  std::string_view name;
  const Level* level;  // null where it was not built
  bool (*runs)();      // on this CPU
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
// The system is asked for the registers here, so only where nothing else was asked for.
bool has_amx() { return has_avx512() && amx_missing() == nullptr; }
#else
bool has_amx() { return false; }
bool has_avx512() { return false; }
bool has_avx2() { return false; }
#endif

const Level& pick() {
  const Candidate candidates[] = {{"amx", &amx::kLevel, has_amx},  // the best first
                                  {"avx512", &avx512::kLevel, has_avx512},
                                  {"avx2", &avx2::kLevel, has_avx2},
                                  {"portable", &portable::kLevel, [] { return true; }}};
  const char* const value = std::getenv("FUSED_RNN_SIMD");
  const std::string_view wanted = value != nullptr ? value : "";
  bool known = wanted.empty();  // which asks for nothing
  std::string names;
  for (const Candidate& c : candidates) {
    known = known || wanted == c.name;
    names += (names.empty() ? "" : ", ") + std::string(c.name);
  }
  if (!known) {
    throw std::runtime_error("FUSED_RNN_SIMD is '" + std::string(wanted) +
                             "', which is no SIMD level. Choose one of " + names + ".");
  }
  // A level asked for but not to be had gives the next lower one.
  bool allowed = wanted.empty();
  std::string built;
  for (const Candidate& c : candidates) {
    allowed = allowed || wanted == c.name;
    if (c.level != nullptr) {
      if (allowed && c.runs()) {
        return *c.level;
      }
      built += (built.empty() ? "" : ", ") + std::string(c.name);
    }
  }
  throw std::runtime_error(
      "fused_rnn was built for " + built + " alone, and " +
      (wanted.empty() ? "this CPU has" : "FUSED_RNN_SIMD=" + std::string(wanted) + " allows") +
      " none of it: build all levels with `make build`.");
}

}  // namespace

const Level& level() {
  static const Level& picked = pick();
  return picked;
}

}  // namespace cpu
}  // namespace fused_rnn

// Which SIMD level runs scans with int8 or bfloat16 weights: that of the others, or the one of the same
// registers that has vpdpbusd.
#include <stdexcept>
#include <string>
#include <string_view>

#include "../../quantized.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fused_rnn {

// Weak: null where a level was left out of the build.
#define FUSED_RNN_DECLARE(level)                                    \
  namespace level {                                                 \
  extern const cpu::QuantizedLevel kInt8 __attribute__((weak));     \
  extern const cpu::QuantizedLevel kBFloat16 __attribute__((weak)); \
  }
FUSED_RNN_DECLARE(quantized_avx512_vnni)
FUSED_RNN_DECLARE(quantized_avx512)
FUSED_RNN_DECLARE(quantized_avx_vnni)
FUSED_RNN_DECLARE(quantized_avx2)
FUSED_RNN_DECLARE(quantized_portable)
#undef FUSED_RNN_DECLARE

namespace cpu {
namespace {

#if defined(__x86_64__)
bool has_avx512_vnni() { return __builtin_cpu_supports("avx512vnni"); }
// The system keeps the registers, as it does for AVX2, of which level() has made sure.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kFeatures = 7, kPage = 1, kAvxVnni = 1u << 4;
  return __get_cpuid_count(kFeatures, kPage, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}
#else
bool has_avx512_vnni() { return false; }
bool has_avx_vnni() { return false; }
#endif

struct Pair {
  const QuantizedLevel* level;
  const QuantizedLevel* with_vnni;  // null: none, or not on this CPU
};

const QuantizedLevel* where(bool has, const QuantizedLevel* level) { return has ? level : nullptr; }

Pair pick(Stored stored) {
  const std::string_view name = level().name;
  const bool int8 = stored == Stored::kInt8;
  if (name == "amx" || name == "avx512") {
    return {int8 ? &quantized_avx512::kInt8 : &quantized_avx512::kBFloat16,
            where(int8 && has_avx512_vnni(), &quantized_avx512_vnni::kInt8)};
  }
  if (name == "avx2") {
    return {int8 ? &quantized_avx2::kInt8 : &quantized_avx2::kBFloat16,
            where(int8 && has_avx_vnni(), &quantized_avx_vnni::kInt8)};
  }
  return {int8 ? &quantized_portable::kInt8 : &quantized_portable::kBFloat16, nullptr};
}

const QuantizedLevel& found(Stored stored) {
  const Pair pair = pick(stored);
  const QuantizedLevel* const best = pair.with_vnni != nullptr ? pair.with_vnni : pair.level;
  if (best == nullptr) {
    throw std::runtime_error("fused_rnn was built without the quantized layers of its level " +
                             std::string(level().name) + ": build all levels with `make build`.");
  }
  return *best;
}

}  // namespace

const QuantizedLevel& quantized_level(Stored stored) {
  static const QuantizedLevel& int8 = found(Stored::kInt8);
  static const QuantizedLevel& bfloat16 = found(Stored::kBFloat16);
  return stored == Stored::kInt8 ? int8 : bfloat16;
}

}  // namespace cpu
}  // namespace fused_rnn

// The tile registers of Intel AMX: eight, each of 16 rows of 64 bytes.
//
// Own assembly rather than the compilers' intrinsics: those paste a register's number into text, so
// that no template can give it, and GCC 12's loads have no memory clobber, so that stores move
// behind them. It needs no compiler flag either.
#pragma once

#include <cstdint>

#include "../../macros.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn {

struct Amx {
  // Every register at its full size.
  static void configure() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void release() { asm volatile("tilerelease" : : : "memory"); }

  template <int kTile>
  FUSED_RNN_INLINE static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // 16 rows of 64 bytes, `stride` bytes apart.
  template <int kTile>
  FUSED_RNN_INLINE static void load(const void* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  FUSED_RNN_INLINE static void store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // c[m][n] += sum over k < 32 of a[m][k] * b[k / 2][2 * n + k % 2]; bfloat16 into float.
  template <int kC, int kA, int kB>
  FUSED_RNN_INLINE static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

// Null where this process may use the registers, or why not. Asks Linux for them, once for all
// threads: afterwards it grants no signal stack that is too small to save them (below some 11 KB), and
// refuses where a thread has one already.
inline const char* amx_missing() {
  static const char* const missing = []() -> const char* {
    unsigned a, b, c, d;
    constexpr unsigned kOsXsave = 1u << 27, kBf16 = 1u << 22, kTile = 1u << 24;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || (c & kOsXsave) == 0 ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0) {
      return "the CPU has no amx_bf16";
    }
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kStates = 3u << 17;
    if ((low & kStates) != kStates) {
      return "the system keeps no tile registers";
    }
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0
               ? nullptr
               : "the system refuses the tile registers";
#else
    return "the system is not Linux";
#endif
  }();
  return missing;
}

}  // namespace fused_rnn
#else
namespace fused_rnn {
inline const char* amx_missing() { return "the CPU has no amx_bf16"; }
}  // namespace fused_rnn
#endif

// The floating-point mode of a thread: how it rounds, and whether denormals count as zero.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

#if defined(__x86_64__)
using FloatMode = unsigned;  // MXCSR
inline FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
inline void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = std::uint64_t;  // FPCR
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
#endif

// Gives a thread another's mode as long as it works for that one. Each thread has a mode of its own
// (torch.set_flush_denormal sets the caller's alone): which member of a team takes an item hangs on
// timing, and must not show in the bits.
class BorrowedFloatMode {
 public:
  explicit BorrowedFloatMode(FloatMode mode) : own_(float_mode()) { set_float_mode(mode); }
  ~BorrowedFloatMode() { set_float_mode(own_); }
  BorrowedFloatMode(const BorrowedFloatMode&) = delete;
  BorrowedFloatMode& operator=(const BorrowedFloatMode&) = delete;

 private:
  const FloatMode own_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

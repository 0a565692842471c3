// Scratch memory that stays mapped between calls.
//
// glibc gives large blocks back to the kernel on free, and the next call pays for mapping and
// clearing them again: 8% of an LSTM's inference at H = 1024. So blocks are kept, up to a bound,
// and reused.
#pragma once

#include <cstddef>

namespace fused_rnn {

// At least `bytes` bytes on a cache line's boundary. Throws std::bad_alloc. Any thread.
void* scratch_allocate(std::size_t bytes);
// Takes back a block that scratch_allocate gave for `bytes`. A large one goes back to the system
// where it is not to be kept: forward's copy of W_ih, which backward has no use for, at the peak.
void scratch_free(void* block, std::size_t bytes, bool keep = true) noexcept;

}  // namespace fused_rnn

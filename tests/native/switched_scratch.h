// Two kinds of scratch memory behind csrc/cpu/scratch.h, for the sanitized program.
#pragma once

namespace fused_rnn::bench {

// kept: what is shipped. strict: each block as large as was asked for and no larger, full of NaN, and
// gone when freed, so that AddressSanitizer sees every stray access and a read before a write shows
// in the results. To be switched between scans only.
enum class Scratch { kKept, kStrict };
extern Scratch scratch;

}  // namespace fused_rnn::bench

// What is asked of the device itself: a stream of work, and what it has. Plain structs, no torch, no
// CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace fused_rnn {
namespace cuda {

using Stream = void*;  // a cudaStream_t

// Blocks that have to be there together do not fit on the device, or not now, or there is no code for
// it; nothing has run.
struct LaunchRefused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceFacts {
  int capability = 0;             // 90: 9.0; of the code that runs there, 0 where there is none
  int sms = 0;                    // that this process may use
  std::int64_t shared_bytes = 0;  // that a block may have
  bool cooperative = false;       // all blocks of a launch can be held on the device at once
  int clusters[4] = {};  // of 1, 2, 4, 8 blocks, an SM's shared memory each, that run at once
};

// Of the current device, which is asked once.
DeviceFacts device_facts();

}  // namespace cuda
}  // namespace fused_rnn

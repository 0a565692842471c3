// Lengths of sequences, put where kernels can read them. No torch, no CUDA.
#pragma once

#include <cstdint>

#include "device.h"

namespace fused_rnn {
namespace cuda {

// Copies (n,) numbers from the host to the device without waiting for it: they travel as parameters
// of launches, so that the host's may go at once, and a graph that is captured keeps them.
void launch_write_lengths(const std::int32_t* host, std::int64_t n, std::int32_t* device,
                          Stream stream);

}  // namespace cuda
}  // namespace fused_rnn

// The one place where kernels are launched, and where the host bench takes over: compiled by a host
// compiler, the same sources run there (tests/native/simt).
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fused_rnn {
namespace cuda {

template <class... Params>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block,
            std::size_t shared_bytes, void* stream, Params... arguments) {
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("fused_rnn: launching ") + name +
                             " failed: " + cudaGetErrorString(error));
  }
}

}  // namespace cuda
}  // namespace fused_rnn

#else

#include "simt.h"

#endif

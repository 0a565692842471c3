// The one place where kernels are launched, and where the host bench takes over: compiled by a host
// compiler, the same sources run there (tests/native/simt).
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fused_rnn {
namespace cuda {

// Which blocks are there at the same time, so that one may wait for another.
struct Together {
  bool cooperative;  // all, or the launch fails
  unsigned cluster;  // so many neighbours; 1: no clusters
};

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

inline void check_launch(const char* name, cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("fused_rnn: launching ") + name +
                             " failed: " + cudaGetErrorString(error));
  }
}

template <class... Params>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block,
            std::size_t shared_bytes, void* stream, Params... arguments) {
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_launch(name, cudaGetLastError());
}

template <class... Params>
void launch_together(void (*kernel)(Params...), const char* name, Together together, dim3 grid,
                     dim3 block, std::size_t shared_bytes, void* stream, Params... arguments) {
  constexpr unsigned kPortableCluster = 8;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check_launch(name, cudaFuncSetAttribute(kernel, attribute, value));
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (together.cluster > kPortableCluster) {
    set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (together.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (together.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {together.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes, config.numAttrs = count;
  check_launch(name, cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace cuda
}  // namespace fused_rnn

#else

#include "simt.h"

#endif

// The one place where kernels are launched, and where the host bench takes over: compiled by a host
// compiler, the same sources run there (tests/native/simt).
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "device.h"

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
    cudaGetLastError();  // told here, it is not the next launch's
    throw std::runtime_error(std::string("fused_rnn: launching ") + name +
                             " failed: " + cudaGetErrorString(error));
  }
}

// Whether a launch of blocks that have to be there together has failed for a reason of the device's
// or the plan's, after which anything else may be launched: then others do the work. What is left
// are faults: of a kernel that ran before, of memory, of the driver.
inline bool is_refusal(cudaError_t error) {
  switch (error) {
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorInvalidClusterSize:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:  // there is no code for this device
    case cudaErrorInvalidValue:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorNotSupported:
      return true;
    default:
      return false;
  }
}

inline void check_launch_together(const char* name, cudaError_t error) {
  if (is_refusal(error)) {
    cudaGetLastError();
    throw LaunchRefused(std::string("fused_rnn: this device does not launch ") + name + ": " +
                        cudaGetErrorString(error));
  }
  check_launch(name, error);
}

// Room for any plan's shared memory. The setting is the function's, for all threads of the process:
// set to what one launch needs, it could be too little for another's, which is about to happen.
inline void allow_all_shared_memory(const void* kernel, const char* name) {
  int device = 0, all = 0;
  cudaFuncAttributes known{};
  check_launch(name, cudaGetDevice(&device));
  check_launch(name, cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_launch_together(name, cudaFuncGetAttributes(&known, kernel));
  const int dynamic = all - static_cast<int>(known.sharedSizeBytes);
  check_launch_together(
      name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
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
  allow_all_shared_memory(reinterpret_cast<const void*>(kernel), name);
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
  check_launch_together(name, cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace cuda
}  // namespace fused_rnn

#else

#include "simt.h"

#endif

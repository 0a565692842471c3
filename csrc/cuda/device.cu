// See device.h.
#include "device.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "launch.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("fused_rnn: asking for a device attribute failed: ") +
                             cudaGetErrorString(error));
  }
  return value;
}

// As large a block as a persistent kernel's, which leaves no room beside it.
__global__ void __launch_bounds__(256, 1) occupant() {}

// Clusters of `size` such blocks that run at once: fewer than SMs / size where a processing cluster
// of the device has SMs left over, or a slice of it is ours.
int clusters_at_once(int size, std::int64_t shared_bytes) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(size)), config.blockDim = dim3(256);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.attrs = &cluster, config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, occupant, &config) != cudaSuccess) {
    cudaGetLastError();  // a device without such clusters: not an error of the launches to come
    return 0;
  }
  return count;
}

DeviceFacts ask(int device) {
  DeviceFacts facts;
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                         attribute(cudaDevAttrComputeCapabilityMinor, device);
  // What kernels do hangs on what they were compiled for: where the driver has translated PTX, that
  // may be an architecture older than the device. Of all sources, this one is compiled for the same
  // devices as those of the stepwise path.
  cudaFuncAttributes code{};
  const cudaError_t error = cudaFuncGetAttributes(&code, occupant);
  if (error == cudaErrorInvalidDeviceFunction || error == cudaErrorNoKernelImageForDevice) {
    cudaGetLastError();  // told by the facts
  } else {
    check_launch("a kernel", error);
    facts.capability = std::min(capability, code.ptxVersion);
  }
  facts.sms = attribute(cudaDevAttrMultiProcessorCount, device);
  facts.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  facts.clusters[0] = facts.sms;
  const auto bytes = static_cast<int>(facts.shared_bytes);
  if (facts.capability >= 90 &&
      cudaFuncSetAttribute(occupant, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) !=
          cudaSuccess) {
    cudaGetLastError();  // plans do without clusters then
  } else if (facts.capability >= 90) {
    for (int i = 1; i < 4; ++i) {
      facts.clusters[i] = clusters_at_once(1 << i, facts.shared_bytes);
    }
  }
  return facts;
}

}  // namespace

DeviceFacts device_facts() {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;
  int device = 0;
  check_launch("a persistent kernel", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> guard(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, ask(device)).first->second;
}

}  // namespace cuda
}  // namespace fused_rnn

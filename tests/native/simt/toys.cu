// Small kernels, right and wrong, that the host bench is tested with.
#include "toys.h"

#include <exception>
#include <map>
#include <string>

#include "launch.cuh"

namespace {

using fused_rnn::cuda::dynamic_shared;
using fused_rnn::cuda::launch;

constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ int thread_in_grid() {
  const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  return static_cast<int>(block * blockDim.x * blockDim.y * blockDim.z + in_block);
}

__global__ void indices(const float*, float* out) {
  const int i = thread_in_grid();
  out[i] = static_cast<float>(i);
}

// out[b] = sum of the block's part of in.
__global__ void block_sum(const float* in, float* out) {
  float* const part = dynamic_shared<float>();
  part[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      part[threadIdx.x] += part[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    out[blockIdx.x] = part[0];
  }
}

// Each warp's sum, in each of its lanes.
__global__ void warp_sum(const float* in, float* out) {
  const int i = thread_in_grid();
  float sum = in[i];
  for (int mask = warpSize / 2; mask > 0; mask /= 2) {
    sum += __shfl_xor_sync(kAll, sum, mask);
  }
  out[i] = sum;
}

// Four rows: what each lane gets from a lane above, below, by number and by a mask, within 8 lanes.
__global__ void shuffles(const float* in, float* out) {
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  out[i] = __shfl_up_sync(kAll, in[i], 3, 8);
  out[n + i] = __shfl_down_sync(kAll, in[i], 3, 8);
  out[2 * n + i] = __shfl_sync(kAll, in[i], 5, 8);
  out[3 * n + i] = __shfl_xor_sync(kAll, in[i], 9, 8);
}

// Both halves of a warp by themselves, and in opposite branches.
__global__ void half_warps(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  if (i % 32 < 16) {
    out[i] = __shfl_xor_sync(0xffffu, in[i], 15);
  } else {
    out[i] = __shfl_xor_sync(0xffff0000u, in[i], 1);
  }
  __syncwarp();
}

template <bool kBarrier>
__global__ void reverse(const float* in, float* out) {
  __shared__ float tile[kToyBlock];
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) {
    __syncthreads();
  }
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// Static shared memory that block 0 alone writes.
__global__ void stale(const float*, float* out) {
  __shared__ float tile[kToyBlock];
  if (blockIdx.x == 0) {
    tile[threadIdx.x] = 1;
  }
  out[thread_in_grid()] = tile[threadIdx.x];
}

__global__ void unwritten(const float*, float* out) {
  out[threadIdx.x] = dynamic_shared<float>()[threadIdx.x];
}

__global__ void last_block_wins(const float*, float* out) {
  out[0] = static_cast<float>(blockIdx.x);
}

__global__ void some_leave(const float*, float*) {
  if (threadIdx.x < 16) {
    __syncthreads();
  }
}

__global__ void two_barriers(const float*, float*) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void warp_against_block(const float*, float*) {
  if (threadIdx.x == 7) {
    __syncthreads();
  }
  __syncwarp();
}

__global__ void absent_lane(const float* in, float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_down_sync(kAll, in[threadIdx.x], 1);
  }
}

__global__ void not_in_mask(const float*, float*) { __syncwarp(0xfffffffeu); }

__global__ void stray_read(const float* in, float* out) {
  const int i = thread_in_grid();
  __syncthreads();
  out[i] = in[i + 1];
}

__global__ void stray_write(const float* in, float* out) {
  const int i = thread_in_grid();
  __syncthreads();
  out[i + 1] = in[i];
}

__global__ void stray_shared(const float* in, float* out) {
  float* const tile = dynamic_shared<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

__global__ void stray_static(const float* in, float* out) {
  __shared__ float tile[kToyBlock];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

struct Toy {
  void (*kernel)(const float*, float*);
  dim3 grid;
  dim3 block = dim3(kToyBlock);
};

const std::map<std::string, Toy> kToys = {
    {"indices", {indices, dim3(2, 3, 2), dim3(4, 2, 3)}},
    {"block_sum", {block_sum, 3}},
    {"warp_sum", {warp_sum, 3}},
    {"shuffles", {shuffles, 1}},
    {"half_warps", {half_warps, 1}},
    {"reverse", {reverse<true>, 1}},
    {"reverse_without_barrier", {reverse<false>, 1}},
    {"stale", {stale, 2}},
    {"unwritten", {unwritten, 1}},
    {"last_block_wins", {last_block_wins, 5}},
    {"some_leave", {some_leave, 2}},
    {"two_barriers", {two_barriers, 1}},
    {"warp_against_block", {warp_against_block, 1}},
    {"absent_lane", {absent_lane, 1}},
    {"not_in_mask", {not_in_mask, 1}},
    {"stray_read", {stray_read, 4}},
    {"stray_write", {stray_write, 4}},
    {"stray_shared", {stray_shared, 1}},
    {"stray_static", {stray_static, 1}},
    {"too_many_rows", {indices, dim3(1, 65536), 1}},
};

}  // namespace

const char* simt_toy(const char* toy, const float* in, float* out) {
  static std::string failure;
  try {
    const Toy& t = kToys.at(toy);
    launch(t.kernel, toy, t.grid, t.block, kToyBlock * sizeof(float), nullptr, in, out);
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

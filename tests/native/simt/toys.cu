// Small kernels, right and wrong, that the host bench is tested with.
#include "toys.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <map>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace {

using fused_rnn::BFloat16;
using fused_rnn::Half;
using fused_rnn::cuda::dynamic_shared;
using fused_rnn::cuda::launch_together;
using fused_rnn::cuda::Together;
namespace ptx = fused_rnn::cuda::ptx;

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

__global__ void stray_write_to_shared(const float* in, float*) {
  dynamic_shared<float>()[threadIdx.x + 1] = in[threadIdx.x];
}

__global__ void stray_static(const float* in, float* out) {
  __shared__ float tile[kToyBlock];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

unsigned flags[4];

// Each block adds its part of `in` to what the block before it has made, and hands it on.
template <bool kBarrier>
__global__ void relay(const float* in, float* out) {
  const unsigned b = blockIdx.x, i = threadIdx.x;
  float value = in[b * kToyBlock + i];
  if (b > 0) {
    ptx::acquire(&flags[b - 1], 1);
    value += out[(b - 1) * kToyBlock + (i + 32) % kToyBlock];
  }
  ptx::store_for_all(out + b * kToyBlock + i, value);
  if (kBarrier) {
    __syncthreads();
  }
  if (i == 0) {
    ptx::release(&flags[b], 1);
  }
}

// Each block waits for the next one.
__global__ void meet(const float*, float* out) {
  const unsigned b = blockIdx.x;
  if (threadIdx.x == 0) {
    ptx::release(&flags[b], 1);
  }
  ptx::acquire(&flags[(b + 1) % 4], 1);
  out[thread_in_grid()] = 1;
}

// All threads of all blocks wait at once, where the last block comes last.
__global__ void crowd(const float*, float*) {
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0) {
    ptx::release(&flags[0], 1);
  }
  ptx::acquire(&flags[0], 1);
}

__global__ void nobody_answers(const float*, float*) { ptx::acquire(&flags[blockIdx.x], 1); }

// Each member writes its number into the next one's shared memory.
__device__ __forceinline__ float* tell_neighbour() {
  float* const mine = dynamic_shared<float>() + threadIdx.x;
  const unsigned next = (blockIdx.x + 1) % 2;
  ptx::store_for_member(ptx::of_member(mine, next), static_cast<float>(blockIdx.x));
  return mine;
}

template <bool kWait>
__global__ void neighbours(const float*, float* out) {
  const float* const mine = tell_neighbour();
  ptx::cluster_arrive();
  if (kWait) {
    ptx::cluster_wait();
  }
  out[thread_in_grid()] = *mine;
  if (!kWait) {
    ptx::cluster_wait();
  }
}

__global__ void leaves_early(const float*, float*) {
  tell_neighbour();
  ptx::cluster_arrive();
}

__global__ void writes_late(const float*, float*) {
  ptx::cluster_arrive();
  ptx::cluster_wait();
  tell_neighbour();
}

__global__ void arrives_twice(const float*, float*) {
  ptx::cluster_arrive();
  ptx::cluster_arrive();
}

__global__ void has_not_arrived(const float*, float*) { ptx::cluster_wait(); }

__global__ void one_stays_away(const float*, float*) {
  if (blockIdx.x % 2 == 0) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

__global__ void no_such_member(const float*, float*) { ptx::of_member(dynamic_shared<float>(), 2); }

// out (16, 8) = A B + 1. A (16, K) begins with `in`, B (K, 8) with A's row 4.
template <class S>
__global__ void product(const float* in, float* out) {
  constexpr int kPair = 4 / sizeof(S), kDepth = 8 * kPair;
  const int g = static_cast<int>(threadIdx.x) / 4, q = static_cast<int>(threadIdx.x) % 4;
  const auto word = [&](auto element) {
    S pair[kPair];
    for (int i = 0; i < kPair; ++i) {
      const float v = element(i);
      if constexpr (sizeof(S) == 4) {
        pair[i] = fused_rnn::bit_cast<float>(ptx::round_tf32(v));
      } else {
        pair[i] = fused_rnn::narrow<S>(v);
      }
    }
    std::uint32_t bits;
    std::memcpy(&bits, pair, 4);
    return bits;
  };
  ptx::FragmentA a;
  ptx::FragmentB b;
  for (int w = 0; w < 4; ++w) {
    const int row = g + w % 2 * 8, k = (q + w / 2 * 4) * kPair;
    a.v[w] = word([&](int i) { return in[row * kDepth + k + i]; });
  }
  for (int w = 0; w < 2; ++w) {
    const int k = (q + w * 4) * kPair;
    b.v[w] = word([&](int i) { return in[4 * kDepth + (k + i) * 8 + g]; });
  }
  ptx::Accumulator d{{1, 1, 1, 1}};
  ptx::multiply<S>(d, a, b);
  for (int i = 0; i < 4; ++i) {
    out[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = d.v[i];
  }
}

__global__ void half_a_product(const float*, float*) {
  ptx::Accumulator d{};
  if (threadIdx.x < 16) {
    ptx::multiply<Half>(d, {}, {});
  }
}

struct Toy {
  void (*kernel)(const float*, float*);
  dim3 grid;
  dim3 block = dim3(kToyBlock);
  Together together = {false, 1};
};

constexpr Together kTogether = {true, 1}, kPairs = {false, 2};

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
    {"stray_write_to_shared", {stray_write_to_shared, 1}},
    {"stray_static", {stray_static, 1}},
    {"too_many_rows", {indices, dim3(1, 65536), 1}},
    {"relay", {relay<true>, 4, kToyBlock, kTogether}},
    {"relay_without_barrier", {relay<false>, 4, kToyBlock, kTogether}},
    {"crowd", {crowd, 16, 1024, kTogether}},
    {"nobody_answers", {nobody_answers, 2, kToyBlock, kTogether}},
    {"meet", {meet, 4, kToyBlock, kTogether}},
    {"meet_apart", {meet, 4}},
    {"neighbours", {neighbours<true>, 4, kToyBlock, kPairs}},
    {"neighbours_without_wait", {neighbours<false>, 4, kToyBlock, kPairs}},
    {"leaves_early", {leaves_early, 2, kToyBlock, kPairs}},
    {"writes_late", {writes_late, 2, kToyBlock, kPairs}},
    {"arrives_twice", {arrives_twice, 2, kToyBlock, kPairs}},
    {"has_not_arrived", {has_not_arrived, 2, kToyBlock, kPairs}},
    {"one_stays_away", {one_stays_away, 2, kToyBlock, kPairs}},
    {"no_such_member", {no_such_member, 2, kToyBlock, kPairs}},
    {"odd_clusters", {indices, 3, kToyBlock, kPairs}},
    {"product_half", {product<Half>, 1, 32}},
    {"product_bfloat16", {product<BFloat16>, 1, 32}},
    {"product_tf32", {product<float>, 1, 32}},
    {"half_a_product", {half_a_product, 1, 32}},
};

}  // namespace

const char* simt_toy(const char* toy, const float* in, float* out) {
  static std::string failure;
  try {
    const Toy& t = kToys.at(toy);
    std::fill(std::begin(flags), std::end(flags), 0u);
    launch_together(t.kernel, toy, t.together, t.grid, t.block, kToyBlock * sizeof(float), nullptr,
                    in, out);
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

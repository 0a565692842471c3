// The host bench: what the project's kernels use of CUDA, for a host compiler. launch.cuh includes
// it where nvcc does not compile.
//
// A launch runs its blocks one after another, and a block's threads in turns on one core, each
// until it waits for others; the order of both can be chosen (machine.cpp), so that a result that
// hangs on it shows. Shared memory is full of NaN where a block begins.
//
// Stricter than a GPU: all threads of a block, none of which has left the kernel, have to come to
// the same __syncthreads; a shuffle may only read from lanes that take part in it.
//
// Blocks of a cooperative launch, or of a cluster, are alive together and take turns too. Each has
// dynamic shared memory of its own; their kernels may have no static shared memory, which there is
// only once. What they write for each other by ptx.cuh's means reaches memory as late as the rules
// allow: when a barrier or release orders it before a flag or an arrival.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#include "cuda/device.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// Thread-local, because machine.cpp can find and fill a library's thread-local variables as one
// range; nothing else there may be. Dynamic shared memory is fused_rnn::cuda::dynamic_shared<T>().
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};

struct alignas(8) float2 {
  float x, y;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

struct Launch {
  const char* name;
  dim3 grid, block;
  std::size_t shared_bytes;
  bool cooperative = false;  // all blocks are alive together
  unsigned cluster = 1;      // likewise so many neighbours
};

// What a thread brings to a meeting of lanes of its warp: a value for others, or else operands that
// `combine` gets together with those of all other lanes.
struct WarpCall {
  const char* name;
  int line;
  unsigned mask;
  std::uint64_t given;
  int source;  // the lane whose `given` it gets
  void* operands = nullptr;
  void (*combine)(void* const* operands) = nullptr;
};

void run(const Launch& launch, const std::function<void()>& thread);
bool refuses(dim3 grid);  // blocks that have to be there together, as a test has asked
void* dynamic_shared();
void block_barrier(int line);
std::uint64_t warp_meeting(const WarpCall& call);
int lane();

// Blocks that are alive together.
unsigned cluster_rank();
unsigned cluster_size();
void* in_block_of_cluster(void* shared, unsigned rank);  // the same place of another's
void cluster_arrive(int line);
void cluster_wait(int line);
void store(void* to, const void* from, std::size_t bytes);  // for other blocks
void release(unsigned* flag, unsigned value);
void wait_for(const unsigned* flag, unsigned least, int line);

template <class T>
T shuffle(const char* name, int line, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles numbers of 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_meeting({name, line, mask, bits, source});
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The first lane of this thread's group of `width` lanes.
inline int group(int width) { return lane() & ~(width - 1); }

}  // namespace simt

// Ends the launch with an error, as on a GPU.
[[noreturn]] void __trap();

inline void __syncthreads(int line = __builtin_LINE()) { simt::block_barrier(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  simt::warp_meeting({"__syncwarp", line, mask, 0, simt::lane()});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              int line = __builtin_LINE()) {
  const int from = simt::group(width) + (source & (width - 1));
  return simt::shuffle("__shfl_sync", line, mask, value, from);
}

// Beyond the group, here and below, a lane gets its own value back.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 int line = __builtin_LINE()) {
  const int from = simt::lane() - static_cast<int>(delta);
  return simt::shuffle("__shfl_up_sync", line, mask, value,
                       from < simt::group(width) ? simt::lane() : from);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   int line = __builtin_LINE()) {
  const int from = simt::lane() + static_cast<int>(delta);
  return simt::shuffle("__shfl_down_sync", line, mask, value,
                       from >= simt::group(width) + width ? simt::lane() : from);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  int line = __builtin_LINE()) {
  const int from = simt::lane() ^ lane_mask;
  return simt::shuffle("__shfl_xor_sync", line, mask, value,
                       from >= simt::group(width) + width ? simt::lane() : from);
}

namespace fused_rnn {
namespace cuda {

struct Together {
  bool cooperative;  // all blocks
  unsigned cluster;  // so many neighbours; 1: no clusters
};

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

template <class... Params>
void launch_together(void (*kernel)(Params...), const char* name, Together together, dim3 grid,
                     dim3 block, std::size_t shared_bytes, void*, Params... arguments) {
  if (simt::refuses(grid)) {
    throw LaunchRefused(std::string(name) + ": there is no room");
  }
  simt::run({name, grid, block, shared_bytes, together.cooperative, together.cluster},
            [&] { kernel(arguments...); });
}

template <class... Params>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block,
            std::size_t shared_bytes, void*, Params... arguments) {
  simt::run({name, grid, block, shared_bytes}, [&] { kernel(arguments...); });
}

}  // namespace cuda
}  // namespace fused_rnn

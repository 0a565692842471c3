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
// What makes all blocks of a grid or cluster wait for each other will need them alive together: a
// Block in machine.cpp for each, with its own dynamic shared memory. Static shared memory is
// thread-local, so such blocks would run on threads of their own, one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Thread-local, because machine.cpp can find and fill a library's thread-local variables as one
// range; nothing else there may be. Dynamic shared memory is fused_rnn::cuda::dynamic_shared<T>().
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
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
};

// What a thread brings to a meeting of lanes of its warp.
struct WarpCall {
  const char* name;
  int line;
  unsigned mask;
  std::uint64_t given;
  int source;  // the lane whose `given` it gets
};

void run(const Launch& launch, const std::function<void()>& thread);
void* dynamic_shared();
void block_barrier(int line);
std::uint64_t warp_meeting(const WarpCall& call);
int lane();

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

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

template <class... Params>
void launch(void (*kernel)(Params...), const char* name, dim3 grid, dim3 block,
            std::size_t shared_bytes, void*, Params... arguments) {
  simt::run({name, grid, block, shared_bytes}, [&] { kernel(arguments...); });
}

}  // namespace cuda
}  // namespace fused_rnn

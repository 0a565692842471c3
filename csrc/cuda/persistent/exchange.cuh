// How the blocks of a group hand h to each other, step by step, and wait for it. (What they hand on
// backward, gate gradients and sums of them, stands in backward.cuh.) Of every chunk there are two
// copies, of even and of odd steps, laid out as weights.cuh says; a step reads the one and writes the
// other.
//
// Why two copies do: whoever writes a copy at step k has seen the states of step k - 1 of every
// block of the group, as its warps read the whole depth between them before the block's barrier. A
// block publishes step k - 1 only after its own warps have read, at that step, the copy that is
// written now.
#pragma once

#include "weights.cuh"

namespace fused_rnn {
namespace cuda {

struct Member {
  int rank, blocks;  // in the group, and of it
  int units;         // of a block
  int chunks;
};

// The blocks that make a part of the depth.
struct Producers {
  int first, last;
};

// Raises the flag of one that publishes, `member`, in every copy (FlagLayout). To be called by all
// threads, after a barrier behind what it publishes.
//
// By the last warp: a release waits until all that was written is to be seen, and where a block has
// fewer units and sequences than threads, it is the first warps that have outputs to store and gates
// to load. A lane for each copy: their releases are one instruction's.
__device__ __forceinline__ void raise_flag(unsigned* flags, FlagLayout layout, int member,
                                           unsigned value) {
  const int copy = static_cast<int>(threadIdx.x) + 32 - static_cast<int>(blockDim.x);
  if (copy >= 0 && copy < layout.copies) {
    ptx::release(flags + copy * layout.stride + member, value);
  }
}

// Copies in global memory. Each block has a flag for every chunk, which counts what it has published.
//
// The order that makes this right: a thread's stores of h come before the block's barrier, the
// barrier before a lane's release of a copy of the flag (at GPU scope, and cumulative), a lane's
// acquire of that value before its __syncwarp, and that before the warp's loads of h. So the stores
// happen before the loads. The loads and stores are relaxed at GPU scope: they pass L1 by, and none
// races. Blocks that poll need those they poll for: the launch is cooperative.
template <class S, int kColumns>
class MemoryExchange {
 public:
  __device__ __forceinline__ MemoryExchange(void* states, void* flags, FlagLayout layout,
                                            std::int64_t padded_depth, Member member)
      : states_(static_cast<S*>(states)),
        flags_(static_cast<unsigned*>(flags)),
        layout_(layout),
        size_(static_cast<int>(padded_depth) * kColumns),
        member_(member) {}

  static constexpr bool kHasConditionalReads = true;

  template <class V, bool kConditional>
  __device__ __forceinline__ static V read(const S* from, bool there) {
    if constexpr (kConditional) {
      return ptx::load_shared_by_all<V>(from, there);
    } else {
      return ptx::load_shared_by_all<V>(from);
    }
  }

  __device__ __forceinline__ S* copy(int chunk, int parity) const {
    return states_ + std::int64_t{chunk * 2 + parity} * size_;
  }

  // Scratch comes zeroed.
  __device__ __forceinline__ void begin() {}

  __device__ __forceinline__ void write(S* copy, int at, S value) const {
    ptx::store_for_all(copy + at, value);
  }

  // `times` counts a chunk's publications up. By all threads.
  __device__ __forceinline__ void publish(int chunk, unsigned times) {
    __syncthreads();
    raise_flag(flags_ + chunk * layout_.stride * layout_.copies, layout_, member_.rank, times);
  }

  // Until they have published so often. By all lanes of a warp.
  __device__ __forceinline__ void wait(int chunk, unsigned times, Producers producers) const {
    const int copy = chunk * layout_.copies + member_.rank % layout_.copies;
    const unsigned* const flags = flags_ + copy * layout_.stride;
    for (int b = producers.first + lane_of_warp(); b <= producers.last; b += 32) {
      ptx::acquire(flags + b, times);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void end() {}

 private:
  S* const states_;
  unsigned* const flags_;
  const FlagLayout layout_;
  const int size_;
  const Member member_;
};

// Copies in the shared memory of every member of a cluster, or of a block that is a group alone.
//
// The cluster's barrier orders stores before arrival, and loads after the wait; one arrival is on
// its way at a time. Another chunk's step fits between the two.
template <class S, int kColumns>
class ClusterExchange {
 public:
  __device__ __forceinline__ ClusterExchange(void* states, std::int64_t padded_depth, Member member)
      : states_(static_cast<S*>(states)),
        size_(static_cast<int>(padded_depth) * kColumns),
        member_(member) {}

  static constexpr bool kHasConditionalReads = false;

  template <class V, bool>
  __device__ __forceinline__ static V read(const S* from, bool) {
    return *reinterpret_cast<const V*>(from);
  }

  __device__ __forceinline__ S* copy(int chunk, int parity) const {
    return states_ + (chunk * 2 + parity) * size_;
  }

  // Depth beyond H meets zero weights, and has to be a number. Nobody writes to a member that has
  // not begun.
  __device__ __forceinline__ void begin() {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * member_.chunks * size_;
         i += static_cast<int>(blockDim.x)) {
      states_[i] = S{};
    }
    arrive(kNone);
    finish();
  }

  __device__ __forceinline__ void write(S* copy, int at, S value) const {
    S* const mine = copy + at;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (member_.blocks > 1) {
      for (int b = 0; b < member_.blocks; ++b) {
        ptx::store_for_member(ptx::of_member(mine, static_cast<unsigned>(b)), value);
      }
      return;
    }
#endif
    *mine = value;
  }

  __device__ __forceinline__ void publish(int chunk, unsigned) {
    finish();
    // Partial sums that other threads still read would be overwritten by the next chunk's.
    if (member_.blocks > 1 && member_.chunks > 1) {
      __syncthreads();
    }
    arrive(chunk);
  }

  __device__ __forceinline__ void wait(int chunk, unsigned, Producers) {
    if (chunk == on_its_way_) {
      finish();
    }
  }

  // No block leaves while others write to it.
  __device__ __forceinline__ void end() { finish(); }

 private:
  static constexpr int kNone = -1, kNothing = -2;

  __device__ __forceinline__ void arrive(int chunk) {
    on_its_way_ = chunk;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (member_.blocks > 1) {
      ptx::cluster_arrive();
      return;
    }
#else
    if (member_.blocks > 1) {
      __trap();  // before anything is written to a member: begin() arrives
    }
#endif
    __syncthreads();
  }

  __device__ __forceinline__ void finish() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (member_.blocks > 1 && on_its_way_ != kNothing) {
      ptx::cluster_wait();
    }
#endif
    on_its_way_ = kNothing;
  }

  S* const states_;
  const int size_;
  const Member member_;
  int on_its_way_ = kNothing;  // the chunk of the last arrival
};

}  // namespace cuda
}  // namespace fused_rnn

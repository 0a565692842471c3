// The products of a persistent backward kernel's block, and what it exchanges with other blocks for
// them.
//
// A step needs dh = dgates W_hh, of the gate gradients that the step after it in time has made, for
// all G*H of which every hidden unit has a weight. A group of blocks has these weights between them,
// and each block a part of the units, whose gradients it makes and hands on:
//
//   rank in the cluster      0              1        ..
//   cluster 0             units 0..u-1   u..2u-1     ..   each block: the weights of all of its
//   cluster 1                  ..           ..              cluster's units (rows) for the gates
//                                                           of its own rank's units (depth)
//
// So a block reads only the gates that blocks of its own rank, in all clusters, make: through global
// memory, past L1. What it has to add to the units of its cluster's other members, it writes to
// their shared memory. Without clusters (a cluster of one block) a block reads all gates and passes
// nothing on; a group of one cluster reads its own gates only, and no global memory is between them.
//
// Two copies of the gates in memory suffice. A block writes those of step j over those of j - 2,
// which its readers, the blocks of its rank, read for their step j - 1. As it has seen the flags
// that all of them raised at the end of j - 1, after a barrier behind their reads, and as a release
// and what acquires it order also what stands before and after them in the program, none still
// reads. Two copies of the sums suffice too: who writes to a member's sums for the next but one time
// has passed the barrier of the cluster between, at which the member arrived after it had read.
// Flags are compared with numbers that only grow; the steps of a chunk that has no sequence yet
// leave gaps in them.
#pragma once

#include <cstring>
#include <type_traits>

#include "exchange.cuh"
#include "gradient.cuh"
#include "walk.cuh"

namespace fused_rnn {
namespace cuda {

template <class Product, int kShape, Meeting kMeeting>
class BackwardProducts {
  using S = typename Product::Element;
  using Weights = WarpWeights<Product, kShape>;
  static constexpr Shape kS = kShapes[kShape];
  static constexpr int kColumns = kS.columns, kThreads = kS.threads();

 public:
  __device__ __forceinline__ BackwardProducts(const PersistentBackward& a, int direction, int group,
                                              int block)
      : a_(a),
        cluster_(block / members()),
        rank_(block % members()),
        padded_(static_cast<int>(padded_depth(kS, depth(), sizeof(S)))),
        weights_(depth(), dynamic_shared<char>()) {
    const SharedLayout l =
        shared_layout({true, kS, Product::kByMma, sizeof(S), depth(), units(), a.plan.chunks, 0});
    char* const shared = dynamic_shared<char>();
    partials_ = reinterpret_cast<float*>(shared + l.partials);
    passed_ = reinterpret_cast<float*>(shared + l.exchange);
    const std::int64_t chunk = (std::int64_t{direction} * a.plan.groups + group) * a.plan.chunks;
    if constexpr (kMeeting == Meeting::kCluster) {
      gates_ = reinterpret_cast<S*>(shared + l.exchange +
                                    aligned(std::int64_t{8} * members() * units() * kColumns));
    } else {
      const ScratchLayout s =
          scratch_layout(true, a.cell, sizeof(S), a.H, a.directions, kS, a.plan);
      char* const scratch = static_cast<char*>(a.scratch);
      gates_ = reinterpret_cast<S*>(scratch + chunk * 2 * s.states) + rank_ * padded_ * kColumns;
      flags_ = reinterpret_cast<unsigned*>(scratch + s.flags) + chunk * flags_of(a.plan);
    }
  }

  __device__ __forceinline__ int H() const { return static_cast<int>(a_.H); }
  __device__ __forceinline__ int units() const { return a_.plan.units; }
  __device__ __forceinline__ int first_unit() const {
    return (cluster_ * members() + rank_) * units();
  }

  // Whether nobody waits for this block or needs a sum of it.
  __device__ __forceinline__ bool is_idle() const {
    return kMeeting == Meeting::kMemory && first_unit() >= H();
  }

  __device__ __forceinline__ void begin(const S* w_hh) {
    load_weights(w_hh);
    if constexpr (kMeeting == Meeting::kCluster) {
      // Gates that no unit has are multiplied with zero, so they have to be numbers.
      for (int i = thread(); i < a_.plan.chunks * padded_ * kColumns; i += kThreads) {
        gates_[i] = narrow<S>(0);
      }
    }
    __syncthreads();
    meet_cluster();  // no block writes to one that has not begun
  }

  // Multiplies the gates of step j - 1. By all threads, and so is publish().
  __device__ __forceinline__ void multiply(int chunk, int j) {
    typename Weights::Sums sums{};
    if constexpr (kMeeting == Meeting::kCluster) {
      weights_.template multiply<ClusterExchange<S, kColumns>>(gates(chunk, j - 1), sums);
    } else {
      const int each = units() * gate_count(a_.cell), read = weights_.depth_end();
      const int last = ((read < depth() ? read : depth()) + each - 1) / each;
      const FlagLayout l = flag_layout(a_.plan);
      const unsigned* const flags = this->flags(chunk, l) + cluster_ % l.copies * l.stride;
      for (int p = weights_.depth_begin() / each + lane_of_warp(); p < last; p += 32) {
        ptx::acquire(flags + p, static_cast<unsigned>(j));
      }
      __syncwarp();
      weights_.template multiply<MemoryExchange<S, kColumns>>(gates(chunk, j - 1), sums);
    }
    weights_.store(sums, partials_);
    __syncthreads();
    pass_on();
  }

  // What the product has for a unit of this block.
  __device__ __forceinline__ float passed_back(UnitOfChunk at) const {
    if (kMeeting == Meeting::kMemory || members() == 1) {
      return Weights::sum(partials_, at.unit, at.column);
    }
    float total = 0;
    for (int m = 0; m < members(); ++m) {
      total += passed(m)[place_of<kColumns>(at.unit, at.column)];
    }
    return total;
  }

  // To the blocks that multiply with them: the gates of a unit side by side.
  template <class Cell>
  __device__ __forceinline__ void hand_on(const PreGradients<S>& gradients, UnitOfChunk at,
                                          int chunk, int j) const {
    constexpr int G = Cell::kGates;
    S* const gates = this->gates(chunk, j);
    // In accesses of 4 bytes where they stay within a lane's operand.
    constexpr int kWide = G % 2 == 0 && sizeof(S) == 2 ? 2 : 1;
    using Word = std::conditional_t<kWide == 2, std::uint32_t, S>;
#pragma unroll
    for (int g = 0; g < G; g += kWide) {
      const int k = (cluster_ * units() + at.unit) * G + g;
      S* const to = gates + (k / Product::kDepth * kColumns + at.column) * Product::kDepth +
                    k % Product::kDepth;
      S values[kWide];
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        values[i] = Product::rounded(gradients.of[Cell::kRecurrent + g + i]);
      }
      Word word;
      std::memcpy(&word, values, sizeof(word));
      if constexpr (kMeeting == Meeting::kCluster) {
        std::memcpy(to, &word, sizeof(word));
      } else {
        ptx::store_for_all(reinterpret_cast<Word*>(to), word);
      }
    }
  }

  // After all threads have handed on the gates of step j, if there are any, and read the sums.
  __device__ __forceinline__ void publish(int chunk, int j, bool any) const {
    __syncthreads();
    if constexpr (kMeeting != Meeting::kCluster) {
      if (any) {
        const FlagLayout l = flag_layout(a_.plan);
        raise_flag(flags(chunk, l), l, cluster_, static_cast<unsigned>(j) + 1);
      }
    }
  }

 private:
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int members() const {  // of a cluster
    return kMeeting == Meeting::kMemory ? 1 : a_.plan.cluster;
  }
  __device__ __forceinline__ int depth() const {
    return static_cast<int>(slice_depth(true, a_.cell, a_.H, a_.plan));
  }

  __device__ __forceinline__ void load_weights(const S* w_hh) {
    w_hh += cluster_ * members() * units();
    const int rows = members() * units(), here = H() - cluster_ * rows;
    const int depth = this->depth(), end = rows < here ? rows : here;
    const int G = gate_count(a_.cell), H = this->H();
    const Divisor by_gates(G), by_units(units());
    weights_.load([&](int row, int k) {
      int from = by_gates.quotient(k);
      const int gate = k - from * G;
      if constexpr (kMeeting == Meeting::kCluster) {
        from += rank_ * units();
      } else if constexpr (kMeeting == Meeting::kClusters) {  // its rank's, cluster after cluster
        from += (by_units.quotient(from) * (members() - 1) + rank_) * units();
      }
      const bool is = row < end && k < depth && from < H;
      return is ? w_hh[std::int64_t{gate * H + from} * H + row] : narrow<S>(0);
    });
  }

  __device__ __forceinline__ void meet_cluster() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (members() > 1) {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    }
#else
    if (members() > 1) {
      __trap();  // before anything is passed on: begin() meets
    }
#endif
  }

  // Of the blocks with this block's rank in the clusters of the group: the first copy.
  __device__ __forceinline__ unsigned* flags(int chunk, FlagLayout l) const {
    return flags_ + (chunk * members() + rank_) * l.copies * l.stride;
  }

  // The chunk's gates that step j reads or writes, of this block's rank.
  __device__ __forceinline__ S* gates(int chunk, int j) const {
    if constexpr (kMeeting == Meeting::kCluster) {
      return gates_ + chunk * padded_ * kColumns;
    } else {
      const int ranks = members();
      return gates_ + (std::int64_t{chunk} * 2 + j % 2) * ranks * padded_ * kColumns;
    }
  }

  // Adds up the warps' sums for the units of the cluster, and writes them to the units' members.
  __device__ __forceinline__ void pass_on() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (kMeeting == Meeting::kMemory || members() == 1) {
      return;
    }
    copy_ ^= 1;
    const int rows = members() * units();
    const Divisor by_units(units());
    for (int i = thread(); i < (rows + 7) / 8 * 8 * kColumns; i += kThreads) {
      const UnitOfChunk at = unit_of_chunk<kColumns>(i);
      if (at.unit < rows) {
        const int member = by_units.quotient(at.unit), unit = at.unit - member * units();
        float* const mine = passed(rank_) + place_of<kColumns>(unit, at.column);
        ptx::store_for_member(ptx::of_member(mine, static_cast<unsigned>(member)),
                              Weights::sum(partials_, at.unit, at.column));
      }
    }
#endif
    meet_cluster();
  }

  // (units, columns): what `member` has written to this block for the current step.
  __device__ __forceinline__ float* passed(int member) const {
    return passed_ + (copy_ * members() + member) * units() * kColumns;
  }

  const PersistentBackward& a_;
  const int cluster_, rank_;  // of this block: in the group, in the cluster
  const int padded_;          // depth
  Weights weights_;
  float* partials_;
  float* passed_;  // [2][members][units][columns]
  S* gates_;
  unsigned* flags_ = nullptr;
  int copy_ = 0;  // of the sums
};

}  // namespace cuda
}  // namespace fused_rnn

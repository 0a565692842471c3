// All steps of a layer's backward in one launch: the gate gradients of every step, and those of the
// initial states. The sums over all steps (dW, db, dx) are matrix products for others to make.
//
// One step of one chunk, with what has to be seen of others:
//
//   read what forward kept, dy       nothing: under way before the first wait
//   wait for flags, multiply         the gates of step j - 1 of all blocks of the rank
//   barrier, add up the warps' sums, write them to members
//   barrier of the cluster           the sums of all members
//   make the gates' gradients, hand them on
//   barrier, raise the flag          so far everything that others read is written
//   store gradients for the products after the loop: the flag need not wait for these
#include <cstring>
#include <stdexcept>

#include "backward.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

template <class Product, int kShape, Meeting kMeeting>
class BackwardBlock {
  using S = typename Product::Element;
  static constexpr Shape kS = kShapes[kShape];
  static constexpr int kColumns = kS.columns, kThreads = kS.threads();
  // Only a group of one block has as many units as rows, or a block without a cluster.
  static constexpr int kMostUnits = kMeeting == Meeting::kClusters ? kS.rows() / 2 : kS.rows();
  static constexpr int kRounds = rounds_of(kMostUnits, kColumns, kThreads);
  // Rounds that are read ahead: as many as there are registers for beside weights, or, of plain
  // floats, the states on their way.
  static constexpr int kAtOnce = kRounds > 1 && Product::kByMma&& kS.registers < 32 ? 2 : 1;

 public:
  __device__ __forceinline__ BackwardBlock(const PersistentBackward& a, int direction, int group,
                                           int block)
      : a_(a),
        d_(a.direction[direction]),
        first_sequence_(group * a.plan.chunks * kColumns),
        walk_(a, d_.reverse),
        products_(a, direction, group, block) {
    const std::int64_t depth = slice_depth(true, a.cell, a.H, a.plan);
    const SharedLayout l = shared_layout(
        {true, kS, Product::kByMma, sizeof(S), depth, a.plan.units, a.plan.chunks, 0});
    carries_ = reinterpret_cast<float*>(dynamic_shared<char>() + l.states);
  }

  __device__ __forceinline__ void run() {
    if (products_.is_idle()) {
      return;
    }
    products_.begin(static_cast<const S*>(d_.w_hh));
    for (; walk_.j <= a_.T; walk_.advance()) {
      for (int chunk = 0; chunk < a_.plan.chunks; ++chunk) {
        const int first = first_sequence_ + chunk * kColumns;
        if (first < walk_.before || first < walk_.now) {
          step(chunk, first);
        }
      }
    }
  }

 private:
  // One step of the chunk whose sequences begin with `first`.
  __device__ __forceinline__ void step(int chunk, int first) {
    Kept<S> kept[kAtOnce], next[kAtOnce];
    PreGradients<S> gradients[kAtOnce], others[kAtOnce];
    load_kept(kept, 0, first);
    if (first < walk_.before) {
      products_.multiply(chunk, walk_.j);
    }
    if (kRounds > kAtOnce) {
      load_kept(next, kAtOnce, first);
    }
    make(kept, gradients, 0, chunk, first);
#pragma unroll 1
    for (int round = kAtOnce; round < kRounds; round += kAtOnce) {
      std::memcpy(kept, next, sizeof(kept));
      load_kept(next, round + kAtOnce, first);
      make(kept, others, round, chunk, first);
      store(others, round, first);
    }
    products_.publish(chunk, walk_.j, first < walk_.now);
    store(gradients, 0, first);
    expect_next(first);
  }

  // The thread's unit and sequence of a round.
  struct Pair {
    UnitOfChunk at;
    int unit, n;  // of the layer
  };

  __device__ __forceinline__ Pair pair_of(int round, int first) const {
    const UnitOfChunk at =
        unit_of_chunk<kColumns>(static_cast<int>(threadIdx.x) + round * kThreads);
    return {at, products_.first_unit() + at.unit, first + at.column};
  }

  __device__ __forceinline__ bool is_there(const Pair& p, int sequences) const {
    return p.at.unit < a_.plan.units && p.unit < a_.H && p.n < sequences;
  }

  __device__ __forceinline__ void load_kept(Kept<S> (&kept)[kAtOnce], int round, int first) const {
    with_cell(a_.cell, [&](auto cell) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const Pair p = pair_of(round + i, first);
        if (is_there(p, walk_.now)) {
          kept[i].template load<decltype(cell)>(d_, walk_, a_.H, p.n, p.unit);
        }
      }
    });
  }

  __device__ __forceinline__ void expect_next(int first) const {
    with_cell(a_.cell, [&](auto cell) {
#pragma unroll 1
      for (int round = 0; round < kRounds; ++round) {
        const Pair p = pair_of(round, first);
        if (is_there(p, walk_.after)) {
          expect_kept<decltype(cell), S>(d_, walk_, a_.H, p.n, p.unit);
        }
      }
    });
  }

  __device__ __forceinline__ void make(const Kept<S> (&kept)[kAtOnce],
                                       PreGradients<S> (&gradients)[kAtOnce], int round, int chunk,
                                       int first) {
    with_cell(a_.cell, [&](auto cell) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const Pair p = pair_of(round + i, first);
        if (is_there(p, walk_.before > walk_.now ? walk_.before : walk_.now)) {
          make<decltype(cell)>(kept[i], gradients[i], p, chunk);
        }
      }
    });
  }

  template <class Cell>
  __device__ __forceinline__ void make(const Kept<S>& kept, PreGradients<S>& gradients,
                                       const Pair& p, int chunk) {
    const bool goes_on = p.n < walk_.before;
    const float passed = goes_on ? products_.passed_back(p.at) : 0;
    const std::int64_t state = std::int64_t{p.n} * a_.H + p.unit;
    float& carry =
        carries_[chunk * a_.plan.units * kColumns + place_of<kColumns>(p.at.unit, p.at.column)];
    if (p.n < walk_.now) {
      gradients.template make<Cell>(d_, kept, goes_on, passed, state, carry);
      products_.template hand_on<Cell>(gradients, p.at, chunk, walk_.j);
    } else {
      store_initial<Cell, S>(d_, state, passed, carry);
    }
  }

  __device__ __forceinline__ void store(const PreGradients<S> (&gradients)[kAtOnce], int round,
                                        int first) const {
    with_cell(a_.cell, [&](auto cell) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const Pair p = pair_of(round + i, first);
        if (is_there(p, walk_.now)) {
          gradients[i].template store<decltype(cell)>(d_, a_.H, walk_.row + p.n, p.unit);
        }
      }
    });
  }

  const PersistentBackward& a_;
  const PersistentBackwardDirection& d_;
  const int first_sequence_;  // of the group
  BackwardWalk walk_;
  BackwardProducts<Product, kShape, kMeeting> products_;
  float* carries_;  // [chunk][units][columns]: of c, or of the part of h that passes the gates by
};

template <class Product, int kShape, Meeting kMeeting>
__global__ void __launch_bounds__(kShapes[kShape].threads(), 1)
    persistent_backward(const __grid_constant__ PersistentBackward a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr bool kHasBody = true;
#else
  constexpr bool kHasBody = __CUDA_ARCH__ >= 800 && kMeeting != Meeting::kClusters;
#endif
  if constexpr (kHasBody) {
    const int block = static_cast<int>(blockIdx.x), group = block / a.plan.blocks;
    BackwardBlock<Product, kShape, kMeeting>(a, group / a.plan.groups, group % a.plan.groups,
                                             block % a.plan.blocks)
        .run();
  } else {
    __trap();  // an empty body would pass for success
  }
}

template <class Product, int kShape, Meeting kMeeting>
void launch_kernel(const PersistentBackward& a, Stream stream) {
  if constexpr (is_compiled(true, kMeeting, kShape) && has_kernel<Product>()) {
    const Plan& plan = a.plan;
    const std::int64_t blocks = std::int64_t{1} * a.directions * plan.groups * plan.blocks;
    // A group that is a cluster waits for no block outside it.
    const Together together{
        kMeeting != Meeting::kCluster,
        kMeeting == Meeting::kMemory ? 1u : static_cast<unsigned>(plan.cluster)};
    launch_together(persistent_backward<Product, kShape, kMeeting>, "persistent_backward", together,
                    dim3(static_cast<unsigned>(blocks)), dim3(kShapes[kShape].threads()),
                    static_cast<std::size_t>(plan.shared_bytes), stream, a);
  } else {
    throw std::runtime_error("fused_rnn: no persistent backward kernel for this plan's shape");
  }
}

template <class Product, int kShape>
void launch_meeting(const PersistentBackward& a, Stream stream) {
  switch (a.plan.meeting()) {
    case Meeting::kMemory:
      return launch_kernel<Product, kShape, Meeting::kMemory>(a, stream);
    case Meeting::kCluster:
      return launch_kernel<Product, kShape, Meeting::kCluster>(a, stream);
    case Meeting::kClusters:
      return launch_kernel<Product, kShape, Meeting::kClusters>(a, stream);
  }
}

template <class Product>
void launch_shape(const PersistentBackward& a, Stream stream) {
  switch (a.plan.shape) {
#define FUSED_RNN_CASE(index, ...) \
  case index:                      \
    return launch_meeting<Product, index>(a, stream);
    FUSED_RNN_SHAPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
    default:
      throw std::runtime_error("fused_rnn: a plan with a shape that is not there");
  }
}

}  // namespace

void launch_persistent_backward(const PersistentBackward& a, Stream stream) {
  if (a.N == 0 || a.T == 0) {
    return;
  }
  switch (a.dtype) {
    case Dtype::kHalf:
      return launch_shape<TensorProduct<Half>>(a, stream);
    case Dtype::kBFloat16:
      return launch_shape<TensorProduct<BFloat16>>(a, stream);
    case Dtype::kFloat:
      return a.tf32 ? launch_shape<TensorProduct<float>>(a, stream)
                    : launch_shape<PlainProduct>(a, stream);
    case Dtype::kDouble:
      throw std::runtime_error("fused_rnn: no persistent kernel for double");
  }
}

}  // namespace cuda
}  // namespace fused_rnn

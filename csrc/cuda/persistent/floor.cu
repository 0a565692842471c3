// See floor.h. Made of the parts of forward.cu, in halves.
#include "floor.h"

#include <stdexcept>

#include "exchange.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

// Loads the states as a product would, and does next to nothing with them.
struct NoProduct : TensorProduct<Half> {
  __device__ __forceinline__ static void multiply(ptx::Accumulator& d, const ptx::FragmentA&,
                                                  const ptx::FragmentA*, const Operand& b) {
    d.v[0] += bit_cast<float>(b.v[0] ^ b.v[1]);
  }
};

template <class Product, int kShape, class Exchange>
__device__ __forceinline__ void scan(const Floor& a, const Member& member, Exchange exchange,
                                     void* shared) {
  constexpr Shape kS = kShapes[kShape];
  WarpWeights<Product, kShape> weights(a.H, shared);
  // From memory, or the compiler would know them and keep fewer.
  weights.load([&](int row, int k) {
    const std::int64_t at = (std::int64_t{member.rank} * kS.rows() + row) * a.H + k;
    return k < a.H ? elements<const Half>(a.weights)[at] : Half{};
  });
  const int end = weights.depth_end() < a.H ? weights.depth_end() : static_cast<int>(a.H);
  const Producers producers{weights.depth_begin() / member.units, (end - 1) / member.units};
  exchange.begin();
  for (int chunk = 0; a.exchange && chunk < member.chunks; ++chunk) {
    exchange.publish(chunk, 1);
  }
  typename WarpWeights<Product, kShape>::Sums sums{};
  const auto hand_on = [&](int chunk, int parity) {
    Half* const next = exchange.copy(chunk, parity);
    float all = 0;  // products whose sums nobody asks for would be left out
    for (const auto& row : sums) {
      for (const ptx::Accumulator& tile : row) {
        for (const float v : tile.v) all += v;
      }
    }
    const int pairs = static_cast<int>(ceil_div(member.units, 8)) * 8 * kS.columns;
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kS.threads()) {
      const UnitOfChunk at = unit_of_chunk<kS.columns>(i);
      const int unit = member.rank * member.units + at.unit;
      if (at.unit < member.units && unit < a.H) {
        exchange.write(next,
                       (unit / Product::kDepth * kS.columns + at.column) * Product::kDepth +
                           unit % Product::kDepth,
                       narrow<Half>(all));
      }
    }
  };
  for (int k = 0; k < a.T; ++k) {
    for (int chunk = 0; chunk < member.chunks; ++chunk) {
      if (a.exchange) {
        exchange.wait(chunk, static_cast<unsigned>(k) + 1, producers);
      }
      weights.template multiply<Exchange>(exchange.copy(chunk, (k + 1) % 2), sums);
      if (a.exchange) {
        hand_on(chunk, k % 2);
        exchange.publish(chunk, static_cast<unsigned>(k) + 2);
      }
    }
  }
  if (!a.exchange) {
    // Or the products would be for nothing, and left out. All members meet before it, when none
    // reads any more, and after it, so that none has left; flags stay at zero.
    exchange.publish(0, 0);
    exchange.wait(0, 0, producers);
    hand_on(0, 0);
    exchange.publish(0, 0);
  }
  exchange.end();
}

template <class Product, int kShape, bool kInCluster>
__global__ void __launch_bounds__(kShapes[kShape].threads(), 1)
    floor_steps(const __grid_constant__ Floor a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr Shape kS = kShapes[kShape];
  const Plan& plan = a.plan;
  const int block = static_cast<int>(blockIdx.x), group = block / plan.blocks;
  const Member member{block % plan.blocks, plan.blocks, plan.units, plan.chunks};
  const SharedLayout layout = shared_layout(
      {false, kS, true, 2, a.H, plan.units, plan.chunks,
       exchange_bytes(false, plan.meeting(), kS, 2, a.H, plan.units, plan.cluster, plan.chunks)});
  unsigned char* const shared = dynamic_shared<unsigned char>();
  const std::int64_t depth = padded_depth(kS, a.H, 2);
  if constexpr (kInCluster) {
    const ClusterExchange<Half, kS.columns> exchange(shared + layout.exchange, depth, member);
    scan<Product, kShape>(a, member, exchange, shared + layout.weights);
  } else {
    const ScratchLayout scratch = scratch_layout(false, CellKind::kLstm, 2, a.H, 1, kS, plan);
    unsigned char* const memory = static_cast<unsigned char*>(a.scratch);
    const std::int64_t chunks = std::int64_t{1} * group * plan.chunks;
    const MemoryExchange<Half, kS.columns> exchange(
        memory + chunks * 2 * scratch.states, memory + scratch.flags + chunks * flags_of(plan) * 4,
        flag_layout(plan), depth, member);
    scan<Product, kShape>(a, member, exchange, shared + layout.weights);
  }
#else
  __trap();  // an empty body would pass for success
#endif
}

template <int kShape, bool kInCluster>
void launch_shape(const Floor& a, Stream stream) {
  if constexpr (is_compiled(false, kInCluster ? Meeting::kCluster : Meeting::kMemory, kShape)) {
    const Together together{!kInCluster, kInCluster ? static_cast<unsigned>(a.plan.cluster) : 1u};
    launch_together(
        a.products ? floor_steps<TensorProduct<Half>, kShape, kInCluster>
                   : floor_steps<NoProduct, kShape, kInCluster>,
        "floor_steps", together, dim3(static_cast<unsigned>(a.plan.groups * a.plan.blocks)),
        dim3(kShapes[kShape].threads()), static_cast<std::size_t>(a.plan.shared_bytes), stream, a);
  } else {
    throw std::runtime_error("fused_rnn: a plan for a kernel that is not there");
  }
}

}  // namespace

void launch_floor(const Floor& a, Stream stream) {
  switch (a.plan.shape) {
#define FUSED_RNN_CASE(index, ...)                                                      \
  case index:                                                                           \
    return a.plan.meeting() == Meeting::kCluster ? launch_shape<index, true>(a, stream) \
                                                 : launch_shape<index, false>(a, stream);
    FUSED_RNN_SHAPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
    default:
      throw std::runtime_error("fused_rnn: a plan with a shape that is not there");
  }
}

}  // namespace cuda
}  // namespace fused_rnn

// A layer's forward in one launch: every block keeps its hidden units' weights on chip.
#include <stdexcept>

#include "forward.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

template <int kShape, class Element>
__device__ __forceinline__ Place place_of_block(const PersistentForward& a, bool by_mma) {
  constexpr Shape kS = kShapes[kShape];
  const Plan& plan = a.plan;
  const int block = static_cast<int>(blockIdx.x), group = block / plan.blocks;
  const int bytes = sizeof(Element);
  Place p;
  p.direction = &a.direction[group / plan.groups];
  p.member = {block % plan.blocks, plan.blocks, plan.units, plan.chunks};
  p.first = group % plan.groups * plan.chunks * kS.columns;
  p.layout = shared_layout({false, kS, by_mma, bytes, a.H, plan.units, plan.chunks,
                            exchange_bytes(false, plan.meeting(), kS, bytes, a.H, plan.units,
                                           plan.cluster, plan.chunks)});
  p.shared = dynamic_shared<unsigned char>();
  const ScratchLayout scratch = scratch_layout(false, a.cell, bytes, a.H, a.directions, kS, plan);
  const std::int64_t chunks = std::int64_t{1} * group * plan.chunks;
  p.states = static_cast<unsigned char*>(a.scratch) + chunks * 2 * scratch.states;
  p.flags = static_cast<unsigned char*>(a.scratch) + scratch.flags + chunks * flags_of(plan) * 4;
  return p;
}

template <class Cell, class Product, int kShape, bool kInCluster>
__global__ void __launch_bounds__(kShapes[kShape].threads(), 1)
    persistent_forward(const __grid_constant__ PersistentForward a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using S = typename Product::Element;
  constexpr Shape kS = kShapes[kShape];
  const Place place = place_of_block<kShape, S>(a, Product::kByMma);
  const std::int64_t depth = padded_depth(kS, a.H, sizeof(S));
  if constexpr (kInCluster) {
    using Exchange = ClusterExchange<S, kS.columns>;
    const Exchange exchange(place.shared + place.layout.exchange, depth, place.member);
    Forward<Cell, S, Product, kShape, Exchange>(a, place, exchange).run();
  } else {
    using Exchange = MemoryExchange<S, kS.columns>;
    const Exchange exchange(place.states, place.flags, flag_layout(a.plan), depth, place.member);
    Forward<Cell, S, Product, kShape, Exchange>(a, place, exchange).run();
  }
#else
  __trap();  // an empty body would pass for success
#endif
}

template <class Cell, class Product, int kShape, bool kInCluster>
void launch_kernel(const PersistentForward& a, Stream stream) {
  constexpr Meeting kMeeting = kInCluster ? Meeting::kCluster : Meeting::kMemory;
  if constexpr (is_compiled(false, kMeeting, kShape) && has_kernel<Product, Cell>()) {
    const unsigned blocks =
        static_cast<unsigned>(a.directions) * static_cast<unsigned>(a.plan.groups * a.plan.blocks);
    const Together together{!kInCluster, kInCluster ? static_cast<unsigned>(a.plan.cluster) : 1u};
    launch_together(persistent_forward<Cell, Product, kShape, kInCluster>, "persistent_forward",
                    together, dim3(blocks), dim3(kShapes[kShape].threads()),
                    static_cast<std::size_t>(a.plan.shared_bytes), stream, a);
  } else {
    throw std::runtime_error("fused_rnn: a plan for a kernel that is not there");
  }
}

template <class Cell, class Product>
void launch_shape(const PersistentForward& a, Stream stream) {
  switch (a.plan.shape) {
#define FUSED_RNN_CASE(index, ...)                                    \
  case index:                                                         \
    return a.plan.meeting() == Meeting::kCluster                      \
               ? launch_kernel<Cell, Product, index, true>(a, stream) \
               : launch_kernel<Cell, Product, index, false>(a, stream);
    FUSED_RNN_SHAPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
    default:
      throw std::runtime_error("fused_rnn: a plan with a shape that is not there");
  }
}

template <class Cell>
void launch_cell(const PersistentForward& a, Stream stream) {
  switch (a.dtype) {
    case Dtype::kHalf:
      return launch_shape<Cell, TensorProduct<Half>>(a, stream);
    case Dtype::kBFloat16:
      return launch_shape<Cell, TensorProduct<BFloat16>>(a, stream);
    case Dtype::kFloat:
      return a.tf32 ? launch_shape<Cell, TensorProduct<float>>(a, stream)
                    : launch_shape<Cell, PlainProduct>(a, stream);
    case Dtype::kDouble:
      throw std::runtime_error("fused_rnn: no persistent kernel for double");
  }
}

}  // namespace

void launch_persistent_forward(const PersistentForward& a, Stream stream) {
  if (a.N == 0 || a.T == 0) {
    return;
  }
  switch (a.cell) {
    case CellKind::kLstm:
      return launch_cell<Lstm>(a, stream);
    case CellKind::kGru:
      return launch_cell<Gru>(a, stream);
    case CellKind::kRnnTanh:
    case CellKind::kRnnRelu:
      return launch_cell<Rnn<false>>(a, stream);  // one kernel for both: a comparison costs nothing
  }
}

}  // namespace cuda
}  // namespace fused_rnn

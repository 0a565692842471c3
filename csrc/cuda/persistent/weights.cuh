// What persistent kernels share: a warp's slice of the weights, its products, and how the states that
// it multiplies them by lie in memory. How they get there is exchange.cuh's business.
//
// States stand in fragments of 32 bytes of depth, k, as a warp multiplies them: [k / kDepth]
// [column][k % kDepth]. A lane takes 8 neighbouring bytes of a column for what the MMA calls words q
// and q + 4 of the depth (ptx.cuh); as the weights' fragments are made with the same permutation,
// the sums are the same, and a warp reads 256 bytes in a row.
#pragma once

#include <cstdint>
#include <type_traits>

#include "products.cuh"

namespace fused_rnn {
namespace cuda {

// The hidden unit and the sequence of a chunk that a thread has. A warp has 8 units of 4 sequences:
// wide enough for whole sectors of memory, and narrow enough to read partial sums, which lie the
// other way round, from different banks.
struct UnitOfChunk {
  int unit, column;
};

template <int kColumns>
__device__ __forceinline__ UnitOfChunk unit_of_chunk(int i) {
  if constexpr (kColumns == 1) {
    return {i, 0};
  } else {
    constexpr int kTiles = kColumns / 4;
    const int tile = i / 32;
    return {i % 8 + tile / kTiles * 8, i / 8 % 4 + tile % kTiles * 4};
  }
}

// The rounds that a block's threads take over (units, columns).
constexpr int rounds_of(int units, int columns, int threads) {
  return static_cast<int>(ceil_div(ceil_div(units, 8) * 8 * columns, threads));
}

// A warp's slice of a block's weights: `rows` of warp_m, and some of the depth. The first fragments
// stay in registers for the whole launch, the others in shared memory.
template <class Kind, int kShape>
class WarpWeights {
 public:
  static constexpr Shape kS = kShapes[kShape];
  static constexpr bool kOneColumn = kS.columns == 1;
  using Product = std::conditional_t<kOneColumn, OneColumn<Kind>, Kind>;
  static constexpr int kTilesM = kS.tiles_m, kTilesN = kOneColumn ? 1 : kS.columns / 8;
  // Whether a lane needs no fragment but its own. Plain products of eight columns need four.
  static constexpr bool kByLane = Product::kByMma || kOneColumn;
  static constexpr int kKept = kept_fragments(kS, Product::kByMma) / kTilesM;  // steps
  // Steps whose states are on their way at once; plain products take more registers, and one column
  // leaves some.
  static constexpr int kMostAhead = Product::kByMma ? 16 : 8;
  static constexpr int kAhead = kOneColumn ? kKept / static_cast<int>(ceil_div(kKept, kMostAhead))
                                           : (kByLane ? 8 : 4) / kTilesN;
  static_assert(kKept % kAhead == 0, "no round has fragments in both places");
  static constexpr bool kHasRegistersLeft = kTilesM <= 3 && !kOneColumn;
  static constexpr int kAtOnce = kTilesM > 2 ? 1 : 4 / kTilesM;  // steps that are loaded at once
  static_assert(kKept % kAtOnce == 0, "nor has a round of loads");
  using Element = typename Product::Element;
  using Sums = ptx::Accumulator[kTilesM][kTilesN];

  __device__ __forceinline__ WarpWeights(std::int64_t depth, void* shared) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int padded = static_cast<int>(depth_steps(kS, depth, sizeof(Element)));
    const int all = static_cast<int>(ceil_div(depth, Product::kDepth));
    warp_m_ = warp % kS.warps_m, warp_k_ = warp / kS.warps_m;
    first_ = warp_k_ * padded;
    steps_ = all - first_ < 0 ? 0 : all - first_ < padded ? all - first_ : padded;
    const int in_memory = padded > kKept ? padded - kKept : 0;
    fragments_ = static_cast<ptx::FragmentA*>(shared) + warp * in_memory * kTilesM * 32;
  }

  // weight(row, k): of the block's rows, 0 where there is none.
  template <class Weight>
  __device__ __forceinline__ void load(Weight&& weight) {
    const auto make = [&](int step, int tile) {
      const int row = (warp_m_ * kTilesM + tile) * 16, k = (first_ + step) * Product::kDepth;
      return Product::fragment([&](int r, int i) { return weight(row + r, k + i); });
    };
// Not unrolled as a whole: that takes the compiler minutes.
#pragma unroll 1
    for (int begin = 0; begin < kKept; begin += kAtOnce) {
      ptx::FragmentA some[kAtOnce][kTilesM]{};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          if (begin + i < steps_) some[i][m] = make(begin + i, m);
        }
      }
#pragma unroll
      for (int f = 0; f < kKept * kTilesM; ++f) {
        const int s = f / kTilesM;
        if (s - s % kAtOnce == begin) kept_[f] = some[s % kAtOnce][f % kTilesM];
      }
    }
#pragma unroll 1
    for (int s = kKept; s < steps_; ++s) {
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        fragments_[((s - kKept) * kTilesM + m) * 32 + lane_of_warp()] = make(s, m);
      }
    }
    __syncwarp();
  }

  // `states`: of the whole depth. By all lanes of the warp.
  template <class Exchange>
  __device__ __forceinline__ void multiply(const Element* states, Sums& sums) const {
#pragma unroll
    for (int s = 0; s < kKept; s += kAhead) {
      some_steps<Exchange, true>(states, s, sums);
    }
    for (int s = kKept; s < steps_; s += kAhead) {
      some_steps<Exchange, false>(states, s, sums);
    }
  }

  // [warp_k][row][column]: the sums of a block's warps.
  __device__ __forceinline__ void store(const Sums& sums, float* partials) const {
    float* const mine = partials + warp_k_ * kS.rows() * kS.columns;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        Product::template store<kS.columns>(sums[m][n], mine, (warp_m_ * kTilesM + m) * 16, n * 8);
      }
    }
  }

  // A row's sum for a column, of all warps.
  __device__ __forceinline__ static float sum(const float* partials, int row, int column) {
    const float* const from = partials + place_of<kS.columns>(row, column);
    float total = 0;
#pragma unroll
    for (int w = 0; w < kS.warps_k; ++w) {
      total += from[w * kS.rows() * kS.columns];
    }
    return total;
  }

  // What the warp reads of the depth.
  __device__ __forceinline__ int depth_begin() const { return first_ * Product::kDepth; }
  __device__ __forceinline__ int depth_end() const { return (first_ + steps_) * Product::kDepth; }

 private:
  // All loads stand before the first product, and none in a branch of its own: a compiler puts a
  // load that is conditional next to the product that is so too, and a warp waits for one after the
  // other. Where registers are left, a load's own condition says so, and the compiler keeps them
  // together; elsewhere it would spill, and what is not there is read from the first step's place.
  template <class Exchange, bool kInRegisters>
  __device__ __forceinline__ void some_steps(const Element* states, int begin, Sums& sums) const {
    constexpr bool kConditional = kHasRegistersLeft && Exchange::kHasConditionalReads;
    if constexpr (kConditional) {
      states += first_ * kS.columns * Product::kDepth;
    }
    typename Product::Operand b[kAhead][kTilesN];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const bool there = begin + i < steps_;
        const int step = kConditional || there ? begin + i : 0;
        const int from = kConditional ? step : first_ + step;
        b[i][n] = Product::template operand<Exchange, kConditional>(
            states + (from * kS.columns + n * 8) * Product::kDepth, there);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i < steps_) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          const int f = (begin + i) * kTilesM + m;
          const ptx::FragmentA* const shared = fragments_ + (f - kKept * kTilesM) * 32;
          ptx::FragmentA a{};
          if constexpr (kInRegisters) {
            a = kept_[f];
          } else if constexpr (kByLane) {
            a = shared[lane_of_warp()];
          }
#pragma unroll
          for (int n = 0; n < kTilesN; ++n) {
            Product::multiply(sums[m][n], a, shared, b[i][n]);
          }
        }
      }
    }
  }

  int warp_m_, warp_k_, first_, steps_;  // steps of a fragment's depth
  ptx::FragmentA* fragments_;            // of this warp, those not kept
  ptx::FragmentA kept_[kKept * kTilesM > 0 ? kKept * kTilesM : 1];
};

}  // namespace cuda
}  // namespace fused_rnn

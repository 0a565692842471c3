// What persistent kernels share: a warp's slice of the weights and its products, and how blocks hand
// states to each other.
//
// States stand in fragments of 32 bytes of depth, k, as a warp multiplies them: [k / kDepth]
// [column][k % kDepth]. A lane takes 8 neighbouring bytes of a column for what the MMA calls words q
// and q + 4 of the depth (ptx.cuh); as the weights' fragments are made with the same permutation,
// the sums are the same, and a warp reads 256 bytes in a row.
#pragma once

#include <cstdint>

#include "persistent.h"
#include "ptx.cuh"

namespace fused_rnn {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

template <class E>
__device__ __forceinline__ E* elements(const void* array) {
  return static_cast<E*>(const_cast<void*>(array));
}

// The hidden unit and the sequence of a chunk that a thread has. A warp has 8 units of 4 sequences:
// wide enough for whole sectors of memory, and narrow enough to read partial sums, which lie the
// other way round, from different banks.
struct UnitOfChunk {
  int unit, column;
};

template <int kColumns>
__device__ __forceinline__ UnitOfChunk unit_of_chunk(int i) {
  constexpr int kTiles = kColumns / 4;
  const int tile = i / 32;
  return {i % 8 + tile / kTiles * 8, i / 8 % 4 + tile % kTiles * 4};
}

// The rounds that a block's threads take over (units, columns).
constexpr int rounds_of(int units, int columns, int threads) {
  return static_cast<int>(ceil_div(ceil_div(units, 8) * 8 * columns, threads));
}

// Where a (rows, columns) array in shared memory has an element, so that 8 rows of 4 columns are in
// different banks, and pairs of columns stay together.
template <int kColumns>
__device__ __forceinline__ int place_of(int row, int column) {
  return row * kColumns + (column ^ (row * kColumns / 32 % (kColumns / 4) * 4));
}

// Products on tensor cores: of halves, or of floats rounded to TF32, summed in float.
template <class S>
struct TensorProduct {
  using Element = S;
  using Operand = ptx::FragmentB;
  static constexpr int kDepth = fragment_depth(sizeof(S));
  static constexpr bool kInRegisters = true;

  __device__ __forceinline__ static S rounded(S v) {
    if constexpr (sizeof(S) == 4) {
      return bit_cast<S>(ptx::round_tf32(v));
    } else {
      return v;
    }
  }

  // weight(row, k): of the 16 rows and the depth of a fragment.
  template <class Weight>
  __device__ __forceinline__ static ptx::FragmentA fragment(Weight&& weight) {
    constexpr int kPair = 4 / sizeof(S);
    const int g = lane_of_warp() / 4, q = lane_of_warp() % 4;
    ptx::FragmentA a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      S word[kPair];
#pragma unroll
      for (int j = 0; j < kPair; ++j) {
        word[j] = rounded(weight(g + i % 2 * 8, (2 * q + i / 2) * kPair + j));
      }
      std::memcpy(&a.v[i], word, 4);
    }
    return a;
  }

  // `states`: of a fragment's depth, from its first of 8 columns on.
  template <class Exchange>
  __device__ __forceinline__ static Operand operand(const S* states) {
    const int g = lane_of_warp() / 4, q = lane_of_warp() % 4;
    return Exchange::template read<Operand>(states + g * kDepth + q * (8 / sizeof(S)));
  }

  __device__ __forceinline__ static void multiply(ptx::Accumulator& d, const ptx::FragmentA& a,
                                                  const ptx::FragmentA*, const Operand& b) {
    ptx::multiply<S>(d, a, b);
  }
};

// Products of floats as they are. A lane makes the same four sums as an MMA leaves it.
struct PlainProduct {
  using Element = float;
  struct Operand {
    ptx::FragmentA column[2][2];
  };
  static constexpr int kDepth = fragment_depth(sizeof(float));
  static constexpr bool kInRegisters = false;

  __device__ __forceinline__ static float rounded(float v) { return v; }

  // A fragment is [k / 4][row][k % 4] in shared memory: rows in a row for a warp's lanes.
  template <class Weight>
  __device__ __forceinline__ static ptx::FragmentA fragment(Weight&& weight) {
    ptx::FragmentA a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.v[i] = bit_cast<std::uint32_t>(weight(lane_of_warp() % 16, lane_of_warp() / 16 * 4 + i));
    }
    return a;
  }

  template <class Exchange>
  __device__ __forceinline__ static Operand operand(const float* states) {
    Operand b;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = lane_of_warp() % 4 * 2 + c;
        b.column[c][half] =
            Exchange::template read<ptx::FragmentA>(states + column * kDepth + half * 4);
      }
    }
    return b;
  }

  __device__ __forceinline__ static void multiply(ptx::Accumulator& d, const ptx::FragmentA&,
                                                  const ptx::FragmentA* fragment,
                                                  const Operand& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const ptx::FragmentA a = fragment[half * 16 + lane_of_warp() / 4 + r * 8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            d.v[r * 2 + c] += bit_cast<float>(a.v[i]) * bit_cast<float>(b.column[c][half].v[i]);
          }
        }
      }
    }
  }
};

// A warp's slice of a block's weights: `rows` of warp_m, and some of the depth. The first fragments
// stay in registers for the whole launch, the others in shared memory.
template <class Product, int kShape>
class WarpWeights {
 public:
  static constexpr Shape kS = kShapes[kShape];
  static constexpr int kTilesM = kS.tiles_m, kTilesN = kS.columns / 8;
  static constexpr int kKept = Product::kInRegisters ? kS.registers / kTilesM : 0;  // steps
  // Steps whose states are on their way at once; plain products take more registers.
  static constexpr int kAhead = (Product::kInRegisters ? 8 : 4) / kTilesN;
  static_assert(kKept % kAhead == 0, "no round has fragments in both places");
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
    const int g = lane_of_warp() / 4, q = lane_of_warp() % 4;
    float* const mine = partials + warp_k_ * kS.rows() * kS.columns;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = (warp_m_ * kTilesM + m) * 16 + half * 8 + g;
          float* const to = mine + place_of<kS.columns>(row, n * 8 + q * 2);
          *reinterpret_cast<float2*>(to) = {sums[m][n].v[half * 2], sums[m][n].v[half * 2 + 1]};
        }
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
  template <class Exchange, bool kInRegisters>
  __device__ __forceinline__ void some_steps(const Element* states, int begin, Sums& sums) const {
    typename Product::Operand b[kAhead][kTilesN];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        if (begin + i < steps_) {
          b[i][n] = Product::template operand<Exchange>(
              states + ((first_ + begin + i) * kS.columns + n * 8) * Product::kDepth);
        }
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
          } else if constexpr (Product::kInRegisters) {
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

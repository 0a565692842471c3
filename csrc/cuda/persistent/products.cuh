// A warp's products of 16 rows of weights, a fragment, by the states of some columns: on tensor cores,
// or of floats as they are; of eight sequences at once, or of one.
//
// One sequence has an exchange of one column. Padded to eight, seven eighths of what every block stores,
// loads from L2 and holds in shared memory would be nobody's: at H = 1024, in halves, 128 blocks load
// 16 KB a step instead of 2, 0.38 us of the model's 1.65 instead of 0.05. The products are another
// matter. An MMA takes as long for one column as for eight, which at 32 rows a block is 0.15 us; CUDA
// cores would need 0.3 us for the same weights, as each pair of halves has to be widened first. So the
// lanes of all eight columns load the one that is there, from the same addresses, which costs nothing
// and asks for no zeros, and seven columns of sums are dropped. Floats as they are have no MMA, and
// eight columns of them cost eight times one: there each lane has other rows and depths, its weights
// in registers, and lanes that share rows add up at the end.
//
// Two sequences and more with an exchange of one column are as many groups, side by side.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells.h"
#include "params.h"
#include "cuda/ptx.cuh"

namespace fused_rnn {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

template <class E>
__device__ __forceinline__ E* elements(const void* array) {
  return static_cast<E*>(const_cast<void*>(array));
}

// Where a (rows, columns) array in shared memory has an element, so that 8 rows of 4 columns, as they
// are read, are in different banks, and so are 4 rows of 8 columns, as half a warp writes pairs of
// them. Fours of columns stay together.
template <int kColumns>
__device__ __forceinline__ int place_of(int row, int column) {
  if constexpr (kColumns == 1) {
    return row;
  } else {
    constexpr int kRows = 32 / kColumns,
                  kFours = kColumns / 4;  // rows that go once around the banks
    int turn = row / kRows % kFours;
    if constexpr (kFours == 4) {
      turn = turn % 2 * 2 + turn / 2;  // two turns in a row use different halves of the columns
    }
    return row * kColumns + (column ^ (turn * 4));
  }
}

// How an MMA leaves sums: to `partials`, (rows, columns), from `row` and `column` on.
struct TileOfSums {
  template <int kColumns>
  __device__ __forceinline__ static void store(const ptx::Accumulator& d, float* partials, int row,
                                               int column) {
    const int g = lane_of_warp() / 4, q = lane_of_warp() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const to = partials + place_of<kColumns>(row + half * 8 + g, column + q * 2);
      *reinterpret_cast<float2*>(to) = {d.v[half * 2], d.v[half * 2 + 1]};
    }
  }
};

// Products on tensor cores: of halves, or of floats rounded to TF32, summed in float.
template <class S>
struct TensorProduct : TileOfSums {
  using Element = S;
  using Operand = ptx::FragmentB;
  static constexpr int kDepth = fragment_depth(sizeof(S));
  static constexpr bool kByMma = true;

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

  // `states`: of a fragment's depth, from its first of 8 columns on; `there`: whether anybody asks for
  // what is returned.
  template <class Exchange, bool kConditional>
  __device__ __forceinline__ static Operand operand(const S* states, bool there) {
    const int g = lane_of_warp() / 4, q = lane_of_warp() % 4;
    return Exchange::template read<Operand, kConditional>(states + g * kDepth + q * (8 / sizeof(S)),
                                                          there);
  }

  __device__ __forceinline__ static void multiply(ptx::Accumulator& d, const ptx::FragmentA& a,
                                                  const ptx::FragmentA*, const Operand& b) {
    ptx::multiply<S>(d, a, b);
  }
};

// Products of floats as they are. A lane makes the same four sums as an MMA leaves it.
struct PlainProduct : TileOfSums {
  using Element = float;
  struct Operand {
    ptx::FragmentA column[2][2];
  };
  static constexpr int kDepth = fragment_depth(sizeof(float));
  static constexpr bool kByMma = false;

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

  template <class Exchange, bool kConditional>
  __device__ __forceinline__ static Operand operand(const float* states, bool there) {
    Operand b;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = lane_of_warp() % 4 * 2 + c;
        b.column[c][half] = Exchange::template read<ptx::FragmentA, kConditional>(
            states + column * kDepth + half * 4, there);
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

// The same of one column; on tensor cores.
template <class Product>
struct OneColumn : Product {
  using typename Product::Element;
  using typename Product::Operand;

  template <class Exchange, bool kConditional>
  __device__ __forceinline__ static Operand operand(const Element* states, bool there) {
    const Element* const from = states + lane_of_warp() % 4 * (8 / sizeof(Element));
    return Exchange::template read<Operand, kConditional>(from, there);
  }

  template <int kColumns>
  __device__ __forceinline__ static void store(const ptx::Accumulator& d, float* partials, int row,
                                               int) {
    if (lane_of_warp() % 4 == 0) {
      partials[row + lane_of_warp() / 4] = d.v[0];
      partials[row + lane_of_warp() / 4 + 8] = d.v[2];
    }
  }
};

// Of floats as they are: lane l has the rows l % 4 + 4 i of a fragment, and one of its eight depths,
// l / 4. That is four sums, as an MMA leaves, and a load of 32 bytes for a warp.
template <>
struct OneColumn<PlainProduct> : PlainProduct {
  struct alignas(4) Operand {
    std::uint32_t v[1];
  };

  template <class Weight>
  __device__ __forceinline__ static ptx::FragmentA fragment(Weight&& weight) {
    ptx::FragmentA a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.v[i] = bit_cast<std::uint32_t>(weight(lane_of_warp() % 4 + i * 4, lane_of_warp() / 4));
    }
    return a;
  }

  template <class Exchange, bool kConditional>
  __device__ __forceinline__ static Operand operand(const float* states, bool there) {
    return Exchange::template read<Operand, kConditional>(states + lane_of_warp() / 4, there);
  }

  __device__ __forceinline__ static void multiply(ptx::Accumulator& d, const ptx::FragmentA& a,
                                                  const ptx::FragmentA*, const Operand& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d.v[i] += bit_cast<float>(a.v[i]) * bit_cast<float>(b.v[0]);
    }
  }

  // The sums of eight lanes. Of two that meet, each goes on with half of the rows.
  template <int kColumns>
  __device__ __forceinline__ static void store(const ptx::Accumulator& d, float* partials, int row,
                                               int) {
    const int lane = lane_of_warp();
    const bool upper = lane & 16, odd = lane & 8;
    float two[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float given = __shfl_xor_sync(kAllLanes, upper ? d.v[i] : d.v[i + 2], 16);
      two[i] = (upper ? d.v[i + 2] : d.v[i]) + given;
    }
    float sum = (odd ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, odd ? two[0] : two[1], 8);
    sum += __shfl_xor_sync(kAllLanes, sum, 4);
    if ((lane & 4) == 0) {
      partials[row + lane % 4 + (upper ? 8 : 0) + (odd ? 4 : 0)] = sum;
    }
  }
};

// Which kernels a source has: all; or, where code is only checked, each cell and each kind of
// product once (tests/native/check_cuda.py). Types of 16 bits differ in their conversions alone.
#ifdef FUSED_RNN_FEW_KERNELS
template <class Product, class Cell = void>  // void: every cell's, chosen as it runs
constexpr bool has_kernel() {
  constexpr bool kEvery = std::is_void_v<Cell>;
  if constexpr (std::is_same_v<Product, TensorProduct<BFloat16>>) {
    return kEvery || std::is_same_v<Cell, Lstm>;
  } else if constexpr (std::is_same_v<Product, PlainProduct>) {
    return kEvery || std::is_same_v<Cell, Gru>;
  } else {
    return std::is_same_v<Product, TensorProduct<float>> && std::is_same_v<Cell, Rnn<false>>;
  }
}
#else
template <class Product, class Cell = void>
constexpr bool has_kernel() {
  return true;
}
#endif

}  // namespace cuda
}  // namespace fused_rnn

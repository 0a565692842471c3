// What one hidden unit of one sequence reads and writes in a step of a persistent backward kernel,
// beside its products.
#pragma once

#include <cstdint>

#include "cells.h"
#include "walk.cuh"
#include "weights.cuh"

namespace fused_rnn {
namespace cuda {

// Division of numbers below 2^16 by one of 256 at most that is known late: their product is below
// 2^24, so the reciprocal's error adds less than a unit of the quotient's fraction.
class Divisor {
 public:
  __device__ __forceinline__ explicit Divisor(int by)
      : reciprocal_((1u << 24) / static_cast<unsigned>(by) + 1) {}
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>(std::uint64_t{reciprocal_} * static_cast<unsigned>(n) >> 24);
  }

 private:
  const unsigned reciprocal_;
};

// f(cell) for the cell that a scan has. Which one it is, a kernel asks once in a while: were it a
// template's argument of the kernel, there would be four times as many to compile.
template <class F>
__device__ __forceinline__ void with_cell(CellKind kind, F&& f) {
  switch (kind) {
    case CellKind::kLstm:
      return f(Lstm{});
    case CellKind::kGru:
      return f(Gru{});
    case CellKind::kRnnTanh:
      return f(Rnn<false>{});
    case CellKind::kRnnRelu:
      return f(Rnn<true>{});
  }
}

// What a step's gradients need and forward, or the layer above, left in memory: hidden unit `unit`
// of sequence `n`.
template <class S, class T = typename ComputeType<S>::type>
struct Kept {
  T saved[Lstm::kSaved] = {}, prev = 0, dy = 0;  // the LSTM has most of them

  template <class Cell>
  __device__ __forceinline__ void load(const PersistentBackwardDirection& d,
                                       const BackwardWalk& walk, std::int64_t H, int n, int unit) {
    constexpr int G = Cell::kGates;
    const std::int64_t row = walk.row + n, at = row * H + unit;
    const std::int64_t before = (walk.row_after() + n) * H + unit, initial = n * H + unit;
    const bool begins = n >= walk.after;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      saved[g] = elements<const T>(d.gates)[(row * G + g) * H + unit];
    }
    if constexpr (Cell::kHasCell) {
      saved[G] = elements<const T>(d.extra)[at];
      prev = begins ? widen(elements<const S>(d.c0)[initial]) : elements<const T>(d.extra)[before];
    } else if constexpr (Cell::kStateIsHidden) {
      saved[G] = elements<const T>(d.extra)[at];
      prev = widen(begins ? elements<const S>(d.h0)[initial] : elements<const S>(d.y)[before]);
    }
    if (d.dy != nullptr) {
      dy = widen(elements<const S>(d.dy)[at]);
    }
  }
};

// Asks for what load() will read for the next step and has not read for this one.
template <class Cell, class S, class T = typename ComputeType<S>::type>
__device__ __forceinline__ void expect_kept(const PersistentBackwardDirection& d,
                                            const BackwardWalk& walk, std::int64_t H, int n,
                                            int unit) {
  constexpr int G = Cell::kGates;
  const std::int64_t row = walk.row_after() + n, at = row * H + unit;
  const std::int64_t before = (walk.row_beyond() + n) * H + unit;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    ptx::prefetch(elements<const T>(d.gates) + (row * G + g) * H + unit);
  }
  if (Cell::kStateIsHidden) {
    ptx::prefetch(elements<const T>(d.extra) + at);
  }
  if (d.dy != nullptr) {
    ptx::prefetch(elements<const S>(d.dy) + at);
  }
  if (walk.has_beyond()) {
    if constexpr (Cell::kHasCell) {
      ptx::prefetch(elements<const T>(d.extra) + before);
    } else if constexpr (Cell::kStateIsHidden) {
      ptx::prefetch(elements<const S>(d.y) + before);
    }
  }
}

// The gradients of a step's pre-activations, rounded as they go into products.
template <class S, class T = typename ComputeType<S>::type>
struct PreGradients {
  S of[Lstm::kPre] = {};

  // `passed`: what the later step passed back, if the sequence had one. `carry`: in and out.
  template <class Cell>
  __device__ __forceinline__ void make(const PersistentBackwardDirection& d, const Kept<S>& kept,
                                       bool goes_on, T passed, std::int64_t final_state, T& carry) {
    T dh = kept.dy;
    if (goes_on) {
      dh += passed;
    } else {
      if (d.dh_n != nullptr) {
        dh += widen(elements<const S>(d.dh_n)[final_state]);
      }
      const bool given = Cell::kHasCell && d.dc_n != nullptr;
      carry = given ? widen(elements<const S>(d.dc_n)[final_state]) : T{};
    }
    T dpre[Cell::kPre];
    Cell::backward(kept.saved, kept.prev, dh, carry, dpre);
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) {
      of[p] = narrow<S>(dpre[p]);
    }
  }

  template <class Cell>
  __device__ __forceinline__ void store(const PersistentBackwardDirection& d, std::int64_t H,
                                        std::int64_t row, int unit) const {
    constexpr int G = Cell::kGates;
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) {
      const std::int64_t at = (row * G + Cell::order(p)) * H + unit;
      if (p < G) {
        elements<S>(d.dgates_x)[at] = of[p];
      }
      if (Cell::kPre != G && p >= Cell::kRecurrent) {
        elements<S>(d.dgates_h)[at] = of[p];
      }
    }
  }
};

// The gradients of a sequence's initial state, after its first step; null pointers: not wanted.
template <class Cell, class S, class T>
__device__ __forceinline__ void store_initial(const PersistentBackwardDirection& d, std::int64_t at,
                                              T passed, T carry) {
  if (d.dh0 != nullptr) {
    elements<S>(d.dh0)[at] = narrow<S>(Cell::kStateIsHidden ? passed + carry : passed);
  }
  if (Cell::kHasCell && d.dc0 != nullptr) {
    elements<S>(d.dc0)[at] = narrow<S>(carry);
  }
}

}  // namespace cuda
}  // namespace fused_rnn

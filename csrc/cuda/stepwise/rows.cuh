// How kernels over rows of units are launched: a thread has some neighbouring units of one row.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cells.h"
#include "cuda/launch.cuh"
#include "steps.h"
#include "cuda/vector.cuh"

namespace fused_rnn {
namespace cuda {

constexpr int kBlock = 128;
// Below this many threads a GPU is far from full, and narrow accesses spread the work further. The
// host bench has a number of its own, to see both kinds at small sizes.
#ifndef FUSED_RNN_FEW_THREADS
#define FUSED_RNN_FEW_THREADS (1 << 16)
#endif
constexpr std::int64_t kFewThreads = FUSED_RNN_FEW_THREADS;

// A thread's place: blockDim.x threads along a row, blockDim.y rows; more rows than the grid has are
// taken in turns. (A loop that calls a lambda takes half as many registers again on sm_100.)
struct Place {
  std::int64_t n, step;  // the first row, and from one to the next
  std::int64_t j;        // the first hidden unit
};

__device__ __forceinline__ Place place(int count) {
  return {static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y,
          static_cast<std::int64_t>(gridDim.y) * blockDim.y,
          (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * count};
}

inline bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) {
      return false;
    }
  }
  return true;
}

inline bool aligned(const ForwardStep& a) {
  return aligned({a.prev, a.initial, a.gates, a.recurrent, a.b_ih, a.b_hh, a.c, a.a_nh, a.h,
                  a.h_again, a.h_n, a.c_n, a.c_again});
}

inline bool aligned(const BackwardStep& a) {
  return aligned({a.prev, a.initial, a.gates, a.extra, a.dh, a.dy, a.recurrent, a.dh_n, a.dc_n,
                  a.dc, a.carry, a.dgates_x, a.dgates_h, a.h});
}

inline bool aligned(const MarkedForwardStep& a) {
  return aligned(static_cast<const ForwardStep&>(a)) && aligned({a.first});
}

inline bool aligned(const MarkedBackwardStep& a) {
  return aligned(static_cast<const BackwardStep&>(a)) && aligned({a.dfirst, a.dinitial});
}

template <class Args>
void launch_over_units(void (*kernel)(Args), const char* name, const Args& a, std::int64_t N,
                       std::int64_t units, int count, Stream stream, std::int64_t layers = 1) {
  const std::int64_t vectors = units / count;  // whole: rows of other lengths are taken one by one
  unsigned x = 1;
  while (x < kBlock && x < vectors) {
    x *= 2;
  }
  const unsigned y = kBlock / x;
  constexpr std::int64_t kMost = 65535;  // a grid's limit in y and z
  const std::int64_t rows = (N + y - 1) / y;
  const dim3 grid(static_cast<unsigned>((vectors + x - 1) / x),
                  static_cast<unsigned>(rows < kMost ? rows : kMost),
                  static_cast<unsigned>(layers < kMost ? layers : kMost));
  launch(kernel, name, grid, dim3(x, y), 0, stream, a);
}

// f.template operator()<Cell, S, kCount>() for the step's cell, type and accesses.
template <class Cell, class Args, class F>
void with_type(const Args& a, F&& f) {
  switch (a.dtype) {
#define FUSED_RNN_CASE(name, stored, compute)                                                 \
  case Dtype::k##name:                                                                        \
    if (a.H % kWide<stored> == 0 && a.N * a.H / kWide<stored> >= kFewThreads && aligned(a)) { \
      f(Cell{}, stored{}, std::integral_constant<int, kWide<stored>>{});                      \
    } else {                                                                                  \
      f(Cell{}, stored{}, std::integral_constant<int, 1>{});                                  \
    }                                                                                         \
    break;
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
}

template <class Args, class F>
void with_kernel(const Args& a, F&& f) {
  if (a.N == 0) {
    return;
  }
  switch (a.cell) {
    case CellKind::kLstm:
      return with_type<Lstm>(a, f);
    case CellKind::kGru:
      return with_type<Gru>(a, f);
    case CellKind::kRnnTanh:
      return with_type<Rnn<false>>(a, f);
    case CellKind::kRnnRelu:
      return with_type<Rnn<true>>(a, f);
  }
}

}  // namespace cuda
}  // namespace fused_rnn

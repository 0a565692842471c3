// The gates of some neighbouring hidden units of one sequence in one step, forward and backward, with
// all that they read and write.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells.h"
#include "cuda/launch.cuh"
#include "steps.h"
#include "cuda/vector.cuh"

namespace fused_rnn {
namespace cuda {

// Row `n` of an array (rows, columns), at `column`.
template <class E>
__device__ __forceinline__ E* at(const void* array, std::int64_t n, std::int64_t columns,
                                 std::int64_t column) {
  return static_cast<E*>(const_cast<void*>(array)) + n * columns + column;
}

// Where a sequence's state comes from, and where it goes.
struct Row {
  Mark mark;
  bool goes_on;  // the later step takes its state from this one
  bool ends;     // there is no later step
};

template <class Args>
__device__ __forceinline__ Row row_of(const Args& a, std::int64_t n) {
  if constexpr (Args::kMarked) {
    const Mark later = a.marks.later == nullptr ? Mark::kDead : a.marks.later[n];
    return {a.marks.here[n], later == Mark::kGoesOn, later == Mark::kDead};
  } else {
    return {n < a.inner ? Mark::kGoesOn : Mark::kBegins, n < a.outer, n >= a.outer};
  }
}

// The row of the initial states, where it is one of them that a step begins with.
__device__ __forceinline__ std::int64_t initial_row(const Step& a, Mark mark, std::int64_t n) {
  return mark == Mark::kAnew ? a.N : n;
}

// The elementwise state before the step. An LSTM's c is kept in T, a GRU's is h itself.
template <class Cell, class S, int kCount, class T = typename ComputeType<S>::type>
__device__ __forceinline__ void load_prev(const Step& a, Mark mark, std::int64_t n, std::int64_t j,
                                          T (&prev)[kCount]) {
  using Prev = std::conditional_t<Cell::kHasCell, T, S>;
  if (mark == Mark::kGoesOn) {
    load<kCount>(at<const Prev>(a.prev, n, a.H, j), prev);
  } else {
    load<kCount>(at<const S>(a.initial, initial_row(a, mark, n), a.H, j), prev);
  }
}

template <class Cell, class S, int kCount>
__device__ __forceinline__ void clear_forward(const ForwardStep& a, std::int64_t n,
                                              std::int64_t j) {
  using T = typename ComputeType<S>::type;
  const T zero[kCount] = {};
  store<kCount>(at<S>(a.h, n, a.H, j), zero);
  if constexpr (Cell::kHasCell) {
    store<kCount>(at<T>(a.c, n, a.H, j), zero);
    if (a.c_again != nullptr) {
      store<kCount>(at<S>(a.c_again, n, a.H, j), zero);
    }
  }
  if (a.training) {
    if constexpr (Cell::kStateIsHidden) {
      store<kCount>(at<T>(a.a_nh, n, a.H, j), zero);
    }
#pragma unroll
    for (int g = 0; g < Cell::kGates; ++g) {
      store<kCount>(at<T>(a.gates, n, Cell::kGates * a.H, g * a.H + j), zero);
    }
  }
}

template <class Cell, class S, int kCount, class Args>
__device__ __forceinline__ void forward_units(const Args& a, std::int64_t n, std::int64_t j) {
  using T = typename ComputeType<S>::type;
  constexpr int G = Cell::kGates, kPre = Cell::kPre;
  const std::int64_t columns = G * a.H;
  const Row row = row_of(a, n);
  const T* recurrent = at<const T>(a.recurrent, n, columns, 0);
  if constexpr (Args::kMarked) {
    if (row.mark == Mark::kDead) {
      return clear_forward<Cell, S, kCount>(a, n, j);
    }
    if (row.mark != Mark::kGoesOn) {
      recurrent = at<const T>(a.first, initial_row(a, row.mark, n), columns, 0);
    }
  }
  T pre[kPre][kCount];
#pragma unroll
  for (int p = 0; p < kPre; ++p) {
    const std::int64_t column = Cell::order(p) * a.H + j;
    T part[kCount];
    if (p < G) {
      load<kCount>(at<const T>(a.gates, n, columns, column), pre[p]);
      if (a.b_ih != nullptr) {
        load<kCount>(at<const S>(a.b_ih, 0, 0, column), part);
#pragma unroll
        for (int i = 0; i < kCount; ++i) pre[p][i] += part[i];
      }
    }
    if (p >= Cell::kRecurrent) {
      load<kCount>(recurrent + column, part);
#pragma unroll
      for (int i = 0; i < kCount; ++i) pre[p][i] = p < G ? pre[p][i] + part[i] : part[i];
      if (a.b_hh != nullptr) {
        load<kCount>(at<const S>(a.b_hh, 0, 0, column), part);
#pragma unroll
        for (int i = 0; i < kCount; ++i) pre[p][i] += part[i];
      }
    }
  }
  T prev[kCount] = {};
  if constexpr (Cell::kHasCell || Cell::kStateIsHidden) {
    load_prev<Cell, S>(a, row.mark, n, j, prev);
  }
  T saved[Cell::kSaved][kCount], h[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    T unit[kPre], kept[Cell::kSaved];
#pragma unroll
    for (int p = 0; p < kPre; ++p) unit[p] = pre[p][i];
    h[i] = Cell::forward(unit, prev[i], kept);
#pragma unroll
    for (int s = 0; s < Cell::kSaved; ++s) saved[s][i] = kept[s];
  }
  store<kCount>(at<S>(a.h, n, a.H, j), h);
  if (a.h_again != nullptr) {
    store<kCount>(at<S>(a.h_again, n, a.H, j), h);
  }
  if (a.h_n != nullptr && row.ends) {
    store<kCount>(at<S>(a.h_n, n, a.H, j), h);
  }
  if constexpr (Cell::kHasCell) {
    store<kCount>(at<T>(a.c, n, a.H, j), saved[G]);
    if (row.ends) {
      store<kCount>(at<S>(a.c_n, n, a.H, j), saved[G]);
    }
    if (a.c_again != nullptr) {
      store<kCount>(at<S>(a.c_again, n, a.H, j), saved[G]);
    }
  }
  if (a.training) {
    if constexpr (Cell::kStateIsHidden) {
      store<kCount>(at<T>(a.a_nh, n, a.H, j), saved[G]);
    }
#pragma unroll
    for (int g = 0; g < G; ++g) store<kCount>(at<T>(a.gates, n, columns, g * a.H + j), saved[g]);
  }
}

// h's gradient: from y, and from the next step's gates or, where the sequence ends, from h_n.
template <class S, class Args, int kCount, class T = typename ComputeType<S>::type>
__device__ __forceinline__ void hidden_gradient(const Args& a, bool goes_on, bool ends,
                                                std::int64_t n, std::int64_t columns,
                                                std::int64_t j, T (&dh)[kCount]) {
  T part[kCount] = {};
  if (goes_on) {
    load<kCount>(at<const T>(a.recurrent, n, columns, j), dh);
  } else if (ends && a.dh_n != nullptr) {
    load<kCount>(at<const S>(a.dh_n, n, columns, j), dh);
  }
  if (a.dy != nullptr) {
    load<kCount>(at<const S>(a.dy, n, columns, j), part);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) dh[i] += part[i];
}

template <class Cell, class S, int kCount>
__device__ __forceinline__ void clear_backward(const BackwardStep& a, std::int64_t n,
                                               std::int64_t j) {
  constexpr int G = Cell::kGates;
  const typename ComputeType<S>::type zero[kCount] = {};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    store<kCount>(at<S>(a.dgates_x, n, G * a.H, g * a.H + j), zero);
    if (Cell::kPre != G) {
      store<kCount>(at<S>(a.dgates_h, n, G * a.H, g * a.H + j), zero);
    }
  }
}

template <int kCount, class T>
__device__ __forceinline__ void add(T* p, const T (&values)[kCount]) {
  T sum[kCount];
  load<kCount>(static_cast<const T*>(p), sum);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] += values[i];
  store<kCount>(p, sum);
}

// What a step passes back to the state it begins with. No other thread has this unit of this
// sequence, and steps come one after another: the sums' order is fixed.
template <class Cell, int kCount, class T>
__device__ __forceinline__ void add_initial(const MarkedBackwardStep& a, Mark mark, std::int64_t n,
                                            std::int64_t j, const T (&dpre)[Cell::kPre][kCount],
                                            const T (&carry)[kCount]) {
  const std::int64_t place = mark == Mark::kAnew ? a.N + n : n;
#pragma unroll
  for (int p = Cell::kRecurrent; p < Cell::kPre; ++p) {
    add<kCount>(at<T>(a.dfirst, place, Cell::kGates * a.H, Cell::order(p) * a.H + j), dpre[p]);
  }
  if constexpr (Cell::kHasCell || Cell::kStateIsHidden) {
    add<kCount>(at<T>(a.dinitial, place, a.H, j), carry);
  }
}

template <class Cell, class S, int kCount, class Args>
__device__ __forceinline__ void backward_units(const Args& a, std::int64_t n, std::int64_t j) {
  using T = typename ComputeType<S>::type;
  constexpr int G = Cell::kGates, kPre = Cell::kPre;
  constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  const std::int64_t columns = G * a.H;
  const Row row = row_of(a, n);
  if constexpr (Args::kMarked) {
    if (row.mark == Mark::kDead) {
      return clear_backward<Cell, S, kCount>(a, n, j);
    }
  }
  T saved[Cell::kSaved][kCount] = {}, dh[kCount] = {}, carry[kCount] = {}, prev[kCount] = {};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    load<kCount>(at<const T>(a.gates, n, columns, g * a.H + j), saved[g]);
  }
  if constexpr (kHasState) {
    load<kCount>(at<const T>(a.extra, n, a.H, j), saved[G]);
    load_prev<Cell, S>(a, row.mark, n, j, prev);
    if (row.goes_on) {
      load<kCount>(at<const T>(a.carry, n, a.H, j), carry);
    } else if (Cell::kHasCell && row.ends && a.dc_n != nullptr) {
      load<kCount>(at<const S>(a.dc_n, n, a.H, j), carry);
    }
    if (Cell::kHasCell && a.dc != nullptr) {
      T part[kCount];
      load<kCount>(at<const S>(a.dc, n, a.H, j), part);
#pragma unroll
      for (int i = 0; i < kCount; ++i) carry[i] += part[i];
    }
  }
  if (a.dh != nullptr) {
    load<kCount>(at<const T>(a.dh, n, a.H, j), dh);
  } else {
    hidden_gradient<S>(a, row.goes_on, row.ends, n, a.H, j, dh);
  }
  T dpre[kPre][kCount], h[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    T unit[Cell::kSaved], d[kPre];
#pragma unroll
    for (int s = 0; s < Cell::kSaved; ++s) unit[s] = saved[s][i];
    Cell::backward(unit, prev[i], dh[i], carry[i], d);
#pragma unroll
    for (int p = 0; p < kPre; ++p) dpre[p][i] = d[p];
    if constexpr (Cell::kHasCell) h[i] = Cell::hidden(unit);
  }
  if constexpr (kHasState) {
    store<kCount>(at<T>(a.carry, n, a.H, j), carry);
  }
  if constexpr (Cell::kHasCell) {
    if (a.h != nullptr) {
      store<kCount>(at<S>(a.h, n, a.H, j), h);
    }
  }
#pragma unroll
  for (int p = 0; p < kPre; ++p) {
    const std::int64_t column = Cell::order(p) * a.H + j;
    if (p < G) {
      store<kCount>(at<S>(a.dgates_x, n, columns, column), dpre[p]);
    }
    if (kPre != G && p >= Cell::kRecurrent) {
      store<kCount>(at<S>(a.dgates_h, n, columns, column), dpre[p]);
    }
  }
  if constexpr (Args::kMarked) {
    if (row.mark != Mark::kGoesOn) {
      add_initial<Cell>(a, row.mark, n, j, dpre, carry);
    }
  }
}

}  // namespace cuda
}  // namespace fused_rnn

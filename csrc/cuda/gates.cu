// The fused gate kernels: all gates, states and outputs of one step, or all their gradients, in one
// pass over memory. A thread has some neighbouring hidden units of one sequence, with all their
// gates, so there is nothing to share and nothing to synchronise.
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cells.h"
#include "launch.cuh"
#include "steps.h"
#include "vector.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

constexpr int kBlock = 128;
// Below this many threads a GPU is far from full, and narrow accesses spread the work further. The
// host bench has a number of its own, to see both kinds at small sizes.
#ifndef FUSED_RNN_FEW_THREADS
#define FUSED_RNN_FEW_THREADS (1 << 16)
#endif
constexpr std::int64_t kFewThreads = FUSED_RNN_FEW_THREADS;

// Row `n` of an array (rows, columns), at `column`.
template <class E>
__device__ __forceinline__ E* at(const void* array, std::int64_t n, std::int64_t columns,
                                 std::int64_t column) {
  return static_cast<E*>(const_cast<void*>(array)) + n * columns + column;
}

// The elementwise state before the step. An LSTM's c is kept in T, a GRU's is h itself.
template <class Cell, class S, int kCount, class T = typename ComputeType<S>::type>
__device__ __forceinline__ void load_prev(const Step& a, std::int64_t n, std::int64_t j,
                                          T (&prev)[kCount]) {
  using Prev = std::conditional_t<Cell::kHasCell, T, S>;
  if (n < a.inner) {
    load<kCount>(at<const Prev>(a.prev, n, a.H, j), prev);
  } else {
    load<kCount>(at<const S>(a.initial, n, a.H, j), prev);
  }
}

template <class Cell, class S, int kCount>
__device__ __forceinline__ void forward_units(const ForwardStep& a, std::int64_t n,
                                              std::int64_t j) {
  using T = typename ComputeType<S>::type;
  constexpr int G = Cell::kGates, kPre = Cell::kPre;
  const std::int64_t columns = G * a.H;
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
      load<kCount>(at<const T>(a.recurrent, n, columns, column), part);
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
    load_prev<Cell, S>(a, n, j, prev);
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
  if (a.h_n != nullptr && n >= a.outer) {
    store<kCount>(at<S>(a.h_n, n, a.H, j), h);
  }
  if constexpr (Cell::kHasCell) {
    store<kCount>(at<T>(a.c, n, a.H, j), saved[G]);
    if (n >= a.outer) {
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
__device__ __forceinline__ void hidden_gradient(const Args& a, std::int64_t n, std::int64_t columns,
                                                std::int64_t j, T (&dh)[kCount]) {
  T part[kCount] = {};
  if (n < a.outer) {
    load<kCount>(at<const T>(a.recurrent, n, columns, j), dh);
  } else if (a.dh_n != nullptr) {
    load<kCount>(at<const S>(a.dh_n, n, columns, j), dh);
  }
  if (a.dy != nullptr) {
    load<kCount>(at<const S>(a.dy, n, columns, j), part);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) dh[i] += part[i];
}

template <class Cell, class S, int kCount>
__device__ __forceinline__ void backward_units(const BackwardStep& a, std::int64_t n,
                                               std::int64_t j) {
  using T = typename ComputeType<S>::type;
  constexpr int G = Cell::kGates, kPre = Cell::kPre;
  constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  const std::int64_t columns = G * a.H;
  T saved[Cell::kSaved][kCount] = {}, dh[kCount] = {}, carry[kCount] = {}, prev[kCount] = {};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    load<kCount>(at<const T>(a.gates, n, columns, g * a.H + j), saved[g]);
  }
  if constexpr (kHasState) {
    load<kCount>(at<const T>(a.extra, n, a.H, j), saved[G]);
    load_prev<Cell, S>(a, n, j, prev);
    if (n < a.outer) {
      load<kCount>(at<const T>(a.carry, n, a.H, j), carry);
    } else if (Cell::kHasCell && a.dc_n != nullptr) {
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
    hidden_gradient<S>(a, n, a.H, j, dh);
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
}

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

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock) forward_step(ForwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      forward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock) backward_step(BackwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      backward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kBlock) hidden_step(HiddenStep a) {
  const Place from = place(1);
  if (from.j < a.P) {
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      typename ComputeType<S>::type dh[1] = {};
      hidden_gradient<S>(a, n, a.P, from.j, dh);
      store<1>(at<S>(a.dh, n, a.P, from.j), dh);
    }
  }
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) {
      return false;
    }
  }
  return true;
}

bool aligned(const ForwardStep& a) {
  return aligned({a.prev, a.initial, a.gates, a.recurrent, a.b_ih, a.b_hh, a.c, a.a_nh, a.h,
                  a.h_again, a.h_n, a.c_n, a.c_again});
}

bool aligned(const BackwardStep& a) {
  return aligned({a.prev, a.initial, a.gates, a.extra, a.dh, a.dy, a.recurrent, a.dh_n, a.dc_n,
                  a.dc, a.carry, a.dgates_x, a.dgates_h, a.h});
}

template <class Args>
void launch_over_units(void (*kernel)(Args), const char* name, const Args& a, std::int64_t units,
                       int count, Stream stream) {
  const std::int64_t vectors = units / count;  // whole: rows of other lengths are taken one by one
  unsigned x = 1;
  while (x < kBlock && x < vectors) {
    x *= 2;
  }
  const unsigned y = kBlock / x;
  constexpr std::int64_t kMostRows = 65535;  // a grid's limit in y
  const std::int64_t rows = (a.N + y - 1) / y;
  const dim3 grid(static_cast<unsigned>((vectors + x - 1) / x),
                  static_cast<unsigned>(rows < kMostRows ? rows : kMostRows));
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

}  // namespace

void launch_forward_step(const ForwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(forward_step<decltype(cell), decltype(element), decltype(count)::value>,
                      "forward_step", step, step.H, decltype(count)::value, stream);
  });
}

void launch_backward_step(const BackwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(backward_step<decltype(cell), decltype(element), decltype(count)::value>,
                      "backward_step", step, step.H, decltype(count)::value, stream);
  });
}

void launch_hidden_step(const HiddenStep& step, Stream stream) {
  if (step.N == 0) {
    return;
  }
  switch (step.dtype) {
#define FUSED_RNN_CASE(name, stored, compute) \
  case Dtype::k##name:                        \
    return launch_over_units(hidden_step<stored>, "hidden_step", step, step.P, 1, stream);
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
}

}  // namespace cuda
}  // namespace fused_rnn

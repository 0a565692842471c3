// The fused gate kernels where marks on the device tell which states a step begins with, and the
// small kernels around them.
#include "gates.cuh"
#include "marked.h"
#include "rows.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

// Of an SM. That leaves 128 registers for a thread; left alone, the compiler does with fewer, and
// spills some.
constexpr int kBlocks = 4;

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock, kBlocks) marked_forward_step(MarkedForwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      forward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock, kBlocks) marked_backward_step(MarkedBackwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      backward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

// The row of sequence n in step t; null where it is zero.
template <class S>
__device__ __forceinline__ const S* picked(const PickedRows& a, std::int64_t t, std::int64_t n) {
  const Mark mark = a.marks[t * a.N + n];
  if (mark == Mark::kDead) {
    return nullptr;
  }
  const std::int64_t from = a.initial == nullptr ? t : t + a.shift;
  if (a.initial == nullptr || (mark == Mark::kGoesOn && from >= 0 && from < a.T)) {
    return at<const S>(a.source, from * a.N + n, a.I, 0);
  }
  return at<const S>(a.initial, mark == Mark::kAnew ? a.N : n, a.I, 0);
}

template <class S, int kCount>
__global__ void __launch_bounds__(kBlock, kBlocks) picked_rows(PickedRows a) {
  const Place from = place(kCount);
  if (from.j < a.I) {
#pragma unroll 1
    for (std::int64_t t = blockIdx.z; t < a.T; t += gridDim.z) {
#pragma unroll 1
      for (std::int64_t n = from.n; n < a.N; n += from.step) {
        const S* const source = picked<S>(a, t, n);
        Vector<S, kCount> values{};
        if (source != nullptr) {
          values = *reinterpret_cast<const Vector<S, kCount>*>(source + from.j);
        }
        *reinterpret_cast<Vector<S, kCount>*>(at<S>(a.out, t * a.N + n, a.I, from.j)) = values;
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kBlock) initial_gradient(InitialGradient a) {
  using T = typename ComputeType<S>::type;
  const Place from = place(1);
  if (from.j < a.H) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      T sum[1] = {}, part[1] = {};
      if (a.marks[n] == Mark::kDead) {
        if (a.final != nullptr) {
          load<1>(at<const S>(a.final, n, a.H, from.j), sum);
        }
      } else {
        if (a.product != nullptr) {
          load<1>(at<const T>(a.product, n, a.H, from.j), sum);
        }
        if (a.carry != nullptr) {
          load<1>(at<const T>(a.carry, n, a.H, from.j), part);
        }
        sum[0] += part[0];
      }
      store<1>(at<S>(a.out, n, a.H, from.j), sum);
    }
  }
}

template <class S>
void launch_picked(const PickedRows& a, Stream stream) {
  if (a.I % kWide<S> == 0 && aligned({a.source, a.initial, a.out})) {
    launch_over_units(picked_rows<S, kWide<S>>, "picked_rows", a, a.N, a.I, kWide<S>, stream, a.T);
  } else {
    launch_over_units(picked_rows<S, 1>, "picked_rows", a, a.N, a.I, 1, stream, a.T);
  }
}

}  // namespace

void launch_marked_forward_step(const MarkedForwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(
        marked_forward_step<decltype(cell), decltype(element), decltype(count)::value>,
        "marked_forward_step", step, step.N, step.H, decltype(count)::value, stream);
  });
}

void launch_marked_backward_step(const MarkedBackwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(
        marked_backward_step<decltype(cell), decltype(element), decltype(count)::value>,
        "marked_backward_step", step, step.N, step.H, decltype(count)::value, stream);
  });
}

void launch_picked_rows(const PickedRows& rows, Stream stream) {
  if (rows.T * rows.N == 0) {
    return;
  }
  switch (rows.dtype) {
#define FUSED_RNN_CASE(name, stored, compute) \
  case Dtype::k##name:                        \
    return launch_picked<stored>(rows, stream);
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
}

void launch_initial_gradient(const InitialGradient& g, Stream stream) {
  if (g.N == 0) {
    return;
  }
  switch (g.dtype) {
#define FUSED_RNN_CASE(name, stored, compute) \
  case Dtype::k##name:                        \
    return launch_over_units(initial_gradient<stored>, "initial_gradient", g, g.N, g.H, 1, stream);
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
}

}  // namespace cuda
}  // namespace fused_rnn

// The fused gate kernels: all gates, states and outputs of one step, or all their gradients, in one
// pass over memory. A thread has some neighbouring hidden units of one sequence, with all their
// gates, so there is nothing to share and nothing to synchronise.
#include "gates.cuh"
#include "rows.cuh"

namespace fused_rnn {
namespace cuda {
// No loop over rows is unrolled: few threads have more than one, and to count them takes a 64-bit
// division, which is a call.
namespace {

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock) forward_step(ForwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      forward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

template <class Cell, class S, int kCount>
__global__ void __launch_bounds__(kBlock) backward_step(BackwardStep a) {
  const Place from = place(kCount);
  if (from.j < a.H) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      backward_units<Cell, S, kCount>(a, n, from.j);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kBlock) hidden_step(HiddenStep a) {
  const Place from = place(1);
  if (from.j < a.P) {
#pragma unroll 1
    for (std::int64_t n = from.n; n < a.N; n += from.step) {
      typename ComputeType<S>::type dh[1] = {};
      hidden_gradient<S>(a, n < a.outer, n >= a.outer, n, a.P, from.j, dh);
      store<1>(at<S>(a.dh, n, a.P, from.j), dh);
    }
  }
}

}  // namespace

void launch_forward_step(const ForwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(forward_step<decltype(cell), decltype(element), decltype(count)::value>,
                      "forward_step", step, step.N, step.H, decltype(count)::value, stream);
  });
}

void launch_backward_step(const BackwardStep& step, Stream stream) {
  with_kernel(step, [&](auto cell, auto element, auto count) {
    launch_over_units(backward_step<decltype(cell), decltype(element), decltype(count)::value>,
                      "backward_step", step, step.N, step.H, decltype(count)::value, stream);
  });
}

void launch_hidden_step(const HiddenStep& step, Stream stream) {
  if (step.N == 0) {
    return;
  }
  switch (step.dtype) {
#define FUSED_RNN_CASE(name, stored, compute) \
  case Dtype::k##name:                        \
    return launch_over_units(hidden_step<stored>, "hidden_step", step, step.N, step.P, 1, stream);
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
}

}  // namespace cuda
}  // namespace fused_rnn

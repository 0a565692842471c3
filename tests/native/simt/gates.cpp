// The fused gate kernels' C interface: a step is numbers, and arrays in the order that *_arrays()
// give, null where there is none.
#include <exception>
#include <string>

#include "cuda/stepwise/steps.h"

namespace {

using fused_rnn::CellKind;
using fused_rnn::Dtype;
using fused_rnn::cuda::BackwardStep;
using fused_rnn::cuda::ForwardStep;
using fused_rnn::cuda::HiddenStep;
using fused_rnn::cuda::Step;

struct Numbers {
  std::int64_t cell, dtype, N, H, inner, outer, training;
};

void fill(Step& step, const Numbers& n) {
  step.cell = static_cast<CellKind>(n.cell);
  step.dtype = static_cast<Dtype>(n.dtype);
  step.N = n.N, step.H = n.H, step.inner = n.inner, step.outer = n.outer;
}

template <class F>
const char* failure_of(F&& f) {
  static std::string failure;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

}  // namespace

#define FORWARD_ARRAYS(X) \
  X(prev)                 \
  X(initial)              \
  X(gates) X(recurrent) X(b_ih) X(b_hh) X(c) X(a_nh) X(h) X(h_again) X(h_n) X(c_n) X(c_again)
#define BACKWARD_ARRAYS(X) \
  X(prev)                  \
  X(initial)               \
  X(gates)                 \
  X(extra) X(dh) X(dy) X(recurrent) X(dh_n) X(dc_n) X(dc) X(carry) X(dgates_x) X(dgates_h) X(h)
#define HIDDEN_ARRAYS(X) X(dy) X(recurrent) X(dh_n) X(dh)
#define NAME(field) #field " "
#define TAKE(field) step.field = *arrays++;
#define EXPORTED extern "C" __attribute__((visibility("default"))) const char*

EXPORTED simt_forward_arrays() { return FORWARD_ARRAYS(NAME); }
EXPORTED simt_backward_arrays() { return BACKWARD_ARRAYS(NAME); }
EXPORTED simt_hidden_arrays() { return HIDDEN_ARRAYS(NAME); }

// Return null or what went wrong.
EXPORTED simt_forward_step(const Numbers* numbers, void* const* arrays) {
  ForwardStep step{};
  fill(step, *numbers);
  step.training = numbers->training != 0;
  FORWARD_ARRAYS(TAKE)
  return failure_of([&] { launch_forward_step(step, nullptr); });
}

EXPORTED simt_backward_step(const Numbers* numbers, void* const* arrays) {
  BackwardStep step{};
  fill(step, *numbers);
  BACKWARD_ARRAYS(TAKE)
  return failure_of([&] { launch_backward_step(step, nullptr); });
}

EXPORTED simt_hidden_step(const Numbers* numbers, void* const* arrays) {
  HiddenStep step{};
  step.dtype = static_cast<Dtype>(numbers->dtype);
  step.N = numbers->N, step.P = numbers->H, step.outer = numbers->outer;
  HIDDEN_ARRAYS(TAKE)
  return failure_of([&] { launch_hidden_step(step, nullptr); });
}

// The CUDA stepwise path on the host bench: the ops of csrc/ops.h under a name of their own, for CPU
// tensors, their kernels run by tests/native/simt.
#define FUSED_RNN_HOST_BENCH
#include "cuda/stepwise.h"

#include "ops.h"

namespace fused_rnn {
namespace {

STABLE_TORCH_LIBRARY(fused_rnn_bench, m) { define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_bench, CPU, m) { implement_ops<cuda::Cuda>(m); }

}  // namespace
}  // namespace fused_rnn

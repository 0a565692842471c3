// The CUDA paths on the host bench: the ops of csrc/ops.h under a name of their own, for CPU tensors,
// their kernels run by tests/native/simt on a device made up by a test.
#define FUSED_RNN_HOST_BENCH
#include "cuda/persistent/both_directions.h"
#include "cuda/stepwise/marked_path.h"

#include "ops.h"

namespace fused_rnn {
namespace cuda {
namespace {

DeviceFacts made_up;

}  // namespace

DeviceFacts device_facts() { return made_up; }

}  // namespace cuda

namespace {

// Clusters of 1, 2, 4 and 8 blocks at once.
bool make_device(std::int64_t capability, std::int64_t sms, std::int64_t shared_bytes,
                 std::vector<std::int64_t> clusters) {
  STD_TORCH_CHECK(clusters.size() == 4, "clusters should have 4 numbers");
  cuda::made_up = {static_cast<int>(capability), static_cast<int>(sms), shared_bytes, true, {}};
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    cuda::made_up.clusters[i] = static_cast<int>(clusters[i]);
  }
  return true;
}

STABLE_TORCH_LIBRARY(fused_rnn_bench, m) {
  define_ops(m);
  define_marked_ops(m);
  cuda::define_persistent_ops(m);
  cuda::define_bidirectional_ops(m);
  m.def("make_device(int capability, int sms, int shared_bytes, int[] clusters) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_bench, CPU, m) {
  implement_ops<cuda::Cuda>(m);
  implement_marked_ops<cuda::MarkedCuda>(m);
  cuda::implement_bidirectional_ops(m);
  m.impl("persistent_plan", TORCH_BOX(&cuda::persistent_plan));
  m.impl("persistent_kernel", TORCH_BOX(&cuda::persistent_kernel));
  m.impl("persistent_floor", TORCH_BOX(&cuda::persistent_floor));
  m.impl("persistent_ways", TORCH_BOX(&cuda::persistent_ways));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_bench, CompositeExplicitAutograd, m) {
  m.impl("persistent_tf32", TORCH_BOX(&cuda::persistent_tf32));
  m.impl("persistent_way", TORCH_BOX(&cuda::persistent_way));
  m.impl("device_facts", TORCH_BOX(&cuda::facts_of_device));
  m.impl("make_device", TORCH_BOX(&make_device));
}

}  // namespace
}  // namespace fused_rnn

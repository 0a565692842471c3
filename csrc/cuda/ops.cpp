// The CUDA registration of the ops that csrc/ops.cpp defines: a module of its own, loaded only under
// a PyTorch that has CUDA.
#define Py_LIMITED_API 0x030A0000
#define USE_CUDA
#include "ops.h"

#include <Python.h>

#include "cuda/persistent/both_directions.h"
#include "cuda/stepwise/marked_path.h"

namespace fused_rnn {
namespace {

STABLE_TORCH_LIBRARY_FRAGMENT(fused_rnn, m) {
  cuda::define_persistent_ops(m);
  cuda::define_bidirectional_ops(m);
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) {
  implement_ops<cuda::Cuda>(m);
  implement_marked_ops<cuda::MarkedCuda>(m);
  cuda::implement_bidirectional_ops(m);
  m.impl("persistent_plan", TORCH_BOX(&cuda::persistent_plan));
  m.impl("persistent_kernel", TORCH_BOX(&cuda::persistent_kernel));
  m.impl("persistent_floor", TORCH_BOX(&cuda::persistent_floor));
  m.impl("persistent_ways", TORCH_BOX(&cuda::persistent_ways));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("persistent_tf32", TORCH_BOX(&cuda::persistent_tf32));
  m.impl("persistent_way", TORCH_BOX(&cuda::persistent_way));
  m.impl("device_facts", TORCH_BOX(&cuda::facts_of_device));
}

}  // namespace
}  // namespace fused_rnn

// Importing fused_rnn._C_cuda, after fused_rnn._C, loads this library.
PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

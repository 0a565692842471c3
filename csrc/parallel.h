// PyTorch's threads, as kernels that do not know torch ask for them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace fused_rnn {

inline void parallel(int n, void (*body)(int, void*), void* context) {
  torch::stable::parallel_for(
      0, n, 1, [&](std::int64_t begin, std::int64_t) { body(static_cast<int>(begin), context); });
}

}  // namespace fused_rnn

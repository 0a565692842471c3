// What a persistent forward cannot be quicker than: its grid and its exchange of h without
// arithmetic, its products without the exchange, or both without gates.
#pragma once

#include "params.h"

namespace fused_rnn {
namespace cuda {

struct Floor {
  std::int64_t T, H;
  bool exchange, products;
  void* scratch;        // as Persistent::scratch, of float16 and one direction
  const void* weights;  // (plan.blocks * the shape's rows, H)  float16
  Plan plan;
};

// Throws std::runtime_error where the launch fails.
void launch_floor(const Floor& floor, Stream stream);

}  // namespace cuda
}  // namespace fused_rnn

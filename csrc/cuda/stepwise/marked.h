// What a scan with marks needs beside its steps: rows of whole sequences that hang on the marks, and
// the gradients of the states that sequences begin with. Plain structs, no torch, no CUDA.
//
// As in steps.h; I: a row's columns.
#pragma once

#include "steps.h"

namespace fused_rnn {
namespace cuda {

// Rows picked by their marks: of a step that goes on, the row in `source` of the step that is `shift`
// later in time; of one that begins, its row in `initial`. Where there is no step, zero.
struct PickedRows {
  Dtype dtype;
  std::int64_t T, N, I;
  const Mark* marks;    // (T, N)
  const void* source;   // (T, N, I)  S
  std::int64_t shift;   // -1 or 1
  const void* initial;  // (N + 1, I) S  null: every step has its own row in `source`
  void* out;            // (T, N, I)  S
};

// The gradient of what the sequences begin with: a sequence without any step ends with that too.
struct InitialGradient {
  Dtype dtype;
  std::int64_t N, H;
  const Mark* marks;    // (N,)    of the first step in time
  const void* product;  // (N, H)  T  null: zero
  const void* carry;    // (N, H)  T  null: zero
  const void* final;    // (N, H)  S  of the state after the last step; null: zero
  void* out;            // (N, H)  S
};

// As in steps.h.
void launch_picked_rows(const PickedRows& rows, Stream stream);
void launch_initial_gradient(const InitialGradient& gradient, Stream stream);

}  // namespace cuda
}  // namespace fused_rnn

// What one fused gate kernel gets: one time step of one layer and direction, after its matrix
// products. Plain structs, no torch, no CUDA.
//
// N, H, G, S (the tensors' type) and T (the arithmetic's) as in scan.h. N counts the sequences of
// this step; they stand first in every array. All arrays are row-major and contiguous. None may
// alias another, except where it says so.
#pragma once

#include "cuda/device.h"
#include "scan.h"

namespace fused_rnn {
namespace cuda {

// Where a step of one sequence takes its state from, where only the device knows: `inner` and `outer`
// then say nothing. A sequence's steps are the first ones in time; whatever number stands for a mark,
// nothing outside the arrays is read or written.
enum class Mark : std::uint8_t {
  kDead,    // there is no such step: past the sequence's end
  kGoesOn,  // from the step before it in scan order
  kBegins,  // from the sequence's initial state
  kAnew,    // from the state after a reset, which is the same for all sequences
};

struct Marks {
  const Mark* here;   // (N,)
  const Mark* later;  // (N,)  of the later step in scan order; null: there is none
};

struct Step {
  static constexpr bool kMarked = false;
  CellKind cell;
  Dtype dtype;
  std::int64_t N, H;
  std::int64_t inner;   // sequences [inner, N) begin with this step, from their initial state
  std::int64_t outer;   // sequences [outer, N) end with this step
  const void* prev;     // (inner, H)  elementwise state before: LSTM c, of T; GRU h, of S; RNN null
  const void* initial;  // (N, H)      c0 or h0, of S; RNN null
};

struct ForwardStep : Step {
  void* gates;            // (N, G*H)  T  x W_ih^T; with `training` becomes the activated gates
  const void* recurrent;  // (N, G*H)  T  h W_hh^T
  const void* b_ih;       // (G*H,)    S  null: zero
  const void* b_hh;       // (G*H,)    S  null: zero
  void* c;                // (N, H)    T  LSTM: c', may be `prev`; null otherwise
  void* a_nh;             // (N, H)    T  GRU in training: W_hn h + b_hn; null otherwise
  void* h;                // (N, H)    S  h', before a projection
  void* h_again;          // (N, H)    S  null, or h' once more; may be `prev`
  void* h_n;              // (N, H)    S  null, or h' of the sequences that end
  void* c_n;              // (N, H)    S  LSTM: c' of the sequences that end; null otherwise
  void* c_again;          // (N, H)    S  LSTM: null, or c' once more
  bool training;
};

struct BackwardStep : Step {
  const void* gates;      // (N, G*H)    T  activated, as forward left them
  const void* extra;      // (N, H)      T  LSTM c', GRU a_nh, RNN null
  const void* dh;         // (N, H)      T  h's whole gradient; null: the sum of the next three
  const void* dy;         // (N, H)      S  null: zero
  const void* recurrent;  // (outer, H)  T  what the later step's gates pass back
  const void* dh_n;       // (N, H)      S  of the sequences that end; null: zero
  const void* dc_n;       // (N, H)      S  likewise; null: zero
  const void* dc;         // (N, H)      S  LSTM: of this step's c'; null: zero
  void* carry;            // (N, H)      T  gradient of the elementwise state: in of those that go
                          //                on, out of all; RNN null
  void* dgates_x;         // (N, G*H)    S  gradients of x W_ih^T
  void* dgates_h;         // (N, G*H)    S  GRU: gradients of h W_hh^T; null where they are the same
  void* h;                // (N, H)      S  null, or LSTM's h' before a projection, made again
};

// A step with marks. `initial` has N + 1 rows here, the last of them the state after a reset. Where
// there is no step, all outputs are zero, but h_n, c_n and carry stay as they are.
struct MarkedForwardStep : ForwardStep {
  static constexpr bool kMarked = true;
  Marks marks;
  const void* first;  // (N + 1, G*H)  T  initial h W_hh^T
};

// What steps pass back to initial states is added up: first each sequence's own to its given state,
// then each sequence's to the state after a reset.
struct MarkedBackwardStep : BackwardStep {
  static constexpr bool kMarked = true;
  Marks marks;
  void* dfirst;    // (2 N, G*H)  T  gradients of initial h W_hh^T
  void* dinitial;  // (2 N, H)    T  of the elementwise state; RNN null
};

// The whole gradient of h of one step, where a projection stands between it and the gates.
struct HiddenStep {
  Dtype dtype;
  std::int64_t N, P;
  std::int64_t outer;     // as in Step
  const void* dy;         // (N, P)      S  null: zero
  const void* recurrent;  // (outer, P)  T
  const void* dh_n;       // (N, P)      S  of the sequences that end; null: zero
  void* dh;               // (N, P)      S
};

// Throw std::runtime_error where the launch fails. No work where N == 0.
void launch_forward_step(const ForwardStep& step, Stream stream);
void launch_backward_step(const BackwardStep& step, Stream stream);
void launch_hidden_step(const HiddenStep& step, Stream stream);
void launch_marked_forward_step(const MarkedForwardStep& step, Stream stream);
void launch_marked_backward_step(const MarkedBackwardStep& step, Stream stream);

}  // namespace cuda
}  // namespace fused_rnn

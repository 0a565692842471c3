// Both directions of a bidirectional layer in one launch, side by side on disjoint blocks, where
// there is a plan for two and the device has room for it; or else one after the other, as the ops of
// a single direction run. No projections: no persistent kernel has them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "path.h"

namespace fused_rnn {
namespace cuda {

inline std::array<Results, 2> forward_both(CellKind cell, const Operands& in,
                                           const Operands& in_reverse, bool training) {
  const DeviceGuard guard(in.x);
  const PersistentPath forward(cell, in, false), reverse(cell, in_reverse, true);
  const std::optional<Plan> plan = forward.plan(false, training, 2);
  if (plan.has_value()) {
    try {
      std::array<Results, 2> out{forward.room_for_results(training, false),
                                 reverse.room_for_results(training, false)};
      PersistentForward scan{};
      const Tensor gates = forward.prepare(scan.direction[0], out[0], training);
      const Tensor gates_reverse = reverse.prepare(scan.direction[1], out[1], training);
      scan.training = training;
      forward.launch(scan, *plan, 2);
      return out;
    } catch (const LaunchRefused&) {  // one direction alone may find room
    }
  }
  return {Cuda::forward(cell, in, false, training, false),
          Cuda::forward(cell, in_reverse, true, training, false)};
}

// Each direction's gradients, a dx of its own among them.
inline std::array<Gradients, 2> backward_both(CellKind cell, const Operands& in,
                                              const Incoming& given, const Operands& in_reverse,
                                              const Incoming& given_reverse) {
  const DeviceGuard guard(in.x);
  const PersistentPath forward(cell, in, false), reverse(cell, in_reverse, true);
  in.check_saved(given.saved, forward.saved_elements());
  in.check_saved(given_reverse.saved, reverse.saved_elements());
  const std::optional<Plan> plan = forward.plan(true, true, 2);
  if (plan.has_value()) {
    try {
      std::array<Gradients, 2> out{given.room(in), given_reverse.room(in_reverse)};
      PersistentBackward scan{};
      const auto dgates = forward.prepare(scan.direction[0], given, out[0]);
      const auto dgates_reverse = reverse.prepare(scan.direction[1], given_reverse, out[1]);
      forward.launch(scan, *plan, 2);
      forward.finish(given, dgates, out[0]);
      reverse.finish(given_reverse, dgates_reverse, out[1]);
      return out;
    } catch (const LaunchRefused&) {  // nothing has run
    }
  }
  return {Cuda::backward(cell, in, false, given),
          Cuda::backward(cell, in_reverse, true, given_reverse)};
}

// An operand of the reverse direction, which goes with its like in the forward direction.
inline Maybe checked_like(const Maybe& t, const char* name, const Maybe& forward, const Tensor& x) {
  const auto kind = [](const Maybe& m) { return m.has_value() ? "a tensor" : "None"; };
  STD_TORCH_CHECK(t.has_value() == forward.has_value(), "fused_rnn: ", name, " should be ",
                  kind(forward), " as in the forward direction, got ", kind(t));
  return t.has_value() ? Maybe(checked(*t, name, sizes_of(*forward), x)) : t;
}

// The operands of both directions, in the order of the ops' arguments.
struct BothOperands {
  CellKind cell;
  Operands in, in_reverse;

  BothOperands(const std::string& name, const Tensor& x, const Tensor& h0, const Maybe& c0,
               const Tensor& w_ih, const Tensor& w_hh, const Maybe& b_ih, const Maybe& b_hh,
               const Tensor& h0_reverse, const Maybe& c0_reverse, const Tensor& w_ih_reverse,
               const Tensor& w_hh_reverse, const Maybe& b_ih_reverse, const Maybe& b_hh_reverse,
               const Maybe& batch_sizes)
      : cell(checked_cell(name)),
        in(cell, x, h0, checked_c0(cell, c0), w_ih, w_hh, b_ih, b_hh, std::nullopt, batch_sizes),
        in_reverse(cell, in.x, *checked_like(h0_reverse, "h0_reverse", in.h0, in.x),
                   checked_like(c0_reverse, "c0_reverse", in.c0, in.x),
                   *checked_like(w_ih_reverse, "w_ih_reverse", in.w_ih, in.x),
                   *checked_like(w_hh_reverse, "w_hh_reverse", in.w_hh, in.x),
                   checked_like(b_ih_reverse, "b_ih_reverse", in.b_ih, in.x),
                   checked_like(b_hh_reverse, "b_hh_reverse", in.b_hh, in.x), std::nullopt,
                   in.batch_sizes) {}

  static const Maybe& checked_c0(CellKind cell, const Maybe& c0) {
    const bool lstm = cell == CellKind::kLstm;
    STD_TORCH_CHECK(c0.has_value() == lstm, "fused_rnn: c0 should be ",
                    lstm ? "a tensor (N, H) for an LSTM, got None"
                         : "None for a cell without cell state, got a tensor");
    return c0;
  }
};

// y, h_n, c_n (LSTM; else empty) and saved: of the forward direction, then of the reverse one.
using BothForward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline BothForward bidirectional_forward(std::string cell, Tensor x, Tensor h0, Maybe c0,
                                         Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh,
                                         Tensor h0_reverse, Maybe c0_reverse, Tensor w_ih_reverse,
                                         Tensor w_hh_reverse, Maybe b_ih_reverse,
                                         Maybe b_hh_reverse, Maybe batch_sizes, bool training) {
  const BothOperands both(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, h0_reverse, c0_reverse,
                          w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, batch_sizes);
  std::array<Results, 2> out = forward_both(both.cell, both.in, both.in_reverse, training);
  for (Results& of : out) {
    of[2] = both.cell == CellKind::kLstm ? of[2] : both.in.empty({0});  // no result is an operand
  }
  const auto& [a, b] = out;
  return {a[0], a[1], a[2], a[4], b[0], b[1], b[2], b[4]};
}

// The gradients of x, and of h0, c0, w_ih, w_hh, b_ih, b_hh of the forward direction, then of the
// reverse one; empty where bit i of `needs` is not set.
using BothBackward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                Tensor, Tensor, Tensor, Tensor, Tensor>;

inline BothBackward bidirectional_backward(
    std::string cell, Tensor x, Tensor h0, Maybe c0, Tensor w_ih, Tensor w_hh, Maybe b_ih,
    Maybe b_hh, Tensor h0_reverse, Maybe c0_reverse, Tensor w_ih_reverse, Tensor w_hh_reverse,
    Maybe b_ih_reverse, Maybe b_hh_reverse, Maybe batch_sizes, Tensor y, Tensor saved, Maybe dy,
    Maybe dh_n, Maybe dc_n, Tensor y_reverse, Tensor saved_reverse, Maybe dy_reverse,
    Maybe dh_n_reverse, Maybe dc_n_reverse, std::int64_t needs) {
  const BothOperands both(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, h0_reverse, c0_reverse,
                          w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, batch_sizes);
  const Operands &in = both.in, &in_reverse = both.in_reverse;
  // Incoming counts x for either direction.
  const std::int64_t of_x = needs & 1, of_forward = needs & 0x7e, of_reverse = needs >> 6 & 0x7e;
  const Incoming given(in, y, saved, dy, dh_n, dc_n, std::nullopt, of_x | of_forward);
  const Incoming given_reverse(in_reverse, checked(y_reverse, "y_reverse", in.y_shape(), in.x),
                               saved_reverse, checked(dy_reverse, "dy_reverse", in.y_shape(), in.x),
                               checked(dh_n_reverse, "dh_n_reverse", {in.N, in.H}, in.x),
                               checked(dc_n_reverse, "dc_n_reverse", {in.N, in.H}, in.x),
                               std::nullopt, of_x | of_reverse);
  const auto [a, b] = backward_both(both.cell, in, given, in_reverse, given_reverse);
  const Tensor dx = of_x != 0 ? added(a[0], b[0]) : a[0];
  return {dx, a[1], a[2], a[3], a[4], a[5], a[6], b[1], b[2], b[3], b[4], b[5], b[6]};
}

template <class Library>
void define_bidirectional_ops(Library& m) {
#define FUSED_RNN_BOTH_OPERANDS                                                          \
  "(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, " \
  "Tensor? b_hh, Tensor h0_reverse, Tensor? c0_reverse, Tensor w_ih_reverse, Tensor "    \
  "w_hh_reverse, Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? batch_sizes, "
  m.def("bidirectional_forward" FUSED_RNN_BOTH_OPERANDS
        "bool training) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("bidirectional_backward" FUSED_RNN_BOTH_OPERANDS
        "Tensor y, Tensor saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y_reverse, Tensor "
        "saved_reverse, Tensor? dy_reverse, Tensor? dh_n_reverse, Tensor? dc_n_reverse, int needs) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor, Tensor)");
#undef FUSED_RNN_BOTH_OPERANDS
}

template <class Library>
void implement_bidirectional_ops(Library& m) {
  m.impl("bidirectional_forward", TORCH_BOX(&bidirectional_forward));
  m.impl("bidirectional_backward", TORCH_BOX(&bidirectional_backward));
}

}  // namespace cuda
}  // namespace fused_rnn

// The ops of scans whose sequences differ in length or begin anew on the way, as marks on their device
// tell (Mark in cuda/stepwise/steps.h), so that the host need not know. K is a device, as in ops.h:
//
//   y, h_n, c_n (LSTM), c, saved:
//     static std::array<Tensor, 5> forward(CellKind, const Operands&, const Marked&, bool reverse,
//                                          bool training, bool every_c)
//   gradients of x, h0, c0, w_ih, w_hh, b_ih, b_hh, anew_h, anew_c; empty where bit i of `needs` is
//   not set:
//     static std::array<Tensor, 9> backward(CellKind, const Operands&, const Marked&, bool reverse,
//                                           const Incoming&, std::int64_t needs)
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "operands.h"

namespace fused_rnn {

// What tells the sequences' steps apart, checked and contiguous. No mark is read.
struct Marked {
  Tensor marks;  // (T, N) uint8
  Maybe h;       // (R,)  the state after a reset; null: zeros
  Maybe c;       // (H,)  likewise

  Marked(CellKind cell, const Operands& in, Tensor marks_, const Maybe& anew_h, const Maybe& anew_c)
      : marks(std::move(marks_)),
        h(checked(anew_h, "anew_h", {in.R}, in.x)),
        c(checked(anew_c, "anew_c", {in.H}, in.x)) {
    using torch::headeronly::ScalarType;
    const bool lstm = cell == CellKind::kLstm;
    STD_TORCH_CHECK(in.x.dim() == 3,
                    "fused_rnn: x should have 3 dimensions (T, N, I) with marks, got ", in.x.dim());
    STD_TORCH_CHECK(in.c0.has_value() == lstm, "fused_rnn: c0 should be ",
                    lstm ? "a tensor for an LSTM, got None" : "None for this cell, got a tensor");
    STD_TORCH_CHECK(lstm || !c.has_value(),
                    "fused_rnn: anew_c should be None for this cell, got a tensor");
    STD_TORCH_CHECK(sizes_of(marks) == in.lead, "fused_rnn: marks should have shape ",
                    to_string(in.lead), ", got ", to_string(sizes_of(marks)));
    STD_TORCH_CHECK(marks.scalar_type() == ScalarType::Byte,
                    "fused_rnn: marks should be of dtype Byte, got ",
                    torch::headeronly::toString(marks.scalar_type()));
    STD_TORCH_CHECK(same_device(marks, in.x), "fused_rnn: marks should be on the device of x");
    marks = marks.is_contiguous() ? marks : torch::stable::contiguous(marks);
  }
};

template <class K>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> marked_forward(
    std::string cell, Tensor x, Tensor h0, Maybe c0, Tensor w_ih, Tensor w_hh, Maybe b_ih,
    Maybe b_hh, Tensor marks, Maybe anew_h, Maybe anew_c, bool reverse, bool training,
    bool every_c) {
  const CellKind kind = checked_cell(cell);
  const Operands in(kind, x, h0, c0, w_ih, w_hh, b_ih, b_hh, std::nullopt, std::nullopt);
  const Marked marked(kind, in, marks, anew_h, anew_c);
  const bool lstm = kind == CellKind::kLstm;
  STD_TORCH_CHECK(lstm || !every_c, "fused_rnn: every_c should be False for ", cell,
                  ", which has no c, got True");
  auto out = K::forward(kind, in, marked, reverse, training, every_c);
  return {out[0], out[1], lstm ? out[2] : in.empty({0}), out[3], out[4]};
}

template <class K>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> marked_backward(
    std::string cell, Tensor x, Tensor h0, Maybe c0, Tensor w_ih, Tensor w_hh, Maybe b_ih,
    Maybe b_hh, Tensor marks, Maybe anew_h, Maybe anew_c, bool reverse, Tensor y, Tensor saved,
    Maybe dy, Maybe dh_n, Maybe dc_n, Maybe dc, std::int64_t needs) {
  const CellKind kind = checked_cell(cell);
  const Operands in(kind, x, h0, c0, w_ih, w_hh, b_ih, b_hh, std::nullopt, std::nullopt);
  const Marked marked(kind, in, marks, anew_h, anew_c);
  // Bit 7 there is w_hr's, which is not among the operands here.
  const Incoming given(in, y, saved, dy, dh_n, dc_n, dc, needs & 0x7f);
  auto g = K::backward(kind, in, marked, reverse, given, needs);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]};
}

template <class Library>
void define_marked_ops(Library& m) {
  m.def(
      "marked_forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
      "Tensor? b_ih, Tensor? b_hh, Tensor marks, Tensor? anew_h, Tensor? anew_c, bool reverse, "
      "bool training, bool every_c) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "marked_backward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
      "Tensor? b_ih, Tensor? b_hh, Tensor marks, Tensor? anew_h, Tensor? anew_c, bool reverse, "
      "Tensor y, Tensor saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, int needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

template <class K, class Library>
void implement_marked_ops(Library& m) {
  m.impl("marked_forward", TORCH_BOX(&marked_forward<K>));
  m.impl("marked_backward", TORCH_BOX(&marked_backward<K>));
}

}  // namespace fused_rnn

// The ops, whichever device runs them: their schemas, and functions that hand checked operands to a
// device's kernels. K is that device:
//
//   y, h_n, c_n (LSTM; else h0), c (every step's; empty where not wanted), saved:
//     static std::array<Tensor, 5> forward(CellKind, const Operands&, bool reverse, bool training,
//                                          bool every_c)
//   h and c (LSTM) after a single step that keeps nothing for backward; on a CPU only:
//     static std::array<Tensor, 2> step(CellKind, const Operands&)
//   gradients of x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr; empty where bit i of `needs` is not set:
//     static std::array<Tensor, 8> backward(CellKind, const Operands&, bool reverse,
//                                           const Incoming&)
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "operands.h"

namespace fused_rnn {

template <class K>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, Tensor h0, Tensor c0,
                                                                Tensor w_ih, Tensor w_hh,
                                                                Maybe b_ih, Maybe b_hh, Maybe w_hr,
                                                                Maybe batch_sizes, bool reverse,
                                                                bool training, bool every_c) {
  const Operands in(CellKind::kLstm, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes);
  auto out = K::forward(CellKind::kLstm, in, reverse, training, every_c);
  return {out[0], out[1], out[2], out[3], out[4]};
}

template <class K>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
    Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh, Maybe w_hr,
    Maybe batch_sizes, bool reverse, Tensor y, Tensor saved, Maybe dy, Maybe dh_n, Maybe dc_n,
    std::int64_t needs, Maybe dc) {
  const Operands in(CellKind::kLstm, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes);
  auto g = K::backward(CellKind::kLstm, in, reverse, {in, y, saved, dy, dh_n, dc_n, dc, needs});
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
}

// Fewer arguments and results than a scan of one step has: on a CPU the call of an op costs as much as
// a small step.
template <class K>
std::tuple<Tensor, Tensor> lstm_step(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh,
                                     Maybe b_ih, Maybe b_hh) {
  const Operands in(CellKind::kLstm, x, h0, c0, w_ih, w_hh, b_ih, b_hh, std::nullopt, std::nullopt);
  auto out = K::step(CellKind::kLstm, in);
  return {out[0], out[1]};
}

template <class K, CellKind kCell>
Tensor simple_step(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh) {
  const Operands in(kCell, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt, std::nullopt);
  return K::step(kCell, in)[0];
}

using Forward = std::tuple<Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class K, CellKind kCell>
Forward simple_forward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh,
                       Maybe batch_sizes, bool reverse, bool training) {
  const Operands in(kCell, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt, batch_sizes);
  auto out = K::forward(kCell, in, reverse, training, false);
  return {out[0], out[1], out[4]};
}

template <class K, CellKind kCell>
Backward simple_backward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh,
                         Maybe batch_sizes, bool reverse, Tensor y, Tensor saved, Maybe dy,
                         Maybe dh_n, std::int64_t needs) {
  const Operands in(kCell, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt, batch_sizes);
  // Bit positions are those of K::backward, which counts c0 and w_hr too.
  const std::int64_t wide = (needs & 3) | (needs & 60) << 1;
  auto g =
      K::backward(kCell, in, reverse, {in, y, saved, dy, dh_n, std::nullopt, std::nullopt, wide});
  return {g[0], g[1], g[3], g[4], g[5], g[6]};
}

// The schema is the contract: every op is functional, of fixed arity, and returns no view.
#define FUSED_RNN_SIMPLE_OPS(cell)                                                                \
  cell "_forward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "     \
       "Tensor? batch_sizes, bool reverse, bool training) -> (Tensor, Tensor, Tensor)",           \
      cell                                                                                        \
      "_backward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "     \
      "Tensor? batch_sizes, bool reverse, Tensor y, Tensor saved, Tensor? dy, Tensor? dh_n, int " \
      "needs) "                                                                                   \
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",                                      \
      cell                                                                                        \
      "_step(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> Tensor"

template <class Library>
void define_ops(Library& m) {
  m.def(
      "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, "
      "Tensor? w_hr, Tensor? batch_sizes, bool reverse, bool training, bool every_c=False) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, "
      "Tensor? w_hr, Tensor? batch_sizes, bool reverse, Tensor y, Tensor saved, Tensor? dy, "
      "Tensor? dh_n, "
      "Tensor? dc_n, int needs, Tensor? dc=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
  m.def(
      "lstm_step(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh) -> (Tensor, Tensor)");
  for (const char* schema : {FUSED_RNN_SIMPLE_OPS("gru"), FUSED_RNN_SIMPLE_OPS("rnn_tanh"),
                             FUSED_RNN_SIMPLE_OPS("rnn_relu")}) {
    m.def(schema);
  }
}

template <class K, class Library>
void implement_ops(Library& m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward<K>));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward<K>));
  m.impl("gru_forward", TORCH_BOX((&simple_forward<K, CellKind::kGru>)));
  m.impl("gru_backward", TORCH_BOX((&simple_backward<K, CellKind::kGru>)));
  m.impl("rnn_tanh_forward", TORCH_BOX((&simple_forward<K, CellKind::kRnnTanh>)));
  m.impl("rnn_tanh_backward", TORCH_BOX((&simple_backward<K, CellKind::kRnnTanh>)));
  m.impl("rnn_relu_forward", TORCH_BOX((&simple_forward<K, CellKind::kRnnRelu>)));
  m.impl("rnn_relu_backward", TORCH_BOX((&simple_backward<K, CellKind::kRnnRelu>)));
}

template <class K, class Library>
void implement_steps(Library& m) {
  m.impl("lstm_step", TORCH_BOX(&lstm_step<K>));
  m.impl("gru_step", TORCH_BOX((&simple_step<K, CellKind::kGru>)));
  m.impl("rnn_tanh_step", TORCH_BOX((&simple_step<K, CellKind::kRnnTanh>)));
  m.impl("rnn_relu_step", TORCH_BOX((&simple_step<K, CellKind::kRnnRelu>)));
}

}  // namespace fused_rnn

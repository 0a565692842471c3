// The cells' arithmetic, once for C++ and CUDA: what happens to one hidden unit of one sequence in
// one step, after the matrix products. V is a scalar or a vector of hidden units.
//
//   LSTM   i = s(a_i)  f = s(a_f)  g = tanh(a_g)  o = s(a_o)   (Hochreiter & Schmidhuber 1997;
//          c' = f c + i g      h' = o tanh(c')                  Gers et al. 2000)
//   GRU    r = s(a_r)  z = s(a_z)  n = tanh(a_nx + r a_nh)     (Cho et al. 2014; in torch's form,
//          h' = (1 - z) n + z h                                 b_hn stands inside r)
//   RNN    h' = tanh(a)  or  h' = relu(a)                      (Elman 1990)
//
// a = W_ih x + b_ih + W_hh h + b_hh, but for the GRU's n, whose two parts stay apart. So a cell has
// kPre pre-activations; the input product gives the first kGates of them, the recurrent product
// kGates of them from kRecurrent on, and order() names torch's gate row of each:
//
//   LSTM   i f g o      both products give all four
//   GRU    nx r z nh    input: nx r z     recurrent: r z nh
//
// forward():  pre[kPre], prev  ->  saved[kSaved], h.  The last saved value is the elementwise state
//             (LSTM c', GRU and RNN h'), which the next step gets as `prev`.
// backward(): saved of this step, prev, dh (in: from y and from the next step's products), carry
//             (in: the state's gradient from the next step; out: for the step before) ->
//             dpre[kPre].
//
// M gives sigmoid and tanh: math.h's, but where a coarser one is as good (cpu/tiles/gates.h).
#pragma once

#include "math.h"

namespace fused_rnn {

struct Lstm {
  static constexpr int kGates = 4, kPre = 4, kRecurrent = 0, kSaved = 5;
  static FUSED_RNN_INLINE constexpr int order(int p) { return p; }
  static constexpr bool kHasCell = true;         // the state is c, apart from h
  static constexpr bool kStateIsHidden = false;  // the state is h itself

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static V forward(const V* pre, V c_prev, V* saved) {
    const V i = M::sigmoid(pre[0]), f = M::sigmoid(pre[1]), g = M::tanh(pre[2]),
            o = M::sigmoid(pre[3]);
    const V c = f * c_prev + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return hidden<M>(saved);
  }

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static V hidden(const V* saved) {
    return saved[3] * M::tanh(saved[4]);
  }

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static void backward(const V* saved, V c_prev, V dh, V& dc, V* dpre) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = M::tanh(saved[4]);
    const V d = dc + dh * o * (1 - tanh_c * tanh_c);
    dpre[0] = d * g * i * (1 - i);
    dpre[1] = d * c_prev * f * (1 - f);
    dpre[2] = d * i * (1 - g * g);
    dpre[3] = dh * tanh_c * o * (1 - o);
    dc = d * f;
  }
};

struct Gru {
  static constexpr int kGates = 3, kPre = 4, kRecurrent = 1, kSaved = 5;
  static FUSED_RNN_INLINE constexpr int order(int p) {
    constexpr int kOrder[kPre] = {2, 0, 1, 2};
    return kOrder[p];
  }
  static constexpr bool kHasCell = false;
  static constexpr bool kStateIsHidden = true;

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static V forward(const V* pre, V h_prev, V* saved) {
    const V r = M::sigmoid(pre[1]), z = M::sigmoid(pre[2]), n = M::tanh(pre[0] + r * pre[3]);
    const V h = n + z * (h_prev - n);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = pre[3], saved[4] = h;
    return h;
  }

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static void backward(const V* saved, V h_prev, V dh, V& carry, V* dpre) {
    const V r = saved[0], z = saved[1], n = saved[2], a_nh = saved[3];
    const V d = dh + carry;
    const V dn = d * (1 - z) * (1 - n * n);
    dpre[0] = dn;
    dpre[1] = dn * a_nh * r * (1 - r);
    dpre[2] = d * (h_prev - n) * z * (1 - z);
    dpre[3] = dn * r;
    carry = d * z;
  }
};

template <bool kRelu>
struct Rnn {
  static constexpr int kGates = 1, kPre = 1, kRecurrent = 0, kSaved = 1;
  static FUSED_RNN_INLINE constexpr int order(int p) { return p; }
  static constexpr bool kHasCell = false;
  static constexpr bool kStateIsHidden = false;

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static V forward(const V* pre, V, V* saved) {
    saved[0] = kRelu ? relu(pre[0]) : M::tanh(pre[0]);
    return saved[0];
  }

  template <class M = ExactMath, class V>
  FUSED_RNN_INLINE static void backward(const V* saved, V, V dh, V&, V* dpre) {
    const V h = saved[0];
    if constexpr (kRelu) {
      dpre[0] = h <= V{} ? V{} : dh;  // torch's choice: none at zero, and a NaN passes it on
    } else {
      dpre[0] = dh * (1 - h * h);
    }
  }
};

}  // namespace fused_rnn

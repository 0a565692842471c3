// What marks change of a scan that goes step by step: the states that sequences begin with, on the
// way too, and their gradients; and the operands of products over all steps, some of which are none.
#pragma once

#include "marked.h"
#include "marked_ops.h"
#include "cuda/torch_calls.h"

namespace fused_rnn {
namespace cuda {

class Marking {
 public:
  Marking(CellKind cell, const Operands& in, const Marked& given, bool reverse)
      : cell_(cell),
        in_(in),
        given_(given),
        reverse_(reverse),
        columns_(in.w_hh.size(0)),
        h_(with_anew(in.h0, given.h)),
        c_(in.c0.has_value() ? with_anew(*in.c0, given.c) : h_),
        stream_(current_stream(in.x)) {}

  void begin(MarkedForwardStep& s, std::array<Tensor, 5>& out) {
    first_ = in_.empty({in_.N + 1, columns_}, in_.compute_type());
    multiply(h_, transposed(in_.w_hh), *first_);
    s.first = first_->const_data_ptr();
    // Of a sequence without any step, no kernel writes the last state.
    torch::stable::copy_(out[1], matrix(in_.h0));
    if (cell_ == CellKind::kLstm) {
      torch::stable::copy_(out[2], matrix(*in_.c0));
    }
  }

  void begin(MarkedBackwardStep& s) {
    const bool has_state = cell_ == CellKind::kLstm || cell_ == CellKind::kGru;
    dfirst_ = in_.empty({2 * in_.N, columns_}, in_.compute_type());
    dinitial_ = in_.empty({has_state ? 2 * in_.N : 0, in_.H}, in_.compute_type());
    torch::stable::zero_(*dfirst_);
    torch::stable::zero_(*dinitial_);
    s.dfirst = write(*dfirst_);
    s.dinitial = write(*dinitial_);
  }

  // Step k in scan order.
  template <class S>
  void set(S& s, std::int64_t k) const {
    s.marks = {of_step(k), k + 1 < in_.steps() ? of_step(k + 1) : nullptr};
    s.initial = c_.const_data_ptr();
  }

  // After all steps: dh0 and dc0, where they are wanted.
  void initial_gradients(const Incoming& given, std::array<Tensor, 8>& out) const {
    const Dtype dtype = checked_dtype(in_.x);
    const void* const carry = dinitial_->const_data_ptr();
    const bool gru = cell_ == CellKind::kGru;
    if (out[1].numel() > 0) {
      Tensor product = in_.empty({in_.N, in_.R}, in_.compute_type());
      multiply(stored(matrix(*dfirst_, 0, in_.N, columns_)), matrix(in_.w_hh), product);
      launch_initial_gradient({dtype, in_.N, in_.R, marks(), product.const_data_ptr(),
                               gru ? carry : nullptr, read(given.dh_n), out[1].data_ptr()},
                              stream_);
    }
    if (out[2].numel() > 0) {
      launch_initial_gradient(
          {dtype, in_.N, in_.H, marks(), nullptr, carry, read(given.dc_n), out[2].data_ptr()},
          stream_);
    }
  }

  // And those of anew_h and anew_c, empty where they are not.
  std::array<Tensor, 2> anew_gradients(bool needs_h, bool needs_c) const {
    std::array<Tensor, 2> out{in_.empty({needs_h && given_.h.has_value() ? in_.R : 0}),
                              in_.empty({needs_c && given_.c.has_value() ? in_.H : 0})};
    if (in_.N == 0) {
      torch::stable::zero_(out[0]);
      torch::stable::zero_(out[1]);
      return out;
    }
    if (out[0].numel() > 0) {
      Tensor row = matrix(out[0], 0, 1, in_.R);
      Tensor product = in_.empty({1, in_.R}, in_.compute_type());
      multiply(stored(sum_of_anew(*dfirst_)), matrix(in_.w_hh), product);
      const bool gru = cell_ == CellKind::kGru;
      torch::stable::copy_(row, gru ? added(product, sum_of_anew(*dinitial_)) : product);
    }
    if (out[1].numel() > 0) {
      Tensor row = matrix(out[1], 0, 1, in_.H);
      torch::stable::copy_(row, sum_of_anew(*dinitial_));
    }
    return out;
  }

  // (T*N, R): h of the step before each row's.
  Tensor hidden_before(const Tensor& y) const { return picked(y, in_.R, &h_); }

  // (T*N, I): x, zero where there is no step: a gradient of zero there times a NaN would be one.
  Tensor clear_x() const { return picked(in_.x, in_.I, nullptr); }

 private:
  // (N + 1, columns): the state after a reset in the last row.
  Tensor with_anew(const Tensor& state, const Maybe& anew) const {
    const std::int64_t columns = state.size(1);
    Tensor last = in_.empty({1, columns});
    if (!anew.has_value()) {
      torch::stable::zero_(last);
    }
    return concatenated({matrix(state), anew.has_value() ? matrix(*anew, 0, 1, columns) : last});
  }

  // (1, columns): what all sequences pass back to the state after a reset.
  Tensor sum_of_anew(const Tensor& gradients) const {
    const std::int64_t columns = gradients.size(1);
    Tensor total = in_.empty({columns}, in_.compute_type());
    sum_rows(matrix(gradients, in_.N, in_.N, columns), total);
    return matrix(total, 0, 1, columns);
  }

  // In the tensors' type, as products with weights want it.
  Tensor stored(const Tensor& t) const { return torch::stable::to(t, in_.x.scalar_type()); }

  Tensor picked(const Tensor& source, std::int64_t columns, const Tensor* initial) const {
    const std::int64_t T = in_.steps();
    Tensor out = in_.empty({T * in_.N, columns});
    launch_picked_rows({checked_dtype(in_.x), T, in_.N, columns, marks(), source.const_data_ptr(),
                        reverse_ ? 1 : -1, initial == nullptr ? nullptr : initial->const_data_ptr(),
                        out.data_ptr()},
                       stream_);
    return out;
  }

  const Mark* marks() const { return static_cast<const Mark*>(given_.marks.const_data_ptr()); }

  const Mark* of_step(std::int64_t k) const {
    return marks() + (reverse_ ? in_.steps() - 1 - k : k) * in_.N;
  }

  const CellKind cell_;
  const Operands& in_;
  const Marked& given_;
  const bool reverse_;
  const std::int64_t columns_;
  const Tensor h_, c_;                       // (N + 1, R), (N + 1, H); no c: h again
  std::optional<Tensor> first_;              // (N + 1, G*H)
  std::optional<Tensor> dfirst_, dinitial_;  // (2 N, G*H), (2 N, H)
  const Stream stream_;
};

}  // namespace cuda
}  // namespace fused_rnn

// The stepwise path: any T, N, H, type, ragged or not, with projections or with marks. The input
// product is made once for all steps; then each step takes one matrix product and one fused gate
// kernel; dW, db and dx are products over all steps afterwards. Products go through PyTorch's
// dispatcher (cuBLAS, its TF32 setting and its workspaces), so nothing here waits for the device or
// knows a stream but the current one.
#pragma once

#include "marking.h"
#include "operands.h"
#define FUSED_RNN_LEVEL order
#include "order.h"
#undef FUSED_RNN_LEVEL
#include "steps.h"
#include "cuda/torch_calls.h"

namespace fused_rnn {
namespace cuda {

// Of the input product, at inference. The host bench wants several chunks of small sizes.
#if !defined(FUSED_RNN_CHUNK_ELEMENTS)
#define FUSED_RNN_CHUNK_ELEMENTS (1 << 24)
#endif
constexpr std::int64_t kChunkElements = FUSED_RNN_CHUNK_ELEMENTS;

// One problem: what forward and backward share.
class Stepwise {
 public:
  // Where there is a marking, all sequences have T steps as far as the host knows.
  Stepwise(CellKind cell, const Operands& in, bool reverse, Marking* marking = nullptr)
      : cell_(cell),
        in_(in),
        marking_(marking),
        steps_(in.steps(), in.N, static_cast<const std::int64_t*>(read(in.batch_sizes)), reverse),
        reverse_(reverse),
        joins_(reverse && in.batch_sizes.has_value()),
        rows_(steps_.total()),
        columns_(in.w_hh.size(0)),
        element_(element_bytes(in.x.scalar_type())),
        real_(element_bytes(in.compute_type())),
        stream_(current_stream(in.x)) {}

  // Activated gates of all rows, then an LSTM's c or a GRU's a_nh.
  std::int64_t saved_elements() const { return rows_ * (columns_ + (has_extra() ? in_.H : 0)); }

  std::array<Tensor, 5> forward(bool training, bool every_c) {
    const auto real = in_.compute_type();
    const bool lstm = cell_ == CellKind::kLstm;
    std::array<Tensor, 5> out = room_for_results(training, every_c);
    if (in_.N == 0) {
      return out;
    }
    // In inference the input product is made for some steps at a time: it need not outlive them.
    const std::int64_t capacity =
        training ? rows_ : std::min(rows_, std::max(in_.N, kChunkElements / columns_));
    const Tensor all = training ? out[4] : in_.empty({capacity * columns_}, real);
    const Tensor w_ih = transposed(in_.w_ih);

    const Tensor recurrent = in_.empty({in_.N, columns_}, real);
    const Tensor c = lstm && !training ? in_.empty({in_.N, in_.H}, real) : all;
    const Tensor unprojected = in_.P > 0 ? in_.empty({in_.N, in_.H}) : all;
    // Where sequences join late, the product's rows lie in two arrays; here they stand together.
    Tensor carried = joins_ ? in_.empty({in_.N, in_.R}) : in_.h0;
    if (joins_) {
      torch::stable::copy_(carried, matrix(in_.h0));
    }
    const Tensor w_hh = transposed(in_.w_hh);

    MarkedForwardStep s{};
    s.b_ih = read(in_.b_ih), s.b_hh = read(in_.b_hh);
    s.recurrent = recurrent.const_data_ptr();
    s.training = training;
    s.c_n = lstm ? write(out[2]) : nullptr;
    if (marking_ != nullptr) {
      marking_->begin(s, out);
    }
    std::int64_t chunk_begins = 0, chunk_ends = 0;  // a row, a step
    for (std::int64_t k = 0; k < steps_.T; ++k) {
      if (k == chunk_ends) {
        chunk_ends = order::chunk_end(steps_, k, capacity);
        chunk_begins = steps_.first_row(k, chunk_ends);
        const std::int64_t rows = steps_.rows(k, chunk_ends);
        Tensor gates = matrix(all, 0, rows, columns_);
        multiply(matrix(in_.x, chunk_begins, rows, in_.I), w_ih, gates);
      }
      set_step(s, k);
      const std::int64_t begin = steps_.begin(k), before = steps_.begin(k - 1);
      const bool from_y = !joins_ && k > 0;
      if (k > 0 || marking_ == nullptr) {
        Tensor sums = matrix(recurrent, 0, s.N, columns_);
        multiply(matrix(from_y ? out[0] : carried, from_y ? before : 0, s.N, in_.R), w_hh, sums);
      }

      s.gates = at(all, real_, (begin - chunk_begins) * columns_);
      void* const extra = training ? at(all, real_, rows_ * columns_ + begin * in_.H) : nullptr;
      if (lstm) {
        s.prev = training ? at(all, real_, rows_ * columns_ + before * in_.H) : c.data_ptr();
        s.c = training ? extra : c.data_ptr();
      } else {
        s.prev = joins_ ? carried.data_ptr() : at(out[0], element_, before * in_.R);
        s.a_nh = has_extra() ? extra : nullptr;
      }
      s.h = in_.P > 0 ? unprojected.data_ptr() : at(out[0], element_, begin * in_.R);
      s.h_n = in_.P > 0 ? nullptr : out[1].data_ptr();
      s.c_again = every_c ? at(out[3], element_, begin * in_.H) : nullptr;
      s.h_again = in_.P == 0 && joins_ ? carried.data_ptr() : nullptr;
      launch(s);
      if (in_.P > 0) {
        project(unprojected, s, begin, out[0], out[1], carried);
      }
    }
    return out;
  }

  std::array<Tensor, 8> backward(const Incoming& given) {
    std::array<Tensor, 8> out = given.room(in_);
    if (in_.N == 0) {
      for (Tensor& t : out) {
        torch::stable::zero_(t);
      }
      return out;
    }
    const auto real = in_.compute_type();
    const bool lstm = cell_ == CellKind::kLstm, gru = cell_ == CellKind::kGru;
    const Tensor recurrent = in_.empty({in_.N, in_.R}, real);
    const Tensor carry = in_.empty({has_extra() ? in_.N : 0, in_.H}, real);
    const Tensor dgates_x = in_.empty({rows_, columns_});
    const Tensor dgates_h = gru ? in_.empty({rows_, columns_}) : dgates_x;
    const Tensor dprojected = in_.empty({in_.P > 0 ? rows_ : 0, in_.P});
    const Tensor unprojected = in_.empty({in_.P > 0 ? rows_ : 0, in_.H});
    Tensor dh = in_.empty({in_.P > 0 ? in_.N : 0, in_.H}, real);

    const Tensor w_hh = matrix(in_.w_hh), w_hr = in_.P > 0 ? matrix(*in_.w_hr) : w_hh;

    MarkedBackwardStep s{};
    if (marking_ != nullptr) {
      marking_->begin(s);
    }
    s.dc_n = read(given.dc_n);
    s.carry = has_extra() ? carry.data_ptr() : nullptr;
    for (std::int64_t k = steps_.T - 1; k >= 0; --k) {
      set_step(s, k);
      const std::int64_t begin = steps_.begin(k), before = steps_.begin(k - 1);
      const void* const dy =
          given.dy.has_value() ? at(*given.dy, element_, begin * in_.R) : nullptr;
      if (in_.P > 0) {
        launch_hidden_step({s.dtype, s.N, in_.P, s.outer, dy, recurrent.const_data_ptr(),
                            read(given.dh_n), at(dprojected, element_, begin * in_.P)},
                           stream_);
        Tensor unit = matrix(dh, 0, s.N, in_.H);
        multiply(matrix(dprojected, begin, s.N, in_.P), w_hr, unit);
        s.dh = dh.const_data_ptr();
        s.h = at(unprojected, element_, begin * in_.H);
      } else {
        s.dy = dy;
        s.recurrent = recurrent.const_data_ptr();
        s.dh_n = read(given.dh_n);
      }
      s.dc = given.dc.has_value() ? at(*given.dc, element_, begin * in_.H) : nullptr;
      s.gates = at(given.saved, real_, begin * columns_);
      if (has_extra()) {
        const std::int64_t extra = rows_ * columns_;
        s.extra = at(given.saved, real_, extra + begin * in_.H);
        s.prev = lstm ? at(given.saved, real_, extra + before * in_.H)
                      : at(given.y, element_, before * in_.H);
      }
      s.dgates_x = at(dgates_x, element_, begin * columns_);
      s.dgates_h = gru ? at(dgates_h, element_, begin * columns_) : nullptr;
      launch(s);
      if (k > 0 || (marking_ == nullptr && out[1].numel() > 0)) {
        Tensor passed = matrix(recurrent, 0, s.N, in_.R);
        multiply(matrix(dgates_h, begin, s.N, columns_), w_hh, passed);
      }
    }
    initial_gradients(given, recurrent, carry, out);
    operand_gradients(given, dgates_x, dgates_h, dprojected, unprojected, out);
    return out;
  }

 protected:
  bool has_extra() const { return cell_ == CellKind::kLstm || cell_ == CellKind::kGru; }

  std::array<Tensor, 5> room_for_results(bool training, bool every_c) const {
    return {in_.empty(in_.y_shape()), in_.empty({in_.N, in_.R}),
            cell_ == CellKind::kLstm ? in_.empty({in_.N, in_.H}) : in_.h0,
            in_.empty(every_c ? in_.shape_of(in_.H) : Sizes{0}),
            in_.empty({training ? saved_elements() : 0}, in_.compute_type())};
  }

  static void* at(const Tensor& t, std::int64_t bytes, std::int64_t element) {
    return static_cast<char*>(t.data_ptr()) + element * bytes;
  }

  template <class S>
  void set_step(S& s, std::int64_t k) const {
    s.cell = cell_;
    s.dtype = checked_dtype(in_.x);
    s.N = steps_.batch(k), s.H = in_.H;
    s.inner = std::min(steps_.batch(k - 1), s.N);
    s.outer = std::min(steps_.batch(k + 1), s.N);
    s.initial = cell_ == CellKind::kLstm ? read(in_.c0) : in_.h0.const_data_ptr();
    if (marking_ != nullptr) {
      marking_->set(s, k);
    }
  }

  void launch(const MarkedForwardStep& s) const {
    marking_ != nullptr ? launch_marked_forward_step(s, stream_) : launch_forward_step(s, stream_);
  }
  void launch(const MarkedBackwardStep& s) const {
    marking_ != nullptr ? launch_marked_backward_step(s, stream_)
                        : launch_backward_step(s, stream_);
  }

  void project(const Tensor& unprojected, const ForwardStep& s, std::int64_t begin, const Tensor& y,
               const Tensor& h_n, const Tensor& carried) const {
    Tensor here = matrix(y, begin, s.N, in_.R);
    multiply(matrix(unprojected, 0, s.N, in_.H), transposed(*in_.w_hr), here);
    if (s.outer < s.N) {
      Tensor last = matrix(h_n, s.outer, s.N - s.outer, in_.R);
      torch::stable::copy_(last, matrix(y, begin + s.outer, s.N - s.outer, in_.R));
    }
    if (joins_) {
      Tensor next = matrix(carried, 0, s.N, in_.R);
      torch::stable::copy_(next, here);
    }
  }

  // Every sequence's first step left its row of these behind, whenever that was.
  void initial_gradients(const Incoming& given, const Tensor& recurrent, const Tensor& carry,
                         std::array<Tensor, 8>& out) const {
    if (marking_ != nullptr) {
      return marking_->initial_gradients(given, out);
    }
    if (out[1].numel() > 0) {
      const bool both = cell_ == CellKind::kGru;
      torch::stable::copy_(out[1], both ? added(recurrent, carry) : recurrent);
    }
    if (out[2].numel() > 0) {
      torch::stable::copy_(out[2], carry);
    }
  }

  void operand_gradients(const Incoming& given, const Tensor& dgates_x, const Tensor& dgates_h,
                         const Tensor& dprojected, const Tensor& unprojected,
                         std::array<Tensor, 8>& out) const {
    if (out[0].numel() > 0) {
      Tensor dx = matrix(out[0], 0, rows_, in_.I);
      multiply(dgates_x, matrix(in_.w_ih), dx);
    }
    if (out[3].numel() > 0) {
      const Tensor x = marking_ != nullptr ? marking_->clear_x() : matrix(in_.x, 0, rows_, in_.I);
      multiply(transposed(dgates_x), x, out[3]);
    }
    if (out[4].numel() > 0) {
      multiply(transposed(dgates_h), hidden_before(given.y), out[4]);
    }
    if (out[5].numel() > 0) {
      sum_rows(dgates_x, out[5]);
    }
    if (out[6].numel() > 0) {
      if (cell_ != CellKind::kGru && out[5].numel() > 0) {
        torch::stable::copy_(out[6], out[5]);
      } else {
        sum_rows(dgates_h, out[6]);
      }
    }
    if (out[7].numel() > 0) {
      multiply(transposed(dprojected), unprojected, out[7]);
    }
  }

  // (rows, R): h of the step before each row's.
  Tensor hidden_before(const Tensor& y) const {
    if (marking_ != nullptr) {
      return marking_->hidden_before(y);
    }
    std::vector<Tensor> pieces;
    const auto append = [&](const Tensor& t, std::int64_t begin, std::int64_t n) {
      if (n > 0) {
        pieces.push_back(matrix(t, begin, n, in_.R));
      }
    };
    if (!in_.batch_sizes.has_value()) {
      const std::int64_t later = rows_ - in_.N;
      append(in_.h0, 0, reverse_ ? 0 : in_.N);
      append(y, reverse_ ? in_.N : 0, later);
      append(in_.h0, 0, reverse_ ? in_.N : 0);
    } else {
      for (std::int64_t t = 0; t < steps_.T; ++t) {
        const std::int64_t k = reverse_ ? steps_.T - 1 - t : t, n = steps_.batch(k);
        const std::int64_t inner = std::min(steps_.batch(k - 1), n);
        append(y, steps_.begin(k - 1), inner);
        append(in_.h0, inner, n - inner);
      }
    }
    return pieces.size() == 1 ? pieces[0] : concatenated(pieces);
  }

  const CellKind cell_;
  const Operands& in_;
  Marking* const marking_;  // null: none
  const order::Steps steps_;
  const bool reverse_;
  const bool joins_;  // sequences begin at different steps
  const std::int64_t rows_, columns_;
  const std::int64_t element_, real_;  // bytes of the tensors' and the arithmetic's type
  const Stream stream_;
};

}  // namespace cuda
}  // namespace fused_rnn

// The ops of layers whose weights are int8 or bfloat16: their schema, and what they accept. For the CPU.
#pragma once

#include <tuple>

#include "operands.h"
#include "quantized.h"

namespace fused_rnn {

// A weight's scales, after checking that it has them if it is int8, and else none.
inline const float* checked_scales(const Maybe& scales, const char* name, const Tensor& w,
                                   const Tensor& x, Maybe& kept) {
  const bool int8 = w.scalar_type() == torch::headeronly::ScalarType::Char;
  STD_TORCH_CHECK(scales.has_value() == int8, "fused_rnn: ", name, " should be ",
                  int8 ? "given with int8 weights" : "left out with bfloat16 weights");
  kept = checked(scales, name, {w.size(0)}, x);
  return static_cast<const float*>(read(kept));
}

// The operands of one layer and direction, checked, contiguous and kept alive.
struct QuantizedOperands {
  Tensor x, h0;
  Maybe c0;
  Tensor w_ih, w_hh;
  Maybe b_ih, b_hh, w_hr, batch_sizes, s_ih, s_hh, s_hr;
  std::int64_t N, I, H, P, R;
  Sizes lead;

  QuantizedOperands(CellKind cell, const Tensor& x_, const Tensor& h0_, const Maybe& c0_,
                    const Tensor& w_ih_, const Maybe& s_ih_, const Tensor& w_hh_,
                    const Maybe& s_hh_, const Maybe& b_ih_, const Maybe& b_hh_, const Maybe& w_hr_,
                    const Maybe& s_hr_, const Maybe& batch_sizes_, QuantizedArgs& a)
      : x(x_), h0(h0_), w_ih(w_ih_), w_hh(w_hh_) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float,
                    "fused_rnn: x should be of dtype float32, got ",
                    torch::headeronly::toString(x.scalar_type()));
    const ScalarType stored = w_hh.scalar_type();
    STD_TORCH_CHECK(stored == ScalarType::Char || stored == ScalarType::BFloat16,
                    "fused_rnn: w_hh should be of dtype int8 or bfloat16, got ",
                    torch::headeronly::toString(stored));
    STD_TORCH_CHECK(w_ih.scalar_type() == stored || w_ih.scalar_type() == ScalarType::BFloat16,
                    "fused_rnn: w_ih should be of dtype bfloat16, or that of w_hh, got ",
                    torch::headeronly::toString(w_ih.scalar_type()));
    const bool packed = batch_sizes_.has_value();
    STD_TORCH_CHECK(x.dim() == (packed ? 2 : 3), "fused_rnn: x should have ",
                    packed ? "2 dimensions (rows, I) with batch_sizes" : "3 dimensions (T, N, I)",
                    ", got ", x.dim());
    STD_TORCH_CHECK(h0.dim() == 2, "fused_rnn: h0 should have 2 dimensions (N, R), got ", h0.dim());
    STD_TORCH_CHECK(w_hh.dim() == 2, "fused_rnn: w_hh should have 2 dimensions (G*H, R), got ",
                    w_hh.dim());
    STD_TORCH_CHECK(!w_hr_.has_value() || (w_hr_->dim() == 2 && w_hr_->size(0) > 0),
                    "fused_rnn: w_hr should have 2 dimensions (P, H), P > 0");
    STD_TORCH_CHECK(!w_hr_.has_value() || cell == CellKind::kLstm,
                    "fused_rnn: w_hr should be left out: only an LSTM has projections");
    STD_TORCH_CHECK(!c0_.has_value() || cell == CellKind::kLstm,
                    "fused_rnn: c0 should be left out: only an LSTM has a cell state");
    const std::int64_t G = gates_of(cell);
    N = h0.size(0), H = w_hh.size(0) / G, I = x.size(x.dim() - 1);
    P = w_hr_.has_value() ? w_hr_->size(0) : 0;
    R = P > 0 ? P : H;
    STD_TORCH_CHECK(x.size(0) > 0 && I > 0,
                    "fused_rnn: x should have at least one step and one feature, got shape ",
                    to_string(sizes_of(x)));
    STD_TORCH_CHECK(H > 0 && w_hh.size(0) == G * H, "fused_rnn: w_hh should have G*H rows, G = ", G,
                    ", got ", w_hh.size(0));
    STD_TORCH_CHECK(std::max({I, H, R}) <= kMostColumns, "fused_rnn: x and h should have at most ",
                    kMostColumns, " features, got ", std::max({I, H, R}));
    lead = packed ? Sizes{x.size(0)} : Sizes{x.size(0), N};
    Sizes x_shape = lead;
    x_shape.push_back(I);
    x = checked(x, "x", x_shape, x);
    h0 = checked(h0, "h0", {N, R}, x);
    if (cell == CellKind::kLstm) {
      STD_TORCH_CHECK(c0_.has_value(), "fused_rnn: c0 should be given with an LSTM");
      c0 = checked(c0_, "c0", {N, H}, x);
    }
    b_ih = checked(b_ih_, "b_ih", {G * H}, x);
    b_hh = checked(b_hh_, "b_hh", {G * H}, x);
    w_ih = checked(w_ih, "w_ih", {G * H, I}, w_ih_);
    w_hh = checked(w_hh, "w_hh", {G * H, R}, w_hh_);
    w_hr = checked(w_hr_, "w_hr", {P, H}, w_hh_);
    STD_TORCH_CHECK(same_device(w_ih, x), "fused_rnn: w_ih should be on the device of x");
    STD_TORCH_CHECK(same_device(w_hh, x), "fused_rnn: w_hh should be on the device of x");
    a.s_ih = checked_scales(s_ih_, "s_ih", w_ih, x, s_ih);
    a.s_hh = checked_scales(s_hh_, "s_hh", w_hh, x, s_hh);
    a.s_hr = P > 0 ? checked_scales(s_hr_, "s_hr", *w_hr, x, s_hr) : nullptr;
    if (packed) {
      batch_sizes = checked_batch_sizes(*batch_sizes_, N, x.size(0));
    }
    a.cell = cell;
    a.dtype = Dtype::kFloat;
    a.stored = stored == ScalarType::Char ? Stored::kInt8 : Stored::kBFloat16;
    a.T = packed ? batch_sizes->size(0) : x.size(0);
    a.N = N, a.I = I, a.H = H, a.P = P;
    a.batch_sizes = static_cast<const std::int64_t*>(read(batch_sizes));
    a.x = x.const_data_ptr(), a.h0 = h0.const_data_ptr(), a.c0 = read(c0);
    a.w_ih = w_ih.const_data_ptr(), a.w_hh = w_hh.const_data_ptr(), a.w_hr = read(w_hr);
    a.b_ih = read(b_ih), a.b_hh = read(b_hh);
  }

  Sizes shape_of(std::int64_t features) const {
    Sizes shape = lead;
    shape.push_back(features);
    return shape;
  }
};

template <class Library>
void define_quantized_ops(Library& m) {
  m.def(
      "quantized_forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor? s_ih, "
      "Tensor w_hh, Tensor? s_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? s_hr, "
      "Tensor? batch_sizes, bool reverse, bool every_c) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("quantized_level(ScalarType stored) -> str");
}

}  // namespace fused_rnn

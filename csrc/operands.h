// The tensors of an op: checked, and made when they are results.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>

#include "checks.h"
#include "poison.h"
#include "scan.h"

namespace fused_rnn {

using Maybe = std::optional<Tensor>;

inline const void* read(const Maybe& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }
inline void* write(Tensor& t) { return t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }

inline std::int64_t gates_of(CellKind cell) {
  return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1;
}

inline CellKind checked_cell(const std::string& cell) {
  constexpr std::pair<const char*, CellKind> kCells[] = {{"lstm", CellKind::kLstm},
                                                         {"gru", CellKind::kGru},
                                                         {"rnn_tanh", CellKind::kRnnTanh},
                                                         {"rnn_relu", CellKind::kRnnRelu}};
  for (const auto& [name, kind] : kCells) {
    if (cell == name) {
      return kind;
    }
  }
  STD_TORCH_CHECK(false, "fused_rnn: cell should be lstm, gru, rnn_tanh or rnn_relu, got ", cell);
  return CellKind::kLstm;
}

// A new tensor of this shape on x's device, of x's dtype or another. Straight to the allocator:
// torch::stable::new_empty looks its operator up by name at each call.
inline Tensor empty_like(const Tensor& x, const Sizes& shape,
                         std::optional<torch::headeronly::ScalarType> type = std::nullopt) {
  Sizes strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * shape[d];
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(shape.size()), shape.data(), strides.data(),
      static_cast<std::int32_t>(type.value_or(x.scalar_type())),
      static_cast<std::int32_t>(x.device().type()), x.get_device_index(), &handle));
  Tensor fresh(handle);
  if (fresh.device().type() == torch::headeronly::DeviceType::CPU) {
    poison(fresh.data_ptr(), static_cast<std::size_t>(fresh.numel()) * fresh.element_size());
  }
  return fresh;
}

// The operands of one layer and direction, checked, contiguous and kept alive while a kernel's
// arguments point into them.
struct Operands {
  Tensor x, h0;
  Maybe c0;
  Tensor w_ih, w_hh;
  Maybe b_ih, b_hh, w_hr, batch_sizes;
  Sizes lead;  // the dims of y before the last

  Operands(CellKind cell, Tensor x_, Tensor h0_, Maybe c0_, Tensor w_ih_, Tensor w_hh_, Maybe b_ih_,
           Maybe b_hh_, Maybe w_hr_, Maybe batch_sizes_)
      : x(std::move(x_)),
        h0(std::move(h0_)),
        c0(std::move(c0_)),
        w_ih(std::move(w_ih_)),
        w_hh(std::move(w_hh_)),
        b_ih(std::move(b_ih_)),
        b_hh(std::move(b_hh_)),
        w_hr(std::move(w_hr_)),
        batch_sizes(std::move(batch_sizes_)) {
    checked_dtype(x);
    const bool packed = batch_sizes.has_value();
    STD_TORCH_CHECK(x.dim() == 2 || (x.dim() == 3 && !packed), "fused_rnn: x should have ",
                    packed ? "2 dimensions (rows, I) with batch_sizes"
                           : "3 dimensions (T, N, I), or 2 for a single step (N, I)",
                    ", got ", x.dim());
    STD_TORCH_CHECK(h0.dim() == 2, "fused_rnn: h0 should have 2 dimensions (N, R), got ", h0.dim());
    STD_TORCH_CHECK(w_hh.dim() == 2, "fused_rnn: w_hh should have 2 dimensions (G*H, R), got ",
                    w_hh.dim());
    STD_TORCH_CHECK(!w_hr.has_value() || (w_hr->dim() == 2 && w_hr->size(0) > 0),
                    "fused_rnn: w_hr should have 2 dimensions (P, H), P > 0");
    const std::int64_t G = gates_of(cell);
    N = h0.size(0);
    H = w_hh.size(0) / G;
    I = x.size(x.dim() - 1);
    P = w_hr.has_value() ? w_hr->size(0) : 0;
    R = P > 0 ? P : H;
    STD_TORCH_CHECK(I > 0, "fused_rnn: x should have at least one feature, got shape ",
                    to_string(sizes_of(x)));
    STD_TORCH_CHECK(H > 0 && w_hh.size(0) == G * H, "fused_rnn: w_hh should have G*H rows, G = ", G,
                    ", got ", w_hh.size(0));
    lead = packed ? Sizes{x.size(0)} : x.dim() == 3 ? Sizes{x.size(0), N} : Sizes{N};
    Sizes x_shape = lead;
    x_shape.push_back(I);
    x = checked(x, "x", x_shape, x);
    STD_TORCH_CHECK(x.dim() == 2 || x.size(0) > 0,
                    "fused_rnn: x should have at least one step, got shape ",
                    to_string(sizes_of(x)));
    h0 = checked(h0, "h0", {N, R}, x);
    if (cell == CellKind::kLstm) {
      c0 = checked(c0, "c0", {N, H}, x);
    }
    w_ih = checked(w_ih, "w_ih", {G * H, I}, x);
    w_hh = checked(w_hh, "w_hh", {G * H, R}, x);
    b_ih = checked(b_ih, "b_ih", {G * H}, x);
    b_hh = checked(b_hh, "b_hh", {G * H}, x);
    w_hr = checked(w_hr, "w_hr", {P, H}, x);
    if (packed) {
      batch_sizes = checked_batch_sizes(*batch_sizes, N, x.size(0));
    }
  }

  Tensor empty(const Sizes& shape,
               std::optional<torch::headeronly::ScalarType> type = std::nullopt) const {
    return empty_like(x, shape, type);
  }
  // Of what has so many features in every row.
  Sizes shape_of(std::int64_t features) const {
    Sizes shape = lead;
    shape.push_back(features);
    return shape;
  }
  Sizes y_shape() const { return shape_of(R); }

  std::int64_t steps() const {
    return batch_sizes.has_value() ? batch_sizes->size(0) : x.dim() == 3 ? x.size(0) : 1;
  }
  // The type of the arithmetic.
  torch::headeronly::ScalarType compute_type() const {
    using torch::headeronly::ScalarType;
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  // `saved` of backward, after checking that it is what forward gave.
  void check_saved(const Tensor& saved, std::int64_t elements) const {
    STD_TORCH_CHECK(saved.dim() == 1 && saved.numel() == elements && saved.is_contiguous() &&
                        same_device(saved, x) && saved.scalar_type() == compute_type(),
                    "fused_rnn: saved should be what the training forward of the same problem "
                    "returned, a 1-D tensor of ",
                    elements, " elements");
  }

  std::int64_t N, I, H, P, R;
};

// What backward gets beside the operands: checked, contiguous.
struct Incoming {
  Tensor y, saved;
  Maybe dy, dh_n, dc_n;
  Maybe dc;            // of every step's c
  std::int64_t needs;  // bit i: the gradient of operand i, in the order of Operands' constructor

  Incoming(const Operands& in, const Tensor& y_, const Tensor& saved_, const Maybe& dy_,
           const Maybe& dh_n_, const Maybe& dc_n_, const Maybe& dc_, std::int64_t needs_)
      : y(checked(y_, "y", in.y_shape(), in.x)),
        saved(saved_),
        dy(checked(dy_, "dy", in.y_shape(), in.x)),
        dh_n(checked(dh_n_, "dh_n", {in.N, in.R}, in.x)),
        dc_n(checked(dc_n_, "dc_n", {in.N, in.H}, in.x)),
        dc(checked(dc_, "dc", in.shape_of(in.H), in.x)),
        needs(needs_) {}

  // Room for the gradient of operand `bit`, empty where it is not needed.
  Tensor room(const Operands& in, int bit, const Maybe& of) const {
    const bool needed = (needs >> bit & 1) != 0 && of.has_value();
    return needed ? in.empty(sizes_of(*of)) : in.empty({0});
  }
  std::array<Tensor, 8> room(const Operands& in) const {
    return {room(in, 0, in.x),    room(in, 1, in.h0),   room(in, 2, in.c0),   room(in, 3, in.w_ih),
            room(in, 4, in.w_hh), room(in, 5, in.b_ih), room(in, 6, in.b_hh), room(in, 7, in.w_hr)};
  }
};

}  // namespace fused_rnn

// The ops' schemas, and the CPU registration: tensors in, plain structs out. PyTorch's dispatcher
// picks the device; the kernels know no torch.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <memory>

#include "checks.h"
#include "cpu/scratch.h"
#include "scan.h"

namespace fused_rnn {
namespace {

using Maybe = std::optional<Tensor>;

const void* read(const Maybe& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }
void* write(Tensor& t) { return t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }

void parallel(int n, void (*body)(int, void*), void* context) {
  torch::stable::parallel_for(
      0, n, 1, [&](std::int64_t begin, std::int64_t) { body(static_cast<int>(begin), context); });
}

std::int64_t gates_of(CellKind cell) {
  return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1;
}

// The operands of one layer and direction, checked, contiguous and kept alive while `args` points
// into them.
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

  void fill(ScanArgs& a, CellKind cell, bool reverse) const {
    a.cell = cell;
    a.dtype = checked_dtype(x);
    a.T = batch_sizes.has_value() ? batch_sizes->size(0) : x.dim() == 3 ? x.size(0) : 1;
    a.N = N, a.I = I, a.H = H, a.P = P;
    a.batch_sizes = static_cast<const std::int64_t*>(read(batch_sizes));
    a.reverse = reverse;
    a.x = x.const_data_ptr();
    a.h0 = h0.const_data_ptr();
    a.c0 = read(c0);
    a.w_ih = w_ih.const_data_ptr();
    a.w_hh = w_hh.const_data_ptr();
    a.b_ih = read(b_ih);
    a.b_hh = read(b_hh);
    a.w_hr = read(w_hr);
    a.threads = static_cast<int>(torch::stable::get_num_threads());
    a.parallel = parallel;
  }

  // Straight to the allocator: torch::stable::new_empty looks its operator up by name at each call.
  Tensor empty(const Sizes& shape,
               std::optional<torch::headeronly::ScalarType> type = std::nullopt) const {
    Sizes strides(shape.size(), 1);
    for (std::size_t d = shape.size(); d-- > 1;) {
      strides[d - 1] = strides[d] * shape[d];
    }
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<std::int64_t>(shape.size()), shape.data(), strides.data(),
        static_cast<std::int32_t>(type.value_or(x.scalar_type())), aoti_torch_device_type_cpu(), 0,
        &handle));
    return Tensor(handle);
  }
  // What backward needs is kept in the type of the arithmetic, in scratch memory: as large as all
  // other outputs together, and wanted again at the next step. At inference nothing is kept.
  Tensor empty_saved(const ScanArgs& a, bool training) const {
    using torch::headeronly::ScalarType;
    const bool is_double = x.scalar_type() == ScalarType::Double;
    const ScalarType type = is_double ? ScalarType::Double : ScalarType::Float;
    const std::int64_t elements = training ? cpu::level().saved_elements(a) : 0;
    if (elements == 0) {
      return empty({0}, type);
    }
    const std::size_t bytes = static_cast<std::size_t>(elements) * (is_double ? 8 : 4);
    const auto release = [bytes](void* block) { scratch_free(block, bytes); };
    std::unique_ptr<void, decltype(release)> block(scratch_allocate(bytes), release);
    const Sizes size{elements}, stride{1};
    Tensor saved = torch::stable::from_blob(block.get(), size, stride, x.device(), type, release);
    block.release();
    return saved;
  }
  Sizes y_shape() const {
    Sizes shape = lead;
    shape.push_back(R);
    return shape;
  }

  std::int64_t N, I, H, P, R;
};

// y, h_n, c_n (LSTM), saved
std::array<Tensor, 4> forward(CellKind cell, const Operands& in, bool reverse, bool training) {
  ForwardArgs a{};
  in.fill(a, cell, reverse);
  const bool lstm = cell == CellKind::kLstm;
  std::array<Tensor, 4> out{in.empty(in.y_shape()), in.empty({in.N, in.R}),
                            lstm ? in.empty({in.N, in.H}) : in.h0, in.empty_saved(a, training)};
  a.y = write(out[0]);
  a.h_n = write(out[1]);
  a.c_n = lstm ? write(out[2]) : nullptr;
  a.saved = training ? write(out[3]) : nullptr;
  if (in.N > 0) {
    cpu::level().forward(a);
  }
  return out;
}

// Gradients of x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr; empty where bit i of `needs` is not set.
std::array<Tensor, 8> backward(CellKind cell, const Operands& in, bool reverse, const Tensor& y,
                               const Tensor& saved, const Maybe& dy, const Maybe& dh_n,
                               const Maybe& dc_n, std::int64_t needs) {
  BackwardArgs a{};
  in.fill(a, cell, reverse);
  const std::int64_t expected = cpu::level().saved_elements(a);
  const bool is_double = in.x.scalar_type() == torch::headeronly::ScalarType::Double;
  STD_TORCH_CHECK(saved.dim() == 1 && saved.numel() == expected && saved.is_contiguous() &&
                      saved.is_cpu() &&
                      saved.scalar_type() == (is_double ? torch::headeronly::ScalarType::Double
                                                        : torch::headeronly::ScalarType::Float),
                  "fused_rnn: saved should be what the training forward of the same problem "
                  "returned, a 1-D tensor of ",
                  expected, " elements");
  const Tensor y_ = checked(y, "y", in.y_shape(), in.x);
  const Maybe dy_ = checked(dy, "dy", in.y_shape(), in.x);
  const Maybe dh = checked(dh_n, "dh_n", {in.N, in.R}, in.x);
  const Maybe dc = checked(dc_n, "dc_n", {in.N, in.H}, in.x);
  a.y = y_.const_data_ptr();
  a.saved = saved.const_data_ptr();
  a.dy = read(dy_);
  a.dh_n = read(dh);
  a.dc_n = read(dc);

  const auto gradient = [&](int bit, const Maybe& of) {
    const bool needed = (needs >> bit & 1) != 0 && of.has_value();
    return needed ? in.empty(sizes_of(*of)) : in.empty({0});
  };
  std::array<Tensor, 8> out{gradient(0, in.x),    gradient(1, in.h0),   gradient(2, in.c0),
                            gradient(3, in.w_ih), gradient(4, in.w_hh), gradient(5, in.b_ih),
                            gradient(6, in.b_hh), gradient(7, in.w_hr)};
  if (in.N == 0) {
    for (Tensor& t : out) {
      torch::stable::zero_(t);
    }
    return out;
  }
  a.dx = write(out[0]), a.dh0 = write(out[1]), a.dc0 = write(out[2]), a.dw_ih = write(out[3]);
  a.dw_hh = write(out[4]), a.db_ih = write(out[5]), a.db_hh = write(out[6]),
  a.dw_hr = write(out[7]);
  cpu::level().backward(a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih,
                                                        Tensor w_hh, Maybe b_ih, Maybe b_hh,
                                                        Maybe w_hr, Maybe batch_sizes, bool reverse,
                                                        bool training) {
  const Operands in(CellKind::kLstm, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes);
  auto out = forward(CellKind::kLstm, in, reverse, training);
  return {out[0], out[1], out[2], out[3]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
    Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh, Maybe w_hr,
    Maybe batch_sizes, bool reverse, Tensor y, Tensor saved, Maybe dy, Maybe dh_n, Maybe dc_n,
    std::int64_t needs) {
  const Operands in(CellKind::kLstm, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes);
  auto g = backward(CellKind::kLstm, in, reverse, y, saved, dy, dh_n, dc_n, needs);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
}

using Forward = std::tuple<Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <CellKind kCell>
Forward simple_forward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh,
                       Maybe batch_sizes, bool reverse, bool training) {
  const Operands in(kCell, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt, batch_sizes);
  auto out = forward(kCell, in, reverse, training);
  return {out[0], out[1], out[3]};
}

template <CellKind kCell>
Backward simple_backward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Maybe b_ih, Maybe b_hh,
                         Maybe batch_sizes, bool reverse, Tensor y, Tensor saved, Maybe dy,
                         Maybe dh_n, std::int64_t needs) {
  const Operands in(kCell, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt, batch_sizes);
  // Bit positions are those of backward(), which counts c0 and w_hr too.
  const std::int64_t wide = (needs & 3) | (needs & 60) << 1;
  auto g = backward(kCell, in, reverse, y, saved, dy, dh_n, std::nullopt, wide);
  return {g[0], g[1], g[3], g[4], g[5], g[6]};
}

std::string simd_level() { return cpu::level().name; }

// The schema is the contract: every op is functional, of fixed arity, and returns no view.
#define FUSED_RNN_SIMPLE_OPS(cell)                                                                \
  cell "_forward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "     \
       "Tensor? batch_sizes, bool reverse, bool training) -> (Tensor, Tensor, Tensor)",           \
      cell                                                                                        \
      "_backward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "     \
      "Tensor? batch_sizes, bool reverse, Tensor y, Tensor saved, Tensor? dy, Tensor? dh_n, int " \
      "needs) "                                                                                   \
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY(fused_rnn, m) {
  m.def(
      "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, "
      "Tensor? w_hr, Tensor? batch_sizes, bool reverse, bool training) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "lstm_backward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, "
      "Tensor? w_hr, Tensor? batch_sizes, bool reverse, Tensor y, Tensor saved, Tensor? dy, "
      "Tensor? dh_n, "
      "Tensor? dc_n, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  for (const char* schema : {FUSED_RNN_SIMPLE_OPS("gru"), FUSED_RNN_SIMPLE_OPS("rnn_tanh"),
                             FUSED_RNN_SIMPLE_OPS("rnn_relu")}) {
    m.def(schema);
  }
  m.def("simd_level() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("gru_forward", TORCH_BOX(&simple_forward<CellKind::kGru>));
  m.impl("gru_backward", TORCH_BOX(&simple_backward<CellKind::kGru>));
  m.impl("rnn_tanh_forward", TORCH_BOX(&simple_forward<CellKind::kRnnTanh>));
  m.impl("rnn_tanh_backward", TORCH_BOX(&simple_backward<CellKind::kRnnTanh>));
  m.impl("rnn_relu_forward", TORCH_BOX(&simple_forward<CellKind::kRnnRelu>));
  m.impl("rnn_relu_backward", TORCH_BOX(&simple_backward<CellKind::kRnnRelu>));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
}

}  // namespace
}  // namespace fused_rnn

// Importing fused_rnn._C loads this library, and with it the registrations above.
extern "C" PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

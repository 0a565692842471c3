// The ops' definition, and the CPU registration: tensors in, plain structs out. PyTorch's dispatcher
// picks the device; the kernels know no torch.
#define Py_LIMITED_API 0x030A0000
#include "ops.h"

#include <Python.h>

#include <memory>

#include "cpu/scratch.h"
#include "marked_ops.h"
#include "parallel.h"
#include "quantized_ops.h"

namespace fused_rnn {
namespace {

void fill(ScanArgs& a, const Operands& in, CellKind cell, bool reverse) {
  a.cell = cell;
  a.dtype = checked_dtype(in.x);
  a.T = in.steps();
  a.N = in.N, a.I = in.I, a.H = in.H, a.P = in.P;
  a.batch_sizes = static_cast<const std::int64_t*>(read(in.batch_sizes));
  a.reverse = reverse;
  a.x = in.x.const_data_ptr();
  a.h0 = in.h0.const_data_ptr();
  a.c0 = read(in.c0);
  a.w_ih = in.w_ih.const_data_ptr();
  a.w_hh = in.w_hh.const_data_ptr();
  a.b_ih = read(in.b_ih);
  a.b_hh = read(in.b_hh);
  a.w_hr = read(in.w_hr);
  a.threads = static_cast<int>(torch::stable::get_num_threads());
  a.parallel = parallel;
}

// What backward needs is kept in the type of the arithmetic, in scratch memory: as large as all
// other outputs together, and wanted again at the next step. At inference nothing is kept.
Tensor empty_saved(const Operands& in, const ScanArgs& a, bool training) {
  const auto type = in.compute_type();
  const std::int64_t elements = training ? cpu::level().saved_elements(a) : 0;
  if (elements == 0) {
    return in.empty({0}, type);
  }
  const std::size_t bytes =
      static_cast<std::size_t>(elements) * (type == torch::headeronly::ScalarType::Double ? 8 : 4);
  const auto release = [bytes](void* block) { scratch_free(block, bytes); };
  std::unique_ptr<void, decltype(release)> block(scratch_allocate(bytes), release);
  const Sizes size{elements}, stride{1};
  Tensor saved = torch::stable::from_blob(block.get(), size, stride, in.x.device(), type, release);
  block.release();
  return saved;
}

struct Cpu {
  static std::array<Tensor, 5> forward(CellKind cell, const Operands& in, bool reverse,
                                       bool training, bool every_c) {
    ForwardArgs a{};
    fill(a, in, cell, reverse);
    const bool lstm = cell == CellKind::kLstm;
    std::array<Tensor, 5> out{
        in.empty(in.y_shape()), in.empty({in.N, in.R}), lstm ? in.empty({in.N, in.H}) : in.h0,
        in.empty(every_c ? in.shape_of(in.H) : Sizes{0}), empty_saved(in, a, training)};
    a.y = write(out[0]);
    a.h_n = write(out[1]);
    a.c_n = lstm ? write(out[2]) : nullptr;
    a.training = training;
    a.c = write(out[3]);
    a.saved = write(out[4]);
    if (in.N > 0) {
      cpu::level().forward(a);
    }
    return out;
  }

  static std::array<Tensor, 2> step(CellKind cell, const Operands& in) {
    STD_TORCH_CHECK(in.x.dim() == 2, "fused_rnn: x should have 2 dimensions (N, I), got ",
                    in.x.dim());
    ForwardArgs a{};
    fill(a, in, cell, false);
    const bool lstm = cell == CellKind::kLstm;
    std::array<Tensor, 2> out{in.empty({in.N, in.H}), lstm ? in.empty({in.N, in.H}) : in.h0};
    a.y = a.h_n = write(out[0]);
    a.c_n = lstm ? write(out[1]) : nullptr;
    if (in.N > 0) {
      cpu::level().forward(a);
    }
    return out;
  }

  static std::array<Tensor, 8> backward(CellKind cell, const Operands& in, bool reverse,
                                        const Incoming& given) {
    BackwardArgs a{};
    fill(a, in, cell, reverse);
    in.check_saved(given.saved, cpu::level().saved_elements(a));
    a.y = given.y.const_data_ptr();
    a.saved = read(given.saved);
    a.dy = read(given.dy);
    a.dh_n = read(given.dh_n);
    a.dc_n = read(given.dc_n);
    a.dc = read(given.dc);
    std::array<Tensor, 8> out = given.room(in);
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
};

// On the CPU lengths and resets can be read at once, and make packed segments.
struct NoMarks {
  static std::array<Tensor, 5> forward(CellKind, const Operands&, const Marked&, bool, bool, bool) {
    refuse();
    return {};
  }
  static std::array<Tensor, 9> backward(CellKind, const Operands&, const Marked&, bool,
                                        const Incoming&, std::int64_t) {
    refuse();
    return {};
  }

 private:
  static void refuse() {
    STD_TORCH_CHECK(false,
                    "fused_rnn: x should be on a CUDA device with marks, got one on the CPU");
  }
};

// y, h_n, c_n (LSTM; else empty), c (every step's; empty where not wanted)
std::tuple<Tensor, Tensor, Tensor, Tensor> quantized_forward(std::string cell, Tensor x, Tensor h0,
                                                             Maybe c0, Tensor w_ih, Maybe s_ih,
                                                             Tensor w_hh, Maybe s_hh, Maybe b_ih,
                                                             Maybe b_hh, Maybe w_hr, Maybe s_hr,
                                                             Maybe batch_sizes, bool reverse,
                                                             bool every_c) {
  QuantizedArgs a{};
  const CellKind kind = checked_cell(cell);
  const QuantizedOperands in(kind, x, h0, c0, w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, w_hr, s_hr,
                             batch_sizes, a);
  const bool lstm = kind == CellKind::kLstm;
  std::array<Tensor, 4> out{empty_like(in.x, in.shape_of(in.R)), empty_like(in.x, {in.N, in.R}),
                            empty_like(in.x, lstm ? Sizes{in.N, in.H} : Sizes{0}),
                            empty_like(in.x, lstm && every_c ? in.shape_of(in.H) : Sizes{0})};
  a.y = write(out[0]), a.h_n = write(out[1]), a.c_n = write(out[2]), a.c = write(out[3]);
  a.reverse = reverse;
  a.threads = static_cast<int>(torch::stable::get_num_threads());
  a.parallel = parallel;
  if (in.N > 0) {
    cpu::quantized_level(a.stored).forward(a);
  }
  return {out[0], out[1], out[2], out[3]};
}

// The level that runs weights stored so.
std::string quantized_level(torch::headeronly::ScalarType stored) {
  return cpu::quantized_level(stored == torch::headeronly::ScalarType::Char ? Stored::kInt8
                                                                            : Stored::kBFloat16)
      .name;
}

std::string simd_level() { return cpu::level().name; }

// The level that runs a dense problem.
std::string simd_level_of(std::string cell, torch::headeronly::ScalarType dtype, std::int64_t T,
                          std::int64_t N, std::int64_t H, std::int64_t P) {
  ScanArgs a{};
  a.cell = checked_cell(cell);
  a.dtype = checked_dtype(dtype);
  a.T = T, a.N = N, a.I = 1, a.H = H, a.P = P;
  return cpu::level().name_for(a);
}

// Elements of `saved` for each row of the data: what tells torch's tracers its size.
std::int64_t saved_per_row(std::string cell, torch::headeronly::ScalarType dtype, std::int64_t H) {
  STD_TORCH_CHECK(H > 0, "fused_rnn: H should be positive, got ", H);
  ScanArgs a{};
  a.cell = checked_cell(cell);
  a.dtype = checked_dtype(dtype);
  a.T = a.N = a.I = 1;
  a.H = H;
  return cpu::level().saved_elements(a);
}

STABLE_TORCH_LIBRARY(fused_rnn, m) {
  define_ops(m);
  define_marked_ops(m);
  define_quantized_ops(m);
  m.def("simd_level() -> str");
  m.def("simd_level_of(str cell, ScalarType dtype, int T, int N, int H, int P) -> str");
  m.def("saved_per_row(str cell, ScalarType dtype, int H) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  implement_ops<Cpu>(m);
  implement_steps<Cpu>(m);
  implement_marked_ops<NoMarks>(m);
  m.impl("quantized_forward", TORCH_BOX(&quantized_forward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
  m.impl("quantized_level", TORCH_BOX(&quantized_level));
  m.impl("simd_level_of", TORCH_BOX(&simd_level_of));
  m.impl("saved_per_row", TORCH_BOX(&saved_per_row));
}

}  // namespace
}  // namespace fused_rnn

// Importing fused_rnn._C loads this library, and with it the registrations above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

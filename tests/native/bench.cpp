// The test bench: drives the kernels of each SIMD level, and the arithmetic below them, with NumPy
// arrays. The kernels come from the library that the package ships, so what is tested is what runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "levels.h"
#include "math_level.h"
#include "parallels.h"

namespace py = pybind11;

namespace fused_rnn {

#define FUSED_RNN_DECLARE(level)       \
  namespace level {                    \
  extern const cpu::Level kLevel;      \
  extern const bench::MathLevel kMath; \
  }
FUSED_RNN_BENCH_LEVELS(FUSED_RNN_DECLARE)
#undef FUSED_RNN_DECLARE

namespace bench {
namespace {

struct NamedLevel {
  const char* name;
  const cpu::Level& level;
  const MathLevel& math;
};

const NamedLevel kLevels[] = {
#define FUSED_RNN_ROW(level) {#level, level::kLevel, level::kMath},
    FUSED_RNN_BENCH_LEVELS(FUSED_RNN_ROW)
#undef FUSED_RNN_ROW
};

template <class Rows>
const auto& named(const Rows& rows, const std::string& name) {
  for (const auto& row : rows) {
    if (name == row.name) {
      return row;
    }
  }
  throw std::invalid_argument("the bench knows no " + name);
}

struct NamedCell {
  const char* name;
  CellKind kind;
};
constexpr NamedCell kCells[] = {{"lstm", CellKind::kLstm},
                                {"gru", CellKind::kGru},
                                {"rnn_tanh", CellKind::kRnnTanh},
                                {"rnn_relu", CellKind::kRnnRelu}};

struct NamedDtype {
  const char* name;
  Dtype dtype;
};
constexpr NamedDtype kDtypes[] = {{"float32", Dtype::kFloat},
                                  {"float64", Dtype::kDouble},
                                  {"float16", Dtype::kHalf},
                                  {"bfloat16", Dtype::kBFloat16}};

// Members that the last scan asked for; 0 where it did without Parallel.
int last_members = 0;

template <Parallel kRun>
void counted(int n, Body body, void* context) {
  last_members = n;
  kRun(n, body, context);
}

struct NamedParallel {
  const char* name;
  Parallel run;
};
constexpr NamedParallel kParallels[] = {{"threads", counted<threads>},
                                        {"only_first", counted<only_first>},
                                        {"only_last", counted<only_last>},
                                        {"in_turn", counted<in_turn>},
                                        {"late", counted<late>},
                                        {"crowded", counted<crowded>},
                                        {"interrupted", counted<interrupted>}};

// The address of an array's first byte; null where `arrays` has none of this name.
void* address(const py::dict& arrays, const char* name) {
  return arrays.contains(name) ? const_cast<void*>(arrays[name].cast<py::array>().data()) : nullptr;
}

void fill(ScanArgs& a, const py::dict& problem, const py::dict& arrays) {
  a.cell = named(kCells, problem["cell"].cast<std::string>()).kind;
  a.dtype = named(kDtypes, problem["dtype"].cast<std::string>()).dtype;
  a.T = problem["T"].cast<std::int64_t>();
  a.N = problem["N"].cast<std::int64_t>();
  a.I = problem["I"].cast<std::int64_t>();
  a.H = problem["H"].cast<std::int64_t>();
  a.P = problem["P"].cast<std::int64_t>();
  a.reverse = problem["reverse"].cast<bool>();
  a.threads = problem["threads"].cast<int>();
  a.parallel = named(kParallels, problem["parallel"].cast<std::string>()).run;
  a.batch_sizes = static_cast<const std::int64_t*>(address(arrays, "batch_sizes"));
  a.x = address(arrays, "x");
  a.h0 = address(arrays, "h0");
  a.c0 = address(arrays, "c0");
  a.w_ih = address(arrays, "w_ih");
  a.w_hh = address(arrays, "w_hh");
  a.b_ih = address(arrays, "b_ih");
  a.b_hh = address(arrays, "b_hh");
  a.w_hr = address(arrays, "w_hr");
}

std::int64_t saved_elements(const std::string& level, const py::dict& problem,
                            const py::dict& arrays) {
  ScanArgs a{};
  fill(a, problem, arrays);
  return named(kLevels, level).level.saved_elements(a);
}

void forward(const std::string& level, const py::dict& problem, const py::dict& arrays) {
  ForwardArgs a{};
  fill(a, problem, arrays);
  a.y = address(arrays, "y");
  a.h_n = address(arrays, "h_n");
  a.c_n = address(arrays, "c_n");
  a.training = arrays.contains("saved");
  a.saved = address(arrays, "saved");
  last_members = 0;
  const py::gil_scoped_release release;
  named(kLevels, level).level.forward(a);
}

void backward(const std::string& level, const py::dict& problem, const py::dict& arrays) {
  BackwardArgs a{};
  fill(a, problem, arrays);
  a.y = address(arrays, "y");
  a.saved = address(arrays, "saved");
  a.dy = address(arrays, "dy");
  a.dh_n = address(arrays, "dh_n");
  a.dc_n = address(arrays, "dc_n");
  a.dx = address(arrays, "dx");
  a.dh0 = address(arrays, "dh0");
  a.dc0 = address(arrays, "dc0");
  a.dw_ih = address(arrays, "dw_ih");
  a.dw_hh = address(arrays, "dw_hh");
  a.db_ih = address(arrays, "db_ih");
  a.db_hh = address(arrays, "db_hh");
  a.dw_hr = address(arrays, "dw_hr");
  last_members = 0;
  const py::gil_scoped_release release;
  named(kLevels, level).level.backward(a);
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class To, class From, class Apply>
Array<To> mapped(const Array<From>& in, Apply&& apply) {
  Array<To> out(in.size());
  apply(in.data(), out.mutable_data(), static_cast<std::int64_t>(in.size()));
  return out;
}

// `function` as bench::Function counts.
py::object evaluate(const std::string& level, int function, const py::array& x) {
  const MathLevel& m = named(kLevels, level).math;
  if (x.itemsize() == sizeof(double)) {
    return mapped<double>(Array<double>(x), [&](auto... a) { m.of_double(function, a...); });
  }
  return mapped<float>(Array<float>(x), [&](auto... a) { m.of_float(function, a...); });
}

Array<float> widen(const std::string& level, const std::string& dtype,
                   const Array<std::uint16_t>& bits) {
  const MathLevel& m = named(kLevels, level).math;
  const bool half = named(kDtypes, dtype).dtype == Dtype::kHalf;
  return mapped<float>(bits, half ? m.widen_half : m.widen_bfloat16);
}

Array<std::uint16_t> narrow(const std::string& level, const std::string& dtype,
                            const Array<float>& x) {
  const MathLevel& m = named(kLevels, level).math;
  const bool half = named(kDtypes, dtype).dtype == Dtype::kHalf;
  return mapped<std::uint16_t>(x, half ? m.narrow_half : m.narrow_bfloat16);
}

// Whether this thread holds numbers in tile registers, as the CPU keeps count.
bool tiles_in_use() {
#if defined(__x86_64__)
  if (amx_missing() == nullptr) {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (low & (1u << 18)) != 0;
  }
#endif
  return false;
}

// name -> None, or what the CPU lacks
py::dict levels() {
  py::dict all;
  for (const NamedLevel& row : kLevels) {
    const char* missing = lacks(row.name);
    all[row.name] = missing == nullptr ? py::object(py::none()) : py::str(missing);
  }
  return all;
}

}  // namespace
}  // namespace bench
}  // namespace fused_rnn

PYBIND11_MODULE(_bench, m) {
  using namespace fused_rnn::bench;
  m.def("levels", levels);
  m.def("tiles_in_use", tiles_in_use);
  m.def("last_members", [] { return last_members; });
  m.def("saved_elements", saved_elements);
  m.def("forward", forward);
  m.def("backward", backward);
  m.def("evaluate", evaluate);
  m.def("widen", widen);
  m.def("narrow", narrow);
}

// The ops of variants of the cells, for the CPU: what goes from step to step (cpu/variants/args.h).
//
//   variant_scan: y, h_n, c_n (LSTM; else empty), every step's c (empty where not wanted), saved
//   variant_scan_backward: gradients of gates_x, of W_hh's product and of W_hr's (empty where they are
//   none of their own), of h0 and c0, of the variant's parameters, and of b_ih, followed by that of b_hh's
//   last third where that is none of b_ih's
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/variants/args.h"
#include "operands.h"
#include "parallel.h"
#include "variant_options.h"

namespace fused_rnn {
namespace {

// The operands of a scan, checked, contiguous and kept alive.
struct VariantOperands {
  VariantOptions o;
  Tensor gates_x, h0;
  Maybe c0;
  Tensor w_hh;
  Maybe b_ih, b_hh, w_hr, extra, mask, draws, batch_sizes;
  std::int64_t T, N, H, P, R, rows, GH, E;

  VariantOperands(const std::string& cell, Tensor gates_x_, Tensor h0_, Maybe c0_, Tensor w_hh_,
                  Maybe b_ih_, Maybe b_hh_, Maybe w_hr_, Maybe extra_, Maybe mask_, Maybe draws_,
                  Maybe sizes)
      : o(options_of(cell)), gates_x(gates_x_), h0(h0_), c0(c0_), w_hh(w_hh_) {
    using torch::headeronly::ScalarType;
    const auto type = gates_x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "fused_rnn: gates_x should be of dtype float32 or float64, got ",
                    torch::headeronly::toString(type));
    STD_TORCH_CHECK(gates_x.dim() == 2 && h0.dim() == 2,
                    "fused_rnn: gates_x should have 2 dimensions (rows, G*H), and h0 (N, R)");
    rows = gates_x.size(0), GH = gates_x.size(1), H = GH / o.gates;
    N = h0.size(0), P = w_hr_.has_value() ? w_hr_->size(0) : 0, R = P > 0 ? P : H;
    STD_TORCH_CHECK(H > 0 && GH == o.gates * H && H % o.heads == 0 && R % o.heads == 0,
                    "fused_rnn: gates_x should have G*H features, G = ", o.gates, ", got ", GH);
    STD_TORCH_CHECK(!o.lstm() || c0.has_value(), "fused_rnn: c0 should be given, of an LSTM");
    T = sizes.has_value() ? sizes->size(0) : N > 0 ? rows / N : 0;
    STD_TORCH_CHECK(sizes.has_value() || T * N == rows,
                    "fused_rnn: gates_x should have T*N rows, N = ", N, ", got ", rows);
    const Tensor& x = gates_x;
    gates_x = checked(gates_x, "gates_x", {rows, GH}, x);
    h0 = checked(h0, "h0", {N, R}, x);
    c0 = checked(c0, "c0", {N, H}, x);
    w_hh = checked(w_hh, "w_hh",
                   o.heads > 1 ? Sizes{o.heads, GH / o.heads, R / o.heads} : Sizes{GH, R}, x);
    b_ih = checked(b_ih_, "b_ih", {GH}, x);
    b_hh = checked(b_hh_, "b_hh", {GH}, x);
    w_hr = checked(w_hr_, "w_hr", {P, H}, x);
    E = (o.norm ? 2 * GH + (o.lstm() ? 2 * H : 0) : 0) +
        (o.peepholes ? (o.coupled ? 2 : 3) * H : 0);
    extra = checked(extra_, "extra", {E}, x);
    STD_TORCH_CHECK(E == 0 || extra.has_value(), "fused_rnn: extra should have ", E, " values");
    mask = checked(mask_, "mask", {N, R}, x);
    STD_TORCH_CHECK(!mask.has_value() || o.dropout > 0,
                    "fused_rnn: mask goes with recurrent_dropout, got ", cell);
    if (draws_.has_value()) {
      STD_TORCH_CHECK(draws_->scalar_type() == ScalarType::Long && has_shape(*draws_, {N, 3}),
                      "fused_rnn: draws should be int64 of shape ", to_string({N, 3}), ", got ",
                      to_string(sizes_of(*draws_)));
      draws = draws_->is_contiguous() ? *draws_ : torch::stable::contiguous(*draws_);
    }
    if (sizes.has_value()) {
      batch_sizes = checked_batch_sizes(*sizes, N, rows);
    }
  }

  void fill(VariantArgs& a, bool reverse) const {
    a.options = o;
    a.wide = gates_x.scalar_type() == torch::headeronly::ScalarType::Double;
    a.T = T, a.N = N, a.H = H, a.P = P;
    a.batch_sizes = static_cast<const std::int64_t*>(read(batch_sizes));
    a.reverse = reverse;
    a.gates_x = gates_x.const_data_ptr();
    a.h0 = h0.const_data_ptr();
    a.c0 = o.lstm() ? read(c0) : nullptr;
    a.w_hh = w_hh.const_data_ptr();
    a.b_ih = read(b_ih);
    a.b_hh = read(b_hh);
    a.w_hr = read(w_hr);
    const char* own = static_cast<const char*>(read(extra));
    const auto next = [&](std::int64_t values) {
      const char* const at = own;
      own += values * (a.wide ? 8 : 4);
      return at;
    };
    if (o.norm) {
      a.ln_ih = next(GH);
      a.ln_hh = next(GH);
      if (o.lstm()) {
        a.ln_c = next(H);
        a.ln_c_bias = next(H);
      }
    }
    a.peephole = o.peepholes ? own : nullptr;
    a.mask = read(mask);
    a.draws = static_cast<const std::int64_t*>(read(draws));
    a.threads = static_cast<int>(torch::stable::get_num_threads());
    a.parallel = parallel;
  }

  Tensor empty(const Sizes& shape) const { return empty_like(gates_x, shape); }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scan(std::string cell, Tensor gates_x, Tensor h0,
                                                        Maybe c0, Tensor w_hh, Maybe b_ih,
                                                        Maybe b_hh, Maybe w_hr, Maybe extra,
                                                        Maybe mask, Maybe draws, Maybe batch_sizes,
                                                        bool reverse, bool training, bool every_c) {
  const VariantOperands in(cell, gates_x, h0, c0, w_hh, b_ih, b_hh, w_hr, extra, mask, draws,
                           batch_sizes);
  const VariantKept kept(in.o, in.H, in.P);
  const bool lstm = in.o.lstm();
  Tensor y = in.empty({in.rows, in.R}), h_n = in.empty({in.N, in.R});
  Tensor c_n = in.empty(lstm ? Sizes{in.N, in.H} : Sizes{0});
  Tensor c = in.empty(every_c && lstm ? Sizes{in.rows, in.H} : Sizes{0});
  Tensor saved = in.empty(training ? Sizes{in.rows, kept.total} : Sizes{0});
  VariantForwardArgs a{};
  in.fill(a, reverse);
  a.y = write(y), a.h_n = write(h_n), a.c_n = write(c_n), a.c = write(c), a.saved = write(saved);
  if (in.N > 0) {
    cpu::variant_kernels().forward(a);
  }
  return {y, h_n, c_n, c, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scan_backward(
    std::string cell, Tensor gates_x, Tensor h0, Maybe c0, Tensor w_hh, Maybe b_ih, Maybe b_hh,
    Maybe w_hr, Maybe extra, Maybe mask, Maybe draws, Maybe batch_sizes, bool reverse, Tensor saved,
    Maybe dy, Maybe dh_n, Maybe dc_n, Maybe dc) {
  const VariantOperands in(cell, gates_x, h0, c0, w_hh, b_ih, b_hh, w_hr, extra, mask, draws,
                           batch_sizes);
  const VariantKept kept(in.o, in.H, in.P);
  const Tensor& x = in.gates_x;
  saved = checked(saved, "saved", {in.rows, kept.total}, x);
  dy = checked(dy, "dy", {in.rows, in.R}, x);
  dh_n = checked(dh_n, "dh_n", {in.N, in.R}, x);
  dc_n = checked(dc_n, "dc_n", {in.N, in.H}, x);
  dc = checked(dc, "dc", {in.rows, in.H}, x);
  Tensor dgates = in.empty({in.rows, in.GH});
  Tensor dsums = in.empty(in.o.split() ? Sizes{in.rows, in.GH} : Sizes{0});
  Tensor dproj = in.empty(in.P > 0 ? Sizes{in.rows, in.P} : Sizes{0});
  Tensor dh0 = in.empty({in.N, in.R}), dc0 = in.empty(in.o.lstm() ? Sizes{in.N, in.H} : Sizes{0});
  Tensor dextra = in.empty({in.E}), dbias = in.empty({in.GH + (in.o.own_bias() ? in.H : 0)});
  VariantBackwardArgs a{};
  in.fill(a, reverse);
  a.saved = saved.const_data_ptr();
  a.dy = read(dy), a.dh_n = read(dh_n), a.dc_n = read(dc_n), a.dc = read(dc);
  a.dgates = write(dgates), a.dsums = write(dsums), a.dproj = write(dproj), a.dh0 = write(dh0);
  a.dc0 = write(dc0), a.dextra = write(dextra), a.dbias = write(dbias);
  if (in.N > 0) {
    cpu::variant_kernels().backward(a);
  } else {
    torch::stable::zero_(dextra);
    torch::stable::zero_(dbias);
  }
  return {dgates, dsums, dproj, dh0, dc0, dextra, dbias};
}

// How many values a row of `saved` has.
std::int64_t kept_per_row(std::string cell, std::int64_t H, std::int64_t P) {
  return VariantKept(options_of(cell), H, P).total;
}

#define FUSED_RNN_OPERANDS                                                                     \
  "str cell, Tensor gates_x, Tensor h0, Tensor? c0, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, " \
  "Tensor? w_hr, Tensor? extra, Tensor? mask, Tensor? draws, Tensor? batch_sizes, bool reverse, "

STABLE_TORCH_LIBRARY_FRAGMENT(fused_rnn, m) {
  m.def("variant_scan(" FUSED_RNN_OPERANDS
        "bool training, bool every_c) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("variant_scan_backward(" FUSED_RNN_OPERANDS
        "Tensor saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("variant_kept_per_row(str cell, int H, int P) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("variant_scan", TORCH_BOX(&scan));
  m.impl("variant_scan_backward", TORCH_BOX(&scan_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CompositeExplicitAutograd, m) {
  m.impl("variant_kept_per_row", TORCH_BOX(&kept_per_row));
}

}  // namespace
}  // namespace fused_rnn

// What variants of the cells are asked for: options and operands of a scan, in plain structs. No torch.
//
// Only what goes from step to step is here. The input's product W_ih x comes made, and the gradients of
// the weights are products of what backward leaves.
//
// Dims as in scan.h; k heads of u = H/k units hear R/k of h. All arrays are row-major and contiguous, of
// float, or of double where `wide`.
#pragma once

#include <cstdint>

#include "../../scan.h"

namespace fused_rnn {

struct VariantOptions {
  CellKind cell = CellKind::kLstm;
  int gates = 1, heads = 1;
  double dropout = 0, zoneout_h = 0, zoneout_c = 0, eps = 0, alpha = 0, beta = 0;
  double cell_clip = 0, proj_clip = 0;  // 0: none
  bool norm = false, reset_before = false, hard = false, relu = false;
  bool peepholes = false, coupled = false;

  VariantOptions() = default;
  VariantOptions(CellKind cell_, int gates_) : cell(cell_), gates(gates_) {}

  bool lstm() const { return cell == CellKind::kLstm; }
  bool gru() const { return cell == CellKind::kGru; }
  // The products with x and with h have gradients apart.
  bool split() const { return norm || (gru() && !reset_before); }
  // The gradient of b_hh's last third is none of the others.
  bool own_bias() const { return gru() && !reset_before; }
};

// Where the values of a step's row lie that backward needs; offsets into `total` values.
struct VariantKept {
  std::int64_t heard, reset_h, hidden;  // what the products take: (R,), (H,), (H,)
  std::int64_t gates;                   // (4*H,) or (3*H,)
  std::int64_t c, c_kept;               // the new c, and what zoneout made of it
  std::int64_t sums, proj;              // before their norm (G*H,); before zoneout (P,)
  std::int64_t past;                    // a GRU's h before the step, which is heard but for dropout
  std::int64_t stats;                   // mean and scale of each norm, in the order below
  std::int64_t total;

  // The norms of a row: of W_ih x, of W_hh h, and of c or of a second recurrent product, as no cell has
  // both.
  static constexpr int kOfX = 0, kOfH = 1, kOfC = 2, kOfLate = 2;
  static constexpr std::int64_t kStats = 2 * 3;

  VariantKept(const VariantOptions& o, std::int64_t H, std::int64_t P) {
    std::int64_t at = 0;
    const auto room = [&at](std::int64_t values) { return (at += values) - values; };
    heard = room(P > 0 ? P : H);
    reset_h = room(o.reset_before ? H : 0);
    hidden = room(P > 0 ? H : 0);
    gates = room(o.lstm() || (o.gru() && !o.reset_before) ? 4 * H : o.gru() ? 3 * H : H);
    c = room(o.lstm() ? H : 0);
    c_kept = o.lstm() && o.zoneout_c > 0 ? room(H) : c;
    sums = room(o.norm ? o.gates * H : 0);
    proj = room(o.proj_clip > 0 ? P : 0);
    past = o.gru() && o.dropout > 0 ? room(H) : heard;
    stats = room(!o.norm ? 0 : o.lstm() || o.reset_before ? kStats : 2 * 2);
    total = at;
  }
};

struct VariantArgs {
  VariantOptions options;
  bool wide;
  std::int64_t T, N, H, P;
  const std::int64_t* batch_sizes;  // as in ScanArgs
  bool reverse;
  const void* gates_x;        // (rows, G*H)  W_ih x; backward reads it with norms alone
  const void* h0;             // (N, R)
  const void* c0;             // (N, H)       LSTM; null otherwise, and so below
  const void* w_hh;           // (k, G*u, R/k)
  const void* b_ih;           // (G*H,)       null: zero, and so b_hh
  const void* b_hh;           // (G*H,)
  const void* w_hr;           // (P, H)
  const void* ln_ih;          // (G*H,)       with norms
  const void* ln_hh;          // (G*H,)
  const void* ln_c;           // (H,)
  const void* ln_c_bias;      // (H,)
  const void* peephole;       // (3*H,), or (2*H,) where the gates are coupled
  const void* mask;           // (N, R)       null: none is dropped
  const std::int64_t* draws;  // (N, 3)       seed, first step, number; null: zoneout's expectation
  int threads;
  Parallel parallel;
};

struct VariantForwardArgs : VariantArgs {
  void* y;      // (rows, R)
  void* h_n;    // (N, R)
  void* c_n;    // (N, H)
  void* c;      // (rows, H)   every step's; null: not wanted
  void* saved;  // (rows, VariantKept::total)   null: nothing is kept
};

struct VariantBackwardArgs : VariantArgs {
  const void* saved;
  const void* dy;    // (rows, R)    null: zero
  const void* dh_n;  // (N, R)       null: zero
  const void* dc_n;  // (N, H)       null: zero
  const void* dc;    // (rows, H)    null: zero
  void* dgates;      // (rows, G*H)  of gates_x
  void* dsums;       // (rows, G*H)  of W_hh h, where options.split()
  void* dproj;       // (rows, P)    of W_hr's product, where P > 0
  void* dh0;         // (N, R)
  void* dc0;         // (N, H)
  void*
      dextra;   // ln_ih, ln_hh, ln_c, ln_c_bias, peephole one after the other, those that there are
  void* dbias;  // (G*H,)       of b_ih; then (H,) of b_hh's last third, where options.own_bias()
};

namespace cpu {

struct VariantKernels {
  void (*forward)(const VariantForwardArgs&);
  void (*backward)(const VariantBackwardArgs&);
};

// Those of the level that runs here; amx's are avx512's.
const VariantKernels& variant_kernels();

}  // namespace cpu
}  // namespace fused_rnn

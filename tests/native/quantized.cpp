// Runs a quantized scan on the level that is given by its address, without torch.
#include "../../csrc/quantized.h"

namespace {

void in_turn(int n, void (*body)(int, void*), void* context) {
  for (int i = 0; i < n; ++i) {
    body(i, context);
  }
}

}  // namespace

// `sizes`: cell, T, N, I, H, P, reverse, stored. `operands`: x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr,
// s_ih, s_hh, s_hr, batch_sizes, y, h_n, c_n, c; null where there is none.
extern "C" void quantized_scan(const void* level, const std::int64_t* sizes, void* const* operands,
                               int threads) {
  using namespace fused_rnn;
  QuantizedArgs a{};
  a.cell = static_cast<CellKind>(sizes[0]);
  a.dtype = Dtype::kFloat;
  a.T = sizes[1], a.N = sizes[2], a.I = sizes[3], a.H = sizes[4], a.P = sizes[5];
  a.reverse = sizes[6] != 0;
  a.stored = static_cast<Stored>(sizes[7]);
  a.x = operands[0], a.h0 = operands[1], a.c0 = operands[2], a.w_ih = operands[3];
  a.w_hh = operands[4], a.b_ih = operands[5], a.b_hh = operands[6], a.w_hr = operands[7];
  a.s_ih = static_cast<const float*>(operands[8]);
  a.s_hh = static_cast<const float*>(operands[9]);
  a.s_hr = static_cast<const float*>(operands[10]);
  a.batch_sizes = static_cast<const std::int64_t*>(operands[11]);
  a.y = operands[12], a.h_n = operands[13], a.c_n = operands[14], a.c = operands[15];
  a.threads = threads;
  a.parallel = in_turn;
  static_cast<const cpu::QuantizedLevel*>(level)->forward(a);
}

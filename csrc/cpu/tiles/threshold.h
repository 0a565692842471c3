// Which calls tiles can take, and which they pay for.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Calls f(cell, element) where tiles can take a problem at all; returns what it returns, or false.
template <class F>
bool dispatch_tiles(const ScanArgs& a, F&& f) {
  const auto with_cell = [&](auto element) {
    switch (a.cell) {
      case CellKind::kLstm:
        return f(Lstm{}, element);
      case CellKind::kGru:
        return f(Gru{}, element);
      case CellKind::kRnnRelu:
        return f(Rnn<true>{}, element);
      default:
        return f(Rnn<false>{}, element);
    }
  };
  if (a.P > 0) {
    return false;
  }
  return a.dtype == Dtype::kFloat      ? with_cell(float{})
         : a.dtype == Dtype::kBFloat16 ? with_cell(BFloat16{})
                                       : false;
}

// Tiles have 16 rows, used or not, and weights are packed in pieces: what a call has to bring for that
// to be faster than AVX-512. Over AVX-512, forward and backward, one thread of a Xeon with amx_bf16,
// beside other work: float32 LSTM at H = 256, N = 8: 0.94, 0.78; N = 12: 1.21, 1.08; N = 32: 1.36, 1.18;
// at N = 16, H = 64: 1.00, 0.84; H = 128: 1.15, 1.10; H = 512: 1.23, 1.29. RNN at N = 16, H = 128: 1.00,
// 0.90; N = 32, H = 256: 1.28, 1.13. bfloat16 gains twofold and more from N = 8 on.
inline bool pays(const ScanArgs& a) {
#if defined(FUSED_RNN_TILES_ALWAYS)  // tests
  return true;
#else
  constexpr std::int64_t kTotalRows = 128;
  const bool plain = a.cell == CellKind::kRnnTanh || a.cell == CellKind::kRnnRelu;
  const bool pieces = a.dtype == Dtype::kFloat;
  const std::int64_t fewest = pieces ? 12 : 2, units = !pieces ? 64 : plain ? 256 : 128;
  const std::int64_t rows = Steps(a).total();
  return a.H >= units && rows >= kTotalRows && rows >= fewest * a.T;
#endif
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

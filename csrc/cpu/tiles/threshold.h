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
// to be faster than AVX-512. Measured on a Xeon with amx_bf16 (docs/backends.md). A bfloat16 scan is
// so much faster on tiles that few rows are enough.
inline bool pays(const ScanArgs& a) {
#if defined(FUSED_RNN_TILES_ALWAYS)  // tests
  return true;
#else
  constexpr std::int64_t kUnits = 64, kTotalRows = 128;
  const std::int64_t fewest = a.dtype == Dtype::kBFloat16 ? 2 : 8;
  const std::int64_t rows = Steps(a).total();
  return a.H >= kUnits && rows >= kTotalRows && rows >= fewest * a.T;
#endif
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

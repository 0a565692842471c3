// Scans with marks: step by step always.
#pragma once

#include "path.h"

namespace fused_rnn {
namespace cuda {

struct MarkedCuda {
  static std::array<Tensor, 5> forward(CellKind cell, const Operands& in, const Marked& marked,
                                       bool reverse, bool training, bool every_c) {
    const DeviceGuard guard(in.x);
    Marking marking(cell, in, marked, reverse);
    return Stepwise(cell, in, reverse, &marking).forward(training, every_c);
  }

  static std::array<Tensor, 9> backward(CellKind cell, const Operands& in, const Marked& marked,
                                        bool reverse, const Incoming& given, std::int64_t needs) {
    const DeviceGuard guard(in.x);
    Marking marking(cell, in, marked, reverse);
    Stepwise problem(cell, in, reverse, &marking);
    in.check_saved(given.saved, problem.saved_elements());
    const std::array<Tensor, 8> g = problem.backward(given);
    const std::array<Tensor, 2> anew =
        marking.anew_gradients((needs >> 7 & 1) != 0, (needs >> 8 & 1) != 0);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], anew[0], anew[1]};
  }
};

}  // namespace cuda
}  // namespace fused_rnn

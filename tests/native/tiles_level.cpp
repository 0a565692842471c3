// The kernels of csrc/cpu/tiles/ once more, as a level that takes all that tiles can, whether it pays or
// not, and throws where they cannot. FUSED_RNN_LEVEL and FUSED_RNN_TILES, the registers or their model,
// stand on the command line, and with them what level_amx.h says; or, without its target, FUSED_RNN_TABLES,
// a model of AVX-512's tables: then the compiler makes of 64 bytes what registers it has.
#include <stdexcept>

#include "../../csrc/cpu/tiles/amx.h"
#include "table_model.h"
#include "tile_model.h"

#define FUSED_RNN_TILES_ALWAYS
#define FUSED_RNN_FORWARD
#include "../../csrc/cpu/tiles/level.inc"
#undef FUSED_RNN_FORWARD
#define FUSED_RNN_BACKWARD
#include "../../csrc/cpu/tiles/level.inc"

namespace fused_rnn::FUSED_RNN_BELOW {
namespace {

std::int64_t saved_elements(const ScanArgs& a) {
  std::int64_t elements = 0;
  FUSED_RNN_LEVEL::dispatch_tiles(a, [&](auto cell, auto element) {
    const FUSED_RNN_LEVEL::Shape<decltype(cell), decltype(element)> shape(a);
    elements = shape.Hp * shape.kKept * FUSED_RNN_LEVEL::Steps(a).total();
    return true;
  });
  return elements;
}

[[noreturn]] void refuse() { throw std::runtime_error("tiles cannot take this"); }

}  // namespace

extern const cpu::Level kLevel;
const cpu::Level kLevel = {"nothing", saved_elements, [](const ForwardArgs&) { refuse(); },
                           [](const BackwardArgs&) { refuse(); },
                           [](const ScanArgs&) { return "nothing"; }};

}  // namespace fused_rnn::FUSED_RNN_BELOW

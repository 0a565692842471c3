// Which SIMD level's kernels of variants run.
#include <stdexcept>
#include <string_view>

#include "args.h"

namespace fused_rnn {
#define FUSED_RNN_WEAK __attribute__((weak))
namespace avx512 {
extern const cpu::VariantKernels kVariants FUSED_RNN_WEAK;
}
namespace avx2 {
extern const cpu::VariantKernels kVariants FUSED_RNN_WEAK;
}
namespace portable {
extern const cpu::VariantKernels kVariants FUSED_RNN_WEAK;
}

namespace cpu {

const VariantKernels& variant_kernels() {
  static const VariantKernels* const picked = [] {
    const std::string_view name = level().name;
    return name == "amx" || name == "avx512" ? &avx512::kVariants
           : name == "avx2"                  ? &avx2::kVariants
           : name == "portable"              ? &portable::kVariants
                                             : nullptr;
  }();
  if (picked == nullptr) {
    throw std::runtime_error("fused_rnn was built without the variants' kernels for this level");
  }
  return *picked;
}

}  // namespace cpu
}  // namespace fused_rnn

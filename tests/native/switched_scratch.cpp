// The shipped scratch memory under another name, and a choice in front of it.
#define scratch_allocate kept_allocate
#define scratch_free kept_free
#include "../../csrc/cpu/scratch.cpp"
#undef scratch_allocate
#undef scratch_free

#include "switched_scratch.h"

#include <cstring>

namespace fused_rnn {

namespace bench {
Scratch scratch = Scratch::kStrict;
}

void* scratch_allocate(std::size_t bytes) {
  if (bench::scratch == bench::Scratch::kKept) {
    return kept_allocate(bytes);
  }
  void* const block = ::operator new(bytes, std::align_val_t{kLine});
  std::memset(block, 0xff, bytes);
  return block;
}

void scratch_free(void* block, std::size_t bytes, bool keep) noexcept {
  if (bench::scratch == bench::Scratch::kKept) {
    kept_free(block, bytes, keep);
  } else {
    ::operator delete(block, std::align_val_t{kLine});
  }
}

}  // namespace fused_rnn

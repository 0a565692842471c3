#include "scratch.h"

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "../poison.h"

namespace fused_rnn {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::align_val_t kAlign{kLine};
// Smaller blocks stay in malloc's own lists; together no more than kMostKept is held back.
constexpr std::size_t kLeastKept = std::size_t{64} << 10, kMostKept = std::size_t{128} << 20;
constexpr std::size_t kLarge = std::size_t{1} << 20;

// Sizes are rounded up to an eighth of their power of two, so that similar problems share blocks.
std::size_t rounded(std::size_t bytes) {
  std::size_t step = 64;
  while (step * 16 < bytes) {
    step *= 2;
  }
  return (bytes + step - 1) / step * step;
}

// malloc's quick lists serve no aligned requests, so a small block is aligned here; the byte before
// it tells where it began.
void* allocate_small(std::size_t bytes) {
  auto* const begin = static_cast<unsigned char*>(::operator new(bytes + kLine));
  const std::size_t skip = kLine - reinterpret_cast<std::uintptr_t>(begin) % kLine;  // 1 .. kLine
  begin[skip - 1] = static_cast<unsigned char>(skip);
  return begin + skip;
}

void free_small(void* block) noexcept {
  auto* const at = static_cast<unsigned char*>(block);
  ::operator delete(at - at[-1]);
}

struct Kept {
  void* block;
  std::size_t bytes;
};

struct Cache {
  std::mutex mutex;
  std::vector<Kept> blocks;  // oldest first
  std::size_t bytes = 0;
};

// Never destroyed: threads may still run when static objects are.
Cache& cache() {
  static Cache* const the_cache = new Cache;
  return *the_cache;
}

void* allocate_large(std::size_t bytes) {
  {
    Cache& c = cache();
    const std::lock_guard<std::mutex> lock(c.mutex);
    for (std::size_t i = c.blocks.size(); i-- > 0;) {
      if (c.blocks[i].bytes == bytes) {
        void* const block = c.blocks[i].block;
        c.blocks.erase(c.blocks.begin() + static_cast<std::ptrdiff_t>(i));
        c.bytes -= bytes;
        return block;
      }
    }
  }
  return ::operator new(bytes, kAlign);
}

}  // namespace

void* scratch_allocate(std::size_t bytes) {
  void* const block = bytes < kLeastKept ? allocate_small(bytes) : allocate_large(rounded(bytes));
  poison(block, bytes);
  return block;
}

void scratch_free(void* block, std::size_t bytes, bool keep) noexcept {
  if (bytes < kLeastKept) {
    free_small(block);
    return;
  }
  if (!keep && bytes >= kLarge) {
    ::operator delete(block, kAlign);
    return;
  }
  bytes = rounded(bytes);
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  try {
    c.blocks.push_back({block, bytes});
  } catch (const std::bad_alloc&) {
    ::operator delete(block, kAlign);
    return;
  }
  c.bytes += bytes;
  while (c.bytes > kMostKept) {
    c.bytes -= c.blocks.front().bytes;
    ::operator delete(c.blocks.front().block, kAlign);
    c.blocks.erase(c.blocks.begin());
  }
}

}  // namespace fused_rnn

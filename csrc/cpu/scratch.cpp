#include "scratch.h"

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../poison.h"

namespace fused_rnn {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
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

// Blocks of some huge pages lie on such: a scan walks through all of its scratch memory in every step,
// and spends up to a seventh of its time on looking up small pages. Not what is too large to be kept:
// the system takes longer to find such pages than they save.
bool on_huge_pages(std::size_t bytes) { return bytes >= 2 * kHugePage && bytes <= kMostKept; }

std::align_val_t alignment(std::size_t bytes) {
  return std::align_val_t{on_huge_pages(bytes) ? kHugePage : kLine};
}

void* map(std::size_t bytes) {
  void* const block = ::operator new(bytes, alignment(bytes));
#if defined(__linux__)
  if (on_huge_pages(bytes)) {
    madvise(block, bytes / kHugePage * kHugePage,
            MADV_HUGEPAGE);  // a hint: refused, all is as before
  }
#endif
  return block;
}

void unmap(void* block, std::size_t bytes) noexcept { ::operator delete(block, alignment(bytes)); }

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
  return map(bytes);
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
  const bool large = bytes >= kLarge;
  bytes = rounded(bytes);
  if (!keep && large) {
    unmap(block, bytes);
    return;
  }
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  try {
    c.blocks.push_back({block, bytes});
  } catch (const std::bad_alloc&) {
    unmap(block, bytes);
    return;
  }
  c.bytes += bytes;
  while (c.bytes > kMostKept) {
    c.bytes -= c.blocks.front().bytes;
    unmap(c.blocks.front().block, c.blocks.front().bytes);
    c.blocks.erase(c.blocks.begin());
  }
}

}  // namespace fused_rnn

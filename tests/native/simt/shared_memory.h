// Where __shared__ variables are, and what they hold before a block has written to them.
#pragma once

#include <link.h>

#include <cstddef>
#include <cstdint>

namespace simt {

struct Memory {
  void* begin;
  std::size_t size;
};

// NaN in each of the element types, and as an index far out of any range.
inline unsigned char poison_at(const unsigned char* byte) {
  constexpr std::uint16_t kPattern = 0x7ff5;
  return static_cast<unsigned char>(kPattern >> (reinterpret_cast<std::uintptr_t>(byte) % 2 * 8));
}

inline void poison(Memory memory) {
  auto* const bytes = static_cast<unsigned char*>(memory.begin);
  for (std::size_t i = 0; i < memory.size; ++i) {
    bytes[i] = poison_at(bytes + i);
  }
}

inline bool is_poisoned(Memory memory) {
  auto* const bytes = static_cast<unsigned char*>(memory.begin);
  bool all = true;
  for (std::size_t i = 0; i < memory.size; ++i) {
    all &= bytes[i] == poison_at(bytes + i);
  }
  return all;
}

// The thread-local variables of this library, all of them __shared__, on the current thread.
inline Memory static_shared() {
  // The memory does not exist before one of them is touched.
  static thread_local volatile char touched;
  static_cast<void>(touched);
  static const char inside_the_library = 0;
  Memory found{nullptr, 0};
  const auto look = [](dl_phdr_info* info, std::size_t, void* result) {
    const auto self = reinterpret_cast<ElfW(Addr)>(&inside_the_library);
    bool ours = false;
    std::size_t size = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const ElfW(Addr) begin = info->dlpi_addr + segment.p_vaddr;
      ours |= segment.p_type == PT_LOAD && self >= begin && self - begin < segment.p_memsz;
      size = segment.p_type == PT_TLS ? segment.p_memsz : size;
    }
    if (ours) {
      *static_cast<Memory*>(result) = {info->dlpi_tls_data, size};
    }
    return ours ? 1 : 0;
  };
  dl_iterate_phdr(look, &found);
  return found;
}

}  // namespace simt

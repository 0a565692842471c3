// A stack of its own to run on, entered and left at will.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(SIMT_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

class Fibre {
 public:
  // `body` must never return: it leaves for the last time.
  explicit Fibre(std::function<void(Fibre&)> body) : body_(std::move(body)) {
    memory_ = mmap(nullptr, kGuard + kStack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED || mprotect(stack(), kStack, PROT_READ | PROT_WRITE) != 0) {
      throw std::bad_alloc();
    }
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack();
    inside_.uc_stack.ss_size = kStack;
    inside_.uc_link = nullptr;
    makecontext(&inside_, begin, 0);
  }
  ~Fibre() {
#if defined(SIMT_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(stack(), kStack);  // it left in the middle of a function
#endif
    munmap(memory_, kGuard + kStack);
  }
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Returns when the fibre leaves.
  void enter() {
    entered_ = this;
    void* fake = nullptr;
    before_switch(&fake, stack(), kStack);
    swapcontext(&outside_, &inside_);
    after_switch(fake, nullptr, nullptr);
  }

  // By the fibre itself; returns when it is entered again.
  void leave() {
    void* fake = nullptr;
    before_switch(&fake, outside_stack_, outside_size_);
    swapcontext(&inside_, &outside_);
    after_switch(fake, &outside_stack_, &outside_size_);
  }

 private:
  static constexpr std::size_t kStack = 1 << 18, kGuard = 1 << 16;

  void* stack() const { return static_cast<char*>(memory_) + kGuard; }

  static void begin() {  // makecontext's function takes no pointer
    Fibre* const self = entered_;
    after_switch(nullptr, &self->outside_stack_, &self->outside_size_);
    self->body_(*self);
  }

#if defined(SIMT_ADDRESS_SANITIZER)
  static void before_switch(void** fake, const void* to, std::size_t size) {
    __sanitizer_start_switch_fiber(fake, to, size);
  }
  static void after_switch(void* fake, const void** from, std::size_t* size) {
    __sanitizer_finish_switch_fiber(fake, from, size);
  }
#else
  static void before_switch(void**, const void*, std::size_t) {}
  static void after_switch(void*, const void**, std::size_t*) {}
#endif

  inline static Fibre* entered_ = nullptr;
  std::function<void(Fibre&)> body_;
  void* memory_;
  ucontext_t inside_, outside_;
  const void* outside_stack_ = nullptr;
  std::size_t outside_size_ = 0;
};

}  // namespace simt

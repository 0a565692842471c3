// A block of a launch: its threads, its shared memory, and what they wait for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"
#include "order.h"
#include "shared_memory.h"
#include "simt.h"

namespace simt {

inline std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

// The `i`th index of an extent, x running fastest.
inline uint3 index_of(std::size_t i, dim3 extent) {
  return {static_cast<unsigned>(i % extent.x), static_cast<unsigned>(i / extent.x % extent.y),
          static_cast<unsigned>(i / extent.x / extent.y)};
}

inline std::size_t count(dim3 extent) { return std::size_t{1} * extent.x * extent.y * extent.z; }

// Ends the threads that wait when another one has failed.
struct Cancelled {};

struct Thread {
  enum State { kReady, kAtBarrier, kInWarp, kLeft };
  State state = kReady;
  Fibre* fibre = nullptr;  // from its start on
  uint3 index{};
  int line = 0;  // of the barrier
  WarpCall call{};
  std::uint64_t received = 0;  // from the call's source

  std::string doing() const {
    switch (state) {
      case kAtBarrier:
        return "wait at __syncthreads in line " + std::to_string(line);
      case kInWarp:
        return "wait at " + std::string(call.name) + " in line " + std::to_string(call.line);
      case kLeft:
        return "have left the kernel";
      case kReady:
        break;
    }
    return "run";
  }
};

class Block {
 public:
  Block(const Launch& launch, const std::function<void()>& kernel, Order& order)
      : launch_(launch),
        kernel_(kernel),
        order_(order),
        static_shared_(static_shared()),
        shared_(launch.shared_bytes),
        threads_(count(launch.block)),
        turns_(threads_.size()) {
    std::iota(turns_.begin(), turns_.end(), std::size_t{0});
  }

  void run(uint3 index);

  // On a fibre: thread after thread, so that one fibre does for threads that never wait.
  void start_threads(Fibre* fibre);

  // By the threads.
  void wait(Thread::State state) {
    current_->state = state;
    current_->fibre->leave();
    if (error_ != nullptr) {
      throw Cancelled{};
    }
  }
  Thread& current() { return *current_; }
  int lane() const { return static_cast<int>((current_ - threads_.data()) % warpSize); }
  void* shared() { return shared_.data(); }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(std::string(launch_.name) + ", block " + text(blockIdx) + ": " + what);
  }

 private:
  void resume(Thread& thread);
  void release_and_resume();
  bool release_warp(std::size_t first);
  bool complete(std::size_t first, const WarpCall& call) const;
  void exchange(std::size_t first, const WarpCall& call);
  void release_barrier();

  const Launch& launch_;
  const std::function<void()>& kernel_;
  Order& order_;
  const Memory static_shared_;
  std::vector<unsigned char> shared_;
  std::vector<Thread> threads_;
  std::vector<std::size_t> turns_;
  std::size_t started_ = 0;  // of turns_
  Thread* current_ = nullptr;
  std::exception_ptr error_;
};

extern Block* block;  // that runs

}  // namespace simt

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
  enum State { kReady, kAtBarrier, kInWarp, kPolls, kInCluster, kLeft };
  State state = kReady;
  Fibre* fibre = nullptr;  // from its start on
  uint3 index{};
  int line = 0;                    // of the barrier, poll or wait
  const unsigned* flag = nullptr;  // polled until it is `least` or more
  unsigned least = 0;
  unsigned arrivals = 0;  // at the cluster's barrier
  bool arrived = false;   // and has not waited since
  WarpCall call{};
  std::uint64_t received = 0;  // from the call's source

  std::string doing() const {
    switch (state) {
      case kAtBarrier:
        return "wait at __syncthreads in line " + std::to_string(line);
      case kInWarp:
        return "wait at " + std::string(call.name) + " in line " + std::to_string(call.line);
      case kPolls:
        return "poll in line " + std::to_string(line) + " for " + std::to_string(least) + ", at " +
               std::to_string(*flag);
      case kInCluster:
        return "wait for the cluster in line " + std::to_string(line);
      case kLeft:
        return "have left the kernel";
      case kReady:
        break;
    }
    return "run";
  }
};

// What a thread has written for other blocks, and no barrier or release has published yet.
struct Pending {
  std::size_t thread;
  bool warp, block;  // ordered before what the writer's warp, or block, does next
  void* to;
  std::size_t size;
  unsigned char bytes[16];
};

class Block {
 public:
  Block(const Launch& launch, const std::function<void()>& kernel, Order& order)
      : launch_(launch),
        kernel_(kernel),
        order_(order),
        static_shared_(static_shared()),
        shared_(launch.shared_bytes + kGuard),
        threads_(count(launch.block)),
        turns_(threads_.size()) {
    std::iota(turns_.begin(), turns_.end(), std::size_t{0});
  }

  // A block of the grid, and those that are alive with it in a cluster.
  void begin(uint3 index, std::vector<Block*> cluster);
  // Lets threads run until all of them wait. Whether any could.
  bool advance();
  bool has_left() const;
  std::string waits_in_vain() const;
  // Whether shared memory was written beyond its end, where no sanitizer says so.
  bool has_strayed() { return !is_poisoned({shared_.data() + launch_.shared_bytes, kGuard}); }
  // That nothing is left which a member of the cluster might have to be there for.
  void check_last_writes() const;
  // Ends the threads that wait, and throws what one of them has thrown, if one has.
  void end();

  // On a fibre: thread after thread, so that one fibre does for threads that never wait.
  void start_threads(Fibre* fibre);

  // By the threads.
  void wait(Thread::State state) {
    current_->state = state;
    current_->fibre->leave();
    if (ends_) {
      throw Cancelled{};
    }
  }
  void wait(Thread::State state, int line) {
    current_->line = line;
    wait(state);
  }
  Thread& current() { return *current_; }
  int lane() const { return static_cast<int>(thread() % warpSize); }
  void* shared() { return shared_.data(); }
  void* shared(unsigned rank, void* mine) const;
  unsigned rank() const;
  unsigned cluster_size() const { return static_cast<unsigned>(cluster_.size()); }
  void arrive(int line);
  void write_later(void* to, const void* from, std::size_t bytes);
  void publish();  // what is ordered before what the current thread does next
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(std::string(launch_.name) + ", block " + text(index_) + ": " + what);
  }

 private:
  std::size_t thread() const { return static_cast<std::size_t>(current_ - threads_.data()); }
  void enter();  // what CUDA's variables say
  void resume(Thread& thread);
  bool release_and_resume();
  bool run_warp(const std::vector<std::size_t>& ready);
  bool release_waits(std::size_t first);
  bool release_warp(std::size_t first);
  bool complete(std::size_t first, const WarpCall& call) const;
  void exchange(std::size_t first, const WarpCall& call);
  bool release_barrier();
  bool cluster_has_arrived(unsigned times) const;
  const Block* member_with(const void* memory) const;

#if defined(SIMT_ADDRESS_SANITIZER)
  static constexpr std::size_t kGuard = 0;
#else
  static constexpr std::size_t kGuard = 256;
#endif

  const Launch& launch_;
  const std::function<void()>& kernel_;
  Order& order_;
  const Memory static_shared_;
  std::vector<unsigned char> shared_;
  std::vector<Thread> threads_;
  std::vector<std::size_t> turns_;
  uint3 index_{};
  std::vector<Block*> cluster_;
  std::vector<Pending> pending_;
  std::size_t started_ = 0;  // of turns_
  Thread* current_ = nullptr;
  bool ends_ = false;
  std::exception_ptr error_;
};

extern Block* block;  // that runs

// After a launch: the idle fibres, but for a thousand.
void free_idle_fibres();

}  // namespace simt

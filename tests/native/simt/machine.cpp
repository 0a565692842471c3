// Runs launches, and answers what a kernel or a test asks.
#include <algorithm>
#include <mutex>
#include <stdexcept>

#include "block.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

// What every architecture from sm_75 on refuses; shared memory beyond 48 KiB is left to the GPU.
void check(const Launch& l) {
  const bool grid =
      count(l.grid) > 0 && l.grid.x < 1u << 31 && l.grid.y < 1u << 16 && l.grid.z < 1u << 16;
  const bool block = count(l.block) > 0 && count(l.block) <= 1024 && l.block.z <= 64;
  if (!grid || !block) {
    throw std::runtime_error(std::string(l.name) + ": invalid configuration, grid " +
                             text({l.grid.x, l.grid.y, l.grid.z}) + ", block " +
                             text({l.block.x, l.block.y, l.block.z}));
  }
}

std::uint64_t order_of_all = 0;

struct LastLaunch {
  unsigned extents[6];
  bool any = false;
} last;

}  // namespace

void run(const Launch& launch, const std::function<void()>& thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  check(launch);
  last = {
      {launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z},
      true};
  gridDim = launch.grid;
  blockDim = launch.block;
  Order order(order_of_all);
  std::vector<std::size_t> blocks(count(launch.grid));
  std::iota(blocks.begin(), blocks.end(), std::size_t{0});
  order.draw(blocks);
  Block all(launch, thread, order);
  block = &all;
  for (const std::size_t i : blocks) {
    all.run(index_of(i, launch.grid));
  }
}

void* dynamic_shared() { return block->shared(); }

void block_barrier(int line) {
  block->current().line = line;
  block->wait(Thread::kAtBarrier);
}

int lane() { return block->lane(); }

std::uint64_t warp_meeting(const WarpCall& call) {
  if ((call.mask >> block->lane() & 1u) == 0) {
    block->fail(std::string(call.name) + " in line " + std::to_string(call.line) +
                " has a mask without the calling lane");
  }
  Thread& self = block->current();
  self.call = call;
  block->wait(Thread::kInWarp);
  return self.received;
}

}  // namespace simt

extern "C" __attribute__((visibility("default"))) void simt_set_order(std::uint64_t order) {
  simt::order_of_all = order;
}

// Grid and block of the last launch since the last such question; whether there was one.
extern "C" __attribute__((visibility("default"))) int simt_last_launch(unsigned* extents) {
  std::copy_n(simt::last.extents, 6, extents);
  const bool any = simt::last.any;
  simt::last.any = false;
  return any;
}

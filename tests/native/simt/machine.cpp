// Runs launches, and answers what a kernel or a test asks.
#include <algorithm>
#include <memory>
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
  if (l.cluster == 0 || l.cluster > 16 || count(l.grid) % l.cluster != 0 ||
      (l.cluster > 1 && l.grid.x % l.cluster != 0)) {
    throw std::runtime_error(std::string(l.name) + ": a grid of " +
                             text({l.grid.x, l.grid.y, l.grid.z}) + " has no clusters of " +
                             std::to_string(l.cluster));
  }
}

std::uint64_t order_of_all = 0;
std::size_t refused_blocks = 0;  // a launch of as many is refused; 0: none

struct LastLaunch {
  unsigned extents[6];
  bool any = false;
} last;

using Blocks = std::vector<std::unique_ptr<Block>>;

// Blocks take turns until all have left.
void take_turns(const Launch& launch, const Blocks& blocks, Order& order) {
  std::vector<std::size_t> turns(blocks.size());
  std::iota(turns.begin(), turns.end(), std::size_t{0});
  const auto left = [](const std::unique_ptr<Block>& b) { return b->has_left(); };
  for (bool any = true; any;) {
    any = false;
    order.draw(turns);
    for (const std::size_t i : turns) {
      while (!blocks[i]->has_left() && blocks[i]->advance()) {
        any = true;
        if (!order.stays()) {
          break;
        }
      }
    }
  }
  if (!std::all_of(blocks.begin(), blocks.end(), left)) {
    std::string all;
    for (const std::unique_ptr<Block>& b : blocks) {
      all += b->has_left() ? "" : (all.empty() ? ", " : "; ") + b->waits_in_vain();
    }
    throw std::runtime_error(launch.name + all);
  }
  for (const std::unique_ptr<Block>& b : blocks) {
    if (b->has_strayed()) {
      b->fail("it has written beyond its shared memory");
    }
    b->check_last_writes();
  }
}

// Blocks that are alive together, from number `first` on.
void run_team(const Launch& launch, const Blocks& blocks, std::size_t first, Order& order) {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    std::vector<Block*> cluster;
    for (std::size_t c = i / launch.cluster * launch.cluster; cluster.size() < launch.cluster;) {
      cluster.push_back(blocks[c++].get());
    }
    blocks[i]->begin(index_of(first + i, launch.grid), cluster);
  }
  std::exception_ptr error;
  try {
    take_turns(launch, blocks, order);
  } catch (...) {
    error = std::current_exception();
  }
  for (const std::unique_ptr<Block>& b : blocks) {
    b->end();
  }
  if (error != nullptr) {
    std::rethrow_exception(error);
  }
}

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
  const std::size_t together = launch.cooperative ? count(launch.grid) : launch.cluster;
  std::vector<std::size_t> teams(count(launch.grid) / together);
  std::iota(teams.begin(), teams.end(), std::size_t{0});
  order.draw(teams);
  const struct Afterwards {
    ~Afterwards() { free_idle_fibres(); }
  } afterwards;
  std::vector<std::unique_ptr<Block>> blocks;
  for (std::size_t i = 0; i < together; ++i) {
    blocks.push_back(std::make_unique<Block>(launch, thread, order));
  }
  for (const std::size_t team : teams) {
    run_team(launch, blocks, team * together, order);
  }
}

bool refuses(dim3 grid) { return refused_blocks > 0 && count(grid) >= refused_blocks; }

void* dynamic_shared() { return block->shared(); }

void block_barrier(int line) { block->wait(Thread::kAtBarrier, line); }

int lane() { return block->lane(); }

unsigned cluster_rank() { return block->rank(); }

unsigned cluster_size() { return block->cluster_size(); }

void* in_block_of_cluster(void* shared, unsigned rank) { return block->shared(rank, shared); }

void cluster_arrive(int line) { block->arrive(line); }

void cluster_wait(int line) {
  if (!block->current().arrived) {
    block->fail("a thread waits for the cluster in line " + std::to_string(line) +
                " and has not arrived");
  }
  block->wait(Thread::kInCluster, line);
  block->current().arrived = false;
}

void store(void* to, const void* from, std::size_t bytes) { block->write_later(to, from, bytes); }

void release(unsigned* flag, unsigned value) {
  block->publish();
  *flag = value;
}

void wait_for(const unsigned* flag, unsigned least, int line) {
  block->current().flag = flag;
  block->current().least = least;
  block->wait(Thread::kPolls, line);
}

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

void __trap() { simt::block->fail("the kernel has trapped"); }

extern "C" __attribute__((visibility("default"))) void simt_set_order(std::uint64_t order) {
  simt::order_of_all = order;
}

// Refuse launches of so many blocks, or more, that have to be there together; 0: none.
extern "C" __attribute__((visibility("default"))) void simt_refuse(unsigned blocks) {
  simt::refused_blocks = blocks;
}

// Grid and block of the last launch since the last such question; whether there was one.
extern "C" __attribute__((visibility("default"))) int simt_last_launch(unsigned* extents) {
  std::copy_n(simt::last.extents, 6, extents);
  const bool any = simt::last.any;
  simt::last.any = false;
  return any;
}

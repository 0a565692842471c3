// How a block's threads take turns, and when those that wait may go on.
#include "block.h"

#include <algorithm>
#include <map>
#include <memory>

namespace simt {
namespace {

std::vector<std::unique_ptr<Fibre>> idle;  // no thread is on them

// It belongs to no one until it is idle again.
Fibre* take_fibre() {
  if (idle.empty()) {
    return new Fibre([](Fibre& self) {
      for (;;) {
        block->start_threads(&self);
        idle.emplace_back(&self);
        self.leave();
      }
    });
  }
  Fibre* const fibre = idle.back().release();
  idle.pop_back();
  return fibre;
}

}  // namespace

Block* block = nullptr;

void free_idle_fibres() {
  // Each takes two mappings of memory, of which a process may have 65530 by default, and there are
  // several benches in one: a test's threads and libraries want some too.
  constexpr std::size_t kKept = 1024;
  idle.resize(std::min(idle.size(), kKept));
}

void Block::start_threads(Fibre* fibre) {
  while (started_ < turns_.size() && error_ == nullptr) {
    Thread& thread = threads_[turns_[started_++]];
    thread.fibre = fibre;
    current_ = &thread;
    threadIdx = thread.index;
    try {
      kernel_();
    } catch (const Cancelled&) {
    } catch (...) {
      error_ = std::current_exception();
    }
    current_->state = Thread::kLeft;
  }
}

void Block::enter() {
  block = this;
  blockIdx = index_;
}

void Block::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  thread.fibre->enter();
}

void Block::begin(uint3 index, std::vector<Block*> cluster) {
  index_ = index;
  cluster_ = std::move(cluster);
  poison({shared_.data(), shared_.size()});
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    threads_[i] = {};
    threads_[i].index = index_of(i, launch_.block);
  }
  order_.draw(turns_);
  started_ = 0;
}

bool Block::advance() {
  enter();
  if (started_ == 0) {
    poison(static_shared_);
    while (started_ < turns_.size() && error_ == nullptr) {
      try {
        take_fibre()->enter();
      } catch (const std::bad_alloc&) {
        error_ = std::current_exception();  // lest end() starts the threads that are left
      }
    }
  } else if (!release_and_resume()) {
    return false;
  }
  if (error_ != nullptr) {
    std::rethrow_exception(error_);
  }
  return true;
}

bool Block::has_left() const {
  return std::all_of(threads_.begin(), threads_.end(),
                     [](const Thread& t) { return t.state == Thread::kLeft; });
}

void Block::end() {
  enter();
  ends_ = true;
  for (Thread& thread : threads_) {
    if (thread.fibre != nullptr && thread.state != Thread::kLeft) {
      resume(thread);
    }
  }
  current_ = nullptr;
  for (const Pending& p : pending_) {
    std::memcpy(p.to, p.bytes, p.size);
  }
  pending_.clear();
  ends_ = false;
  error_ = nullptr;
}

bool Block::release_and_resume() {
  order_.draw(turns_);
  constexpr std::size_t kMostWarps = 32;
  std::size_t place[kMostWarps];
  std::fill_n(place, kMostWarps, kMostWarps);
  std::vector<std::vector<std::size_t>> warps;  // in the order of their first threads
  for (const std::size_t i : turns_) {
    std::size_t& at = place[i / warpSize];
    if (at == kMostWarps) {
      at = warps.size();
      warps.emplace_back();
    }
    warps[at].push_back(i);
  }
  const bool all = release_barrier();
  bool any = all;
  for (const std::vector<std::size_t>& warp : warps) {
    // One warp far ahead of the others shows where they should have waited for each other.
    while (error_ == nullptr && (release_waits(warp[0] / warpSize * warpSize) || all)) {
      if (!run_warp(warp)) {
        break;
      }
      any = true;
      if (!order_.stays()) {
        break;
      }
    }
  }
  return any || error_ != nullptr;
}

bool Block::run_warp(const std::vector<std::size_t>& warp) {
  bool any = false;
  for (const std::size_t i : warp) {
    if (threads_[i].state == Thread::kReady && error_ == nullptr) {
      resume(threads_[i]);
      any = true;
    }
  }
  return any;
}

bool Block::release_waits(std::size_t first) {
  bool released = false;
  try {
    released = release_warp(first);
  } catch (...) {
    error_ = std::current_exception();
  }
  unsigned arrived = 0;  // as often has the whole cluster, at the least
  for (std::size_t i = first; i < std::min(first + warpSize, threads_.size()); ++i) {
    Thread& t = threads_[i];
    if (t.state == Thread::kInCluster && t.arrivals > arrived && cluster_has_arrived(t.arrivals)) {
      arrived = t.arrivals;
    }
    if ((t.state == Thread::kPolls && *t.flag >= t.least) ||
        (t.state == Thread::kInCluster && t.arrivals <= arrived)) {
      t.state = Thread::kReady;
      released = true;
    }
  }
  return released;
}

bool Block::release_warp(std::size_t first) {
  bool released = false;
  for (std::size_t i = first; i < std::min(first + warpSize, threads_.size()); ++i) {
    if (threads_[i].state == Thread::kInWarp) {
      const WarpCall call = threads_[i].call;
      if (complete(first, call)) {
        exchange(first, call);
        for (Pending& p : pending_) {
          p.warp |= p.thread / warpSize == first / warpSize;
        }
        released = true;
      }
    }
  }
  return released;
}

// Whether all lanes of the mask that have not left are there.
bool Block::complete(std::size_t first, const WarpCall& call) const {
  for (std::size_t l = 0; l < warpSize && first + l < threads_.size(); ++l) {
    const Thread& t = threads_[first + l];
    const bool there = t.state == Thread::kInWarp && t.call.mask == call.mask &&
                       std::strcmp(t.call.name, call.name) == 0;
    if ((call.mask >> l & 1u) && !there && t.state != Thread::kLeft) {
      return false;
    }
  }
  return true;
}

void Block::exchange(std::size_t first, const WarpCall& call) {
  std::vector<Thread*> lanes;
  for (std::size_t l = 0; l < warpSize; ++l) {
    const bool takes_part = (call.mask >> l & 1u) && first + l < threads_.size() &&
                            threads_[first + l].state == Thread::kInWarp;
    lanes.push_back(takes_part ? &threads_[first + l] : nullptr);
  }
  if (call.combine != nullptr) {
    void* operands[warpSize];
    std::transform(lanes.begin(), lanes.end(), operands,
                   [](const Thread* t) { return t == nullptr ? nullptr : t->call.operands; });
    if (std::count(operands, operands + warpSize, nullptr) > 0) {
      fail(std::string(call.name) + " in line " + std::to_string(call.line) +
           " lacks some of its lanes");
    }
    call.combine(operands);
  }
  for (Thread* const t : lanes) {
    if (t != nullptr) {
      const Thread* const source = lanes.at(static_cast<std::size_t>(t->call.source));
      if (source == nullptr) {
        fail(std::string(call.name) + " in line " + std::to_string(t->call.line) +
             " reads from lane " + std::to_string(t->call.source) + ", which takes no part");
      }
      t->received = source->call.given;
      t->state = Thread::kReady;
    }
  }
}

bool Block::release_barrier() {
  const Thread& one = threads_[0];
  for (const Thread& t : threads_) {
    if (t.state != Thread::kAtBarrier || t.line != one.line) {
      return false;
    }
  }
  for (Thread& thread : threads_) {
    thread.state = Thread::kReady;
  }
  for (Pending& p : pending_) {
    p.block = true;
  }
  return true;
}

std::string Block::waits_in_vain() const {
  std::map<std::string, int> doings;
  for (const Thread& thread : threads_) {
    ++doings[thread.doing()];
  }
  std::string all;
  for (const auto& [doing, threads] : doings) {
    all += (all.empty() ? "" : ", ") + std::to_string(threads) + " " + doing;
  }
  return "block " + text(index_) + ": threads wait in vain: " + all;
}

unsigned Block::rank() const {
  return static_cast<unsigned>(std::find(cluster_.begin(), cluster_.end(), this) -
                               cluster_.begin());
}

void* Block::shared(unsigned rank, void* mine) const {
  const auto offset = static_cast<unsigned char*>(mine) - shared_.data();
  if (rank >= cluster_.size() || offset < 0 || static_cast<std::size_t>(offset) >= shared_.size()) {
    fail("shared memory of block " + std::to_string(rank) + " at " + std::to_string(offset) +
         ": there is none");
  }
  return cluster_[rank]->shared_.data() + offset;
}

void Block::arrive(int line) {
  if (current_->arrived) {
    fail("a thread arrives at the cluster's barrier in line " + std::to_string(line) +
         " and has not waited since it arrived before");
  }
  current_->arrived = true;
  ++current_->arrivals;
  publish();
}

bool Block::cluster_has_arrived(unsigned times) const {
  return std::all_of(cluster_.begin(), cluster_.end(), [&](const Block* b) {
    return std::all_of(b->threads_.begin(), b->threads_.end(),
                       [&](const Thread& t) { return t.arrivals >= times; });
  });
}

void Block::write_later(void* to, const void* from, std::size_t bytes) {
  Pending p{thread(), false, false, to, bytes, {}};
  std::memcpy(p.bytes, from, bytes);
  pending_.push_back(p);
}

void Block::publish() {
  const auto ordered = [this](const Pending& p) {
    const bool warp = p.warp && p.thread / warpSize == thread() / warpSize;
    return p.block || warp || p.thread == thread();
  };
  for (const Pending& p : pending_) {
    if (ordered(p)) {
      const Block* const member = member_with(p.to);
      if (member != nullptr && member->has_left()) {
        fail("it writes to block " + text(member->index_) + " of its cluster, which has left");
      }
      std::memcpy(p.to, p.bytes, p.size);
    }
  }
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), ordered), pending_.end());
}

void Block::check_last_writes() const {
  for (const Pending& p : pending_) {
    const Block* const member = member_with(p.to);
    if (member != nullptr && member != this) {
      fail("it has written to block " + text(member->index_) +
           " of its cluster, which may have left: they have not met since");
    }
  }
}

// Null where the memory is no block's.
const Block* Block::member_with(const void* memory) const {
  const auto* const byte = static_cast<const unsigned char*>(memory);
  const std::less<> before;
  for (const Block* const b : cluster_) {
    const unsigned char* const begin = b->shared_.data();
    if (!before(byte, begin) && before(byte, begin + b->shared_.size())) {
      return b;
    }
  }
  return nullptr;
}

}  // namespace simt

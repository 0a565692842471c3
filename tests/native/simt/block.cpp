// How a block's threads take turns, and when those that wait may go on.
#include "block.h"

#include <algorithm>
#include <map>
#include <memory>

namespace simt {
namespace {

// Fibres that no thread is on; they outlive launches.
std::vector<Fibre*> idle;

Fibre* idle_fibre() {
  static std::vector<std::unique_ptr<Fibre>> all;
  if (idle.empty()) {
    const std::size_t i = all.size();
    all.push_back(std::make_unique<Fibre>([i] {
      for (Fibre* const self = all[i].get();;) {
        block->start_threads(self);
        idle.push_back(self);
        self->leave();
      }
    }));
    return all.back().get();
  }
  Fibre* const fibre = idle.back();
  idle.pop_back();
  return fibre;
}

}  // namespace

Block* block = nullptr;

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

void Block::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  thread.fibre->enter();
}

void Block::run(uint3 index) {
  blockIdx = index;
  poison({shared_.data(), shared_.size()});
  poison(static_shared_);
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    threads_[i] = {};
    threads_[i].index = index_of(i, launch_.block);
  }
  order_.draw(turns_);
  started_ = 0;
  while (started_ < turns_.size() && error_ == nullptr) {
    idle_fibre()->enter();
  }
  const auto waits = [](const Thread& t) { return t.state != Thread::kLeft; };
  while (error_ == nullptr && std::any_of(threads_.begin(), threads_.end(), waits)) {
    try {
      release_and_resume();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  if (error_ != nullptr) {
    for (Thread& thread : threads_) {
      if (thread.fibre != nullptr && waits(thread)) {
        resume(thread);
      }
    }
    std::rethrow_exception(error_);
  }
}

void Block::release_and_resume() {
  bool released = false;
  for (std::size_t first = 0; first < threads_.size(); first += warpSize) {
    released |= release_warp(first);
  }
  if (!released) {
    release_barrier();
  }
  order_.draw(turns_);
  for (const std::size_t i : turns_) {
    if (threads_[i].state == Thread::kReady && error_ == nullptr) {
      resume(threads_[i]);
    }
  }
}

bool Block::release_warp(std::size_t first) {
  bool released = false;
  for (std::size_t i = first; i < std::min(first + warpSize, threads_.size()); ++i) {
    if (threads_[i].state == Thread::kInWarp) {
      const WarpCall call = threads_[i].call;
      if (complete(first, call)) {
        exchange(first, call);
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

void Block::release_barrier() {
  std::map<std::string, int> doings;
  for (const Thread& thread : threads_) {
    ++doings[thread.doing()];
  }
  if (doings.size() > 1 || threads_[0].state != Thread::kAtBarrier) {
    std::string all;
    for (const auto& [doing, threads] : doings) {
      all += (all.empty() ? "" : ", ") + std::to_string(threads) + " " + doing;
    }
    fail("threads wait in vain: " + all);
  }
  for (Thread& thread : threads_) {
    thread.state = Thread::kReady;
  }
}

}  // namespace simt

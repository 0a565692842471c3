// Threads that walk through the same phases together, without needing each other.
//
// A phase is a number of independent items. Every member calls run() for every phase in the same
// order; items are claimed, not assigned: a member takes its own share first (the same share each
// phase, so its slice of the weights stays in its core's cache) and then what others have not
// begun. A phase is over when all its items are done, whoever did them. So a member that comes
// late, is descheduled between items or never starts costs its speed, not the progress of the rest:
// a plain barrier would stop everybody once more threads than free cores take part.
//
// Which member computes an item never changes what is computed, so results do not depend on timing.
// Items must not throw (all memory is allocated before the team starts): the others would wait.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

class Team {
 public:
  explicit Team(int members)
      : members_(members), claims_(new Claim[static_cast<std::size_t>(members)]) {}

  using Item = FunctionRef<void(std::int64_t)>;

  class Member {
   public:
    Member(Team& team, int id) : team_(team), id_(id) {}

    void run(std::int64_t items, Item item) {
      if (team_.members_ == 1) {
        for (std::int64_t i = 0; i < items; ++i) {
          item(i);
        }
        return;
      }
      ++phase_;
      target_ += items;
      take(id_, items, item);
      // The others' claims are left alone as long as they are likely to come by themselves: a look
      // at a claim takes its cache line away from the owner.
      if (helping_ || !team_.reached(target_, kPatience)) {
        helping_ = false;
        for (int k = 1; k < team_.members_; ++k) {
          helping_ |= take((id_ + k) % team_.members_, items, item);
        }
        team_.wait(target_);
      }
    }

    int id() const { return id_; }
    int members() const { return team_.members_; }

   private:
    bool take(int owner, std::int64_t items, Item item) {
      const std::int64_t before = finished_;
      for (std::int64_t i; (i = team_.claim(owner, phase_, items)) >= 0; ++finished_) {
        item(i);
      }
      if (finished_ > before) {
        team_.claims_[static_cast<std::size_t>(id_)].finished.store(finished_,
                                                                    std::memory_order_release);
      }
      return finished_ > before;
    }

    Team& team_;
    int id_;
    bool helping_ = false;  // somebody's share was not begun in the last phase
    std::int64_t finished_ = 0;
    std::uint32_t phase_ = 0;
    std::int64_t target_ = 0;
  };

 private:
  static constexpr int kPatience = 128;

  struct Claim {
    // (phase, items of this owner's share already claimed in it)
    alignas(128) std::atomic<std::uint64_t> state{0};
    // Items this member has finished, in all phases and of any share.
    alignas(128) std::atomic<std::int64_t> finished{0};
  };

  // The next item of the owner's share in this phase, or -1. A member is in phase p only when all
  // phases before are done, so an older phase in `state` means: nothing claimed in p yet.
  std::int64_t claim(int owner, std::uint32_t phase, std::int64_t items) {
    const std::int64_t begin = items * owner / members_;
    const std::int64_t share = items * (owner + 1) / members_ - begin;
    std::atomic<std::uint64_t>& state = claims_[static_cast<std::size_t>(owner)].state;
    std::uint64_t seen = state.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint32_t at = static_cast<std::uint32_t>(seen >> 32);
      const std::int64_t taken = at == phase ? static_cast<std::int64_t>(seen & 0xffffffffu) : 0;
      if (at > phase || taken >= share) {
        return -1;
      }
      const std::uint64_t next =
          (static_cast<std::uint64_t>(phase) << 32) | static_cast<std::uint64_t>(taken + 1);
      if (state.compare_exchange_weak(seen, next, std::memory_order_relaxed)) {
        return begin + taken;
      }
    }
  }

  // What an item wrote is released with the count, and seen here before the next phase reads it.
  bool reached(std::int64_t target) const {
    std::int64_t sum = 0;
    for (int i = 0; i < members_; ++i) {
      sum += claims_[static_cast<std::size_t>(i)].finished.load(std::memory_order_acquire);
    }
    return sum >= target;
  }

  // Looks about `polls` times at the others' counts, less often the more of them there are.
  bool reached(std::int64_t target, int polls) const {
    for (int looked = 0; looked < polls; looked += members_) {
      if (reached(target)) {
        return true;
      }
      pause();
    }
    return false;
  }

  void wait(std::int64_t target) const {
    // Some tens of microseconds; then whoever needs the core shall have it.
    constexpr int kPolls = 2000;
    if (!reached(target, kPolls)) {
      while (!reached(target)) {
        std::this_thread::yield();
      }
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  int members_;
  std::unique_ptr<Claim[]> claims_;
};

// A phase's work: `groups` of columns times `rows`, cut into items. Columns are cut first, so that
// a member meets the same weights in every step; rows only where there are too few columns.
struct Grid {
  std::int64_t groups, rows, column_parts, row_parts;

  Grid(std::int64_t groups_, std::int64_t rows_, int members) : groups(groups_), rows(rows_) {
    const std::int64_t wanted = members == 1 ? 1 : 4 * static_cast<std::int64_t>(members);
    constexpr std::int64_t kFewestRows = 4;
    column_parts = std::max<std::int64_t>(std::min(groups, wanted), 1);
    row_parts =
        std::min(std::max<std::int64_t>(rows / kFewestRows, 1), ceil_div(wanted, column_parts));
  }
  std::int64_t items() const { return column_parts * row_parts; }

  // f(first group, last group + 1, first row, last row + 1)
  template <class F>
  FUSED_RNN_INLINE void item(std::int64_t i, F&& f) const {
    const std::int64_t c = i / row_parts, r = i % row_parts;
    f(groups * c / column_parts, groups * (c + 1) / column_parts, rows * r / row_parts,
      rows * (r + 1) / row_parts);
  }
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// Plans that have been made before: an op asks for one at every call, and to hold all ways against the
// model takes longer than the rest of what it does on the host.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <mutex>

#include "plan.h"

namespace fused_rnn {
namespace cuda {

class PlanCache {
 public:
  static constexpr std::size_t kMost =
      1024;  // then it begins anew: no program has so many for long

  // As make_plan(), or with a partition as chosen_plan(). By any thread.
  Planned plan(const PlanProblem& p, const DeviceFacts& device,
               std::optional<Partition> chosen = std::nullopt) {
    Planned found;
    found.reason = planning::refusal(p, device);
    if (!found.reason.empty()) {
      return found;
    }
    const Key key = key_of(p, device, chosen.value_or(Partition{-1, -1}));
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto known = plans_.find(key);
    if (known != plans_.end()) {
      return known->second;
    }
    if (plans_.size() == kMost) {
      plans_.clear();
    }
    ++made_;
    return plans_
        .emplace(key, chosen.has_value() ? chosen_plan(p, device, *chosen) : make_plan(p, device))
        .first->second;
  }

  // How many had to be made.
  std::size_t made() const { return made_; }

 private:
  using Key = std::array<std::int64_t, 19>;

  // All that a plan hangs on. The number of steps is not of it: what it decides has been asked before.
  static Key key_of(const PlanProblem& p, const DeviceFacts& d, Partition chosen) {
    return {static_cast<std::int64_t>(p.cell),
            static_cast<std::int64_t>(p.dtype),
            p.tf32,
            p.backward,
            p.training,
            p.N,
            p.H,
            p.P,
            p.directions,
            d.capability,
            d.sms,
            d.shared_bytes,
            d.cooperative,
            d.clusters[0],
            d.clusters[1],
            d.clusters[2],
            d.clusters[3],
            chosen.shape,
            chosen.cluster};
  }

  std::mutex mutex_;
  std::map<Key, Planned> plans_;
  std::size_t made_ = 0;
};

}  // namespace cuda
}  // namespace fused_rnn

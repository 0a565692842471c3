// How a persistent kernel would lie on a device: from a problem and what the device has to a Plan, or
// to the reason why there is none. Pure functions of the host: no torch, no CUDA.
//
// Every way that fits is held against a model of a step, and the quickest is taken, or none where
// the stepwise path's model is quicker. The model's figures are datasheet arithmetic for an H100, of
// which another device has its share by its SMs, not measurements: they rank plans, and
// benchmarks/predictions.md says what they amount to.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "params.h"

namespace fused_rnn {
namespace cuda {

struct PlanProblem {
  CellKind cell;
  Dtype dtype;
  bool tf32, backward;
  bool training;  // forward: keeps all gates anyway
  std::int64_t T, N, H, P;
  int directions;
};

// What tells one way to lie on a device from another: there is one of a shape and a size of clusters.
struct Partition {
  int shape, cluster;
};

struct Planned {
  std::optional<Plan> plan;
  double microseconds = 0;  // the model's, of a step
  std::string reason;       // why there is no plan
};

namespace planning {

// An H100's, per microsecond; of the whole device or of an SM.
constexpr int kSms = 132;
constexpr double kL2Bytes = 5.5e6, kSmSharedBytes = 2.2e5;
constexpr double kSmHalfProducts = 1.7e6, kSmTf32Products = 0.85e6, kSmFloatProducts = 1.5e5;
// Microseconds: to store, raise a flag, see it and load; to pass a cluster's barrier; a block's.
constexpr double kMemoryMeeting = 0.9, kClusterMeeting = 0.45, kBlockMeeting = 0.1;
constexpr double kGates = 0.15, kGatesOfAPair = 0.06;
// Of the stepwise path: two launches, each after a matrix product's preparation on the host; and the
// products of a large matrix product, which reaches about half of what the datasheet says.
constexpr double kTwoLaunches = 6.0;
constexpr double kHalfProducts = 2.5e8, kTf32Products = 1.2e8, kFloatProducts = 2.5e7;
constexpr std::int64_t kMostChunks = 1024;
// Of an inference, for the input products of all steps at once, which step by step are made for some
// steps at a time.
constexpr double kMostProductBytes = 1024.0 * 1024 * 1024;

inline bool by_mma(const PlanProblem& p) { return p.dtype != Dtype::kFloat || p.tf32; }

inline std::int64_t rows_of_a_block(const PlanProblem& p, const Plan& plan) {
  return p.backward ? std::int64_t{1} * plan.units * std::max(plan.cluster, 1)
                    : std::int64_t{1} * plan.units * gate_count(p.cell);
}

inline SharedLayout layout(const PlanProblem& p, const Plan& plan) {
  const Shape shape = kShapes[plan.shape];
  const int bytes = element_bytes_of(p.dtype);
  const std::int64_t depth = slice_depth(p.backward, p.cell, p.H, plan);
  return shared_layout({p.backward, shape, by_mma(p), bytes, depth, plan.units, plan.chunks,
                        exchange_bytes(p.backward, plan.meeting(), shape, bytes, depth, plan.units,
                                       plan.cluster, plan.chunks)});
}

// Blocks that can wait for each other, of one direction.
inline std::int64_t places(const PlanProblem& p, const DeviceFacts& device, const Plan& plan) {
  if (plan.cluster == 0) {
    return device.sms / p.directions;
  }
  const int log2 = plan.cluster == 8 ? 3 : plan.cluster / 2;
  return std::int64_t{1} * plan.cluster * device.clusters[log2] / p.directions;
}

// Gives `plan` groups and chunks for all sequences; false where they do not fit. Groups that are
// clusters need not run all at once.
inline bool spread(const PlanProblem& p, const DeviceFacts& device, Plan& plan) {
  const std::int64_t at_once = places(p, device, plan) / plan.blocks;
  if (at_once == 0) {
    return false;
  }
  const bool alone = plan.meeting() == Meeting::kCluster;
  // A chunk's turn has latencies of its own, which the model leaves out: with one sequence a chunk
  // they would come once for each.
  const std::int64_t most = plan.columns == 1 ? 1 : kMostChunks;
  const std::int64_t tiles = ceil_div(p.N, plan.columns);
  for (std::int64_t chunks = ceil_div(tiles, at_once); chunks > 0;
       chunks = alone ? chunks - 1 : 0) {
    if (chunks <= most) {
      plan.chunks = static_cast<int>(chunks);
      plan.shared_bytes = layout(p, plan).bytes;
      const std::int64_t groups = ceil_div(tiles, chunks);
      if (plan.shared_bytes <= device.shared_bytes && groups * plan.blocks < 1 << 24) {
        plan.groups = static_cast<int>(groups);
        return true;
      }
    }
  }
  return false;
}

// The model of a step, in microseconds.
inline double step_time(const PlanProblem& p, const DeviceFacts& device, const Plan& plan) {
  const Shape shape = kShapes[plan.shape];
  const SharedLayout l = layout(p, plan);
  const double depth = static_cast<double>(slice_depth(p.backward, p.cell, p.H, plan));
  const double states = depth * plan.columns * element_bytes_of(p.dtype);
  // An MMA takes as long for one column as for eight.
  const double products = depth * shape.rows() * std::max(plan.columns, by_mma(p) ? 8 : 1);
  const double rate = !by_mma(p)                 ? kSmFloatProducts
                      : p.dtype == Dtype::kFloat ? kSmTf32Products
                                                 : kSmHalfProducts;
  const std::int64_t blocks = std::int64_t{1} * plan.blocks * plan.groups * p.directions;
  const double pairs = std::max(1.0, 1.0 * plan.units * plan.columns / shape.threads());
  double work = products / rate + static_cast<double>(l.partials) / kSmSharedBytes + kGates +
                kGatesOfAPair * pairs;
  double wait = 0;
  if (plan.meeting() == Meeting::kCluster) {
    wait = plan.cluster > 1 ? kClusterMeeting : kBlockMeeting;
    work += (p.backward ? 0 : states * shape.warps_m) / kSmSharedBytes;
  } else {
    wait = kMemoryMeeting + (plan.cluster > 0 ? kClusterMeeting : 0);
    work += states * static_cast<double>(blocks) / (kL2Bytes * device.sms / kSms);
  }
  if (plan.cluster > 1 && p.backward) {  // partial sums come and go
    work += 8.0 * plan.cluster * plan.units * plan.columns / kSmSharedBytes;
  }
  const std::int64_t at_once = places(p, device, plan) / plan.blocks;
  const double waves = static_cast<double>(ceil_div(plan.groups, at_once));
  return waves * std::max(wait + work, plan.chunks * work);
}

// The same of the stepwise path, whose two directions run one after the other.
inline double stepwise_time(const PlanProblem& p, const DeviceFacts& device) {
  const double share = 1.0 * device.sms / kSms;
  const double rate = !by_mma(p)                 ? kFloatProducts
                      : p.dtype == Dtype::kFloat ? kTf32Products
                                                 : kHalfProducts;
  const double H = static_cast<double>(p.H), weights = H * H * gate_count(p.cell);
  const double loads = weights * element_bytes_of(p.dtype) / kL2Bytes;
  return p.directions *
         (kTwoLaunches + std::max(loads, weights * static_cast<double>(p.N) / rate) / share);
}

// Calls with(plan) for every way to lay the weights of one direction over blocks.
template <class With>
void for_each_partition(const PlanProblem& p, const With& with) {
  const std::int64_t G = gate_count(p.cell);
  for (int shape = 0; shape < kShapeCount; ++shape) {
    const std::int64_t rows = kShapes[shape].rows();
    const auto consider = [&](std::int64_t units, std::int64_t blocks, int cluster) {
      Plan plan{};
      plan.shape = shape, plan.columns = kShapes[shape].columns;
      plan.units = static_cast<int>(units), plan.blocks = static_cast<int>(blocks);
      plan.cluster = cluster;
      if (is_compiled(p.backward, plan.meeting(), shape)) {
        with(plan);
      }
    };
    const std::int64_t most = std::min(p.backward ? rows : rows / G, p.H);
    const std::int64_t blocks = ceil_div(p.H, most);
    if (blocks > 1) {
      consider(ceil_div(p.H, blocks), blocks, 0);
    }
    for (const int cluster : {1, 2, 4, 8}) {
      const std::int64_t alone = ceil_div(p.H, cluster);
      if (alone <= (p.backward ? rows / cluster : rows / G)) {
        consider(alone, cluster, cluster);
      } else if (p.backward && cluster > 1 && rows >= cluster) {
        const std::int64_t clusters = ceil_div(p.H, rows / cluster * cluster);
        consider(ceil_div(p.H, clusters * cluster), clusters * cluster, cluster);
      }
    }
  }
}

inline const char* name(Dtype dtype) {
  return dtype == Dtype::kFloat    ? "float32"
         : dtype == Dtype::kDouble ? "float64"
         : dtype == Dtype::kHalf   ? "float16"
                                   : "bfloat16";
}

// With one digit after the point, unless that is zero.
inline std::string tenths(double value) {
  const auto rounded = static_cast<std::int64_t>(value * 10 + 0.5);
  const std::string fraction = rounded % 10 == 0 ? "" : "." + std::to_string(rounded % 10);
  return std::to_string(rounded / 10) + fraction;
}

// Bytes, as devices' data sheets count them.
inline std::string size(double bytes) {
  constexpr double kKilo = 1024, kMega = kKilo * kKilo;
  return bytes < kMega ? tenths(bytes / kKilo) + " KB" : tenths(bytes / kMega) + " MB";
}

// Why no plan is sought; empty where one is.
inline std::string refusal(const PlanProblem& p, const DeviceFacts& device) {
  if (p.dtype == Dtype::kDouble) {
    return "no persistent kernel for float64";
  }
  if (p.P > 0) {
    return "no persistent kernel for projections";
  }
  if (device.capability == 0) {
    return "this build has no kernels for this device";
  }
  if (device.capability < 80) {
    return "persistent kernels need sm_80, this is sm_" + std::to_string(device.capability);
  }
  if (!device.cooperative) {
    return "this device has no cooperative launch, so that blocks might wait for one that never "
           "ran";
  }
  if (p.N <= 0) {
    return "there is no sequence";
  }
  if (p.H <= 0) {
    return "there is no hidden unit";
  }
  // Kernels count sequences, and the columns of their last chunk, in ints.
  if (p.N >= (std::int64_t{1} << 31) - 16) {
    return "more sequences than a kernel can count";
  }
  if (p.T < 2) {
    return "a single step has nothing to keep on the chip for the next one";
  }
  if (p.T >= (std::int64_t{1} << 31) - 2) {
    return "more steps than a flag can count";
  }
  const double products = 4.0 * p.directions * static_cast<double>(p.T) * static_cast<double>(p.N) *
                          static_cast<double>(p.H) * gate_count(p.cell);
  if (!p.backward && !p.training && products > kMostProductBytes) {
    return "the input products of all steps at once would take an inference " + size(products);
  }
  return "";
}

// Why nothing fits.
inline std::string too_large(const PlanProblem& p, const DeviceFacts& device) {
  const double H = static_cast<double>(p.H);
  const double weights = H * H * gate_count(p.cell) * element_bytes_of(p.dtype) * p.directions;
  return std::string("the recurrent weights in ") + name(p.dtype) + ", " + size(weights) +
         ", and the states of N = " + std::to_string(p.N) + " fit in no compiled way on " +
         std::to_string(device.sms) + " SMs with " +
         size(static_cast<double>(device.shared_bytes)) + " of shared memory each";
}

}  // namespace planning

inline Planned make_plan(const PlanProblem& p, const DeviceFacts& device) {
  Planned best;
  best.reason = planning::refusal(p, device);
  if (!best.reason.empty()) {
    return best;
  }
  planning::for_each_partition(p, [&](Plan plan) {
    if (planning::spread(p, device, plan)) {
      const double time = planning::step_time(p, device, plan);
      if (!best.plan.has_value() || time < best.microseconds) {
        best.plan = plan, best.microseconds = time;
      }
    }
  });
  if (!best.plan.has_value()) {
    best.reason = planning::too_large(p, device);
    return best;
  }
  const double stepwise = planning::stepwise_time(p, device);
  if (stepwise < best.microseconds) {
    best.plan.reset();
    best.reason = "a step should take " + planning::tenths(stepwise) +
                  " us with launches of its own, and " + planning::tenths(best.microseconds) +
                  " us without";
  } else if (p.directions == 2) {
    // On half of the device each direction may need more than twice the time.
    PlanProblem single = p;
    single.directions = 1;
    const Planned alone = make_plan(single, device);
    if (alone.plan.has_value() && 2 * alone.microseconds < best.microseconds) {
      best.plan.reset();
      best.reason = "a step of both directions should take " +
                    planning::tenths(2 * alone.microseconds) + " us one after the other, and " +
                    planning::tenths(best.microseconds) + " us at once";
    }
  }
  return best;
}

// Every plan that fits, also those that the stepwise path's model is quicker than; the quickest first.
inline std::vector<Planned> every_plan(const PlanProblem& p, const DeviceFacts& device) {
  std::vector<Planned> found;
  if (!planning::refusal(p, device).empty()) {
    return found;
  }
  planning::for_each_partition(p, [&](Plan plan) {
    if (planning::spread(p, device, plan)) {
      found.push_back({plan, planning::step_time(p, device, plan), ""});
    }
  });
  std::stable_sort(found.begin(), found.end(), [](const Planned& a, const Planned& b) {
    return a.microseconds < b.microseconds;
  });
  return found;
}

// The plan of a partition, or the reason why it does not fit.
inline Planned chosen_plan(const PlanProblem& p, const DeviceFacts& device, Partition chosen) {
  Planned none;
  none.reason = planning::refusal(p, device);
  if (!none.reason.empty()) {
    return none;
  }
  for (const Planned& found : every_plan(p, device)) {
    if (found.plan->shape == chosen.shape && found.plan->cluster == chosen.cluster) {
      return found;
    }
  }
  none.reason = "the plan that was chosen, of shape " + std::to_string(chosen.shape) +
                " and clusters of " + std::to_string(chosen.cluster) + ", does not fit here";
  return none;
}

// A plan in words.
inline std::string describe(const PlanProblem& p, const Plan& plan) {
  const Shape shape = kShapes[plan.shape];
  const SharedLayout l = planning::layout(p, plan);
  const std::int64_t depth = slice_depth(p.backward, p.cell, p.H, plan);
  const int bytes = element_bytes_of(p.dtype);
  const std::int64_t fragments = depth_steps(shape, depth, bytes) * shape.tiles_m;
  const std::int64_t kept =
      std::min<std::int64_t>(fragments, kept_fragments(shape, planning::by_mma(p)));
  const auto text = [](std::int64_t n, const char* noun) {
    return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
  };
  std::string where = "that meet through flags in memory";
  if (plan.meeting() == Meeting::kClusters) {
    where = "in clusters of " + std::to_string(plan.cluster) +
            " that split the depth and meet through flags in memory";
  } else if (plan.meeting() == Meeting::kCluster) {
    where = plan.blocks == 1 ? "that has all weights" : "that are one cluster";
  }
  return text(plan.groups, "group") + " of " + text(plan.blocks, "block") + " " + where + ", " +
         text(plan.units, "hidden unit") + " a block (" +
         std::to_string(planning::rows_of_a_block(p, plan)) + " of " +
         std::to_string(shape.rows()) + " rows, depth " + std::to_string(depth) +
         "), weights in registers " +
         planning::size(static_cast<double>(kept * shape.warps() * kFragmentBytes)) +
         " and in shared memory " + planning::size(static_cast<double>(l.partials)) + " of " +
         planning::size(static_cast<double>(plan.shared_bytes)) + ", " +
         text(plan.chunks, "chunk") + " of " + text(plan.columns, "sequence");
}

}  // namespace cuda
}  // namespace fused_rnn

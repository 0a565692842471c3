// All steps in one launch, where a plan for the problem and the device exists and the environment, or
// the caller of an op, asks for it: takes the time loop over from the stepwise path, whose results, saved values and
// products before and after the loop it shares.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/device.h"
#include "cuda/lengths.h"
#include "floor.h"
#include "plan_cache.h"
#include "cuda/stepwise/path.h"

namespace fused_rnn {
namespace cuda {

// Off until these kernels have run on a GPU.
inline bool persistent_is_wanted() {
  const char* value = std::getenv("FUSED_RNN_PERSISTENT");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

// Whether float's products may round to TF32: torch's setting, of the whole process, which the
// stable ABI does not tell; the caller of an op says it beforehand.
inline std::atomic<bool>& tf32_is_allowed() {
  static std::atomic<bool> allowed{false};
  return allowed;
}

// How a pass is to go. Where several ways were measured the caller of an op says which one, before
// the call and in its thread: an op's schema is the same on every device.
enum class How {
  kByEnvironment,  // as the model has it, where the environment asks for it
  kStepByStep,
  kByModel,
  kChosen,  // by a plan's partition
};

struct Told {
  How how = How::kByEnvironment;
  Partition partition{};
};

struct ToldOfPasses {
  Told forward, backward;
};

inline ToldOfPasses& told() {
#ifdef FUSED_RNN_SIMT  // where the thread-local variables are the shared memory, and poisoned
  static ToldOfPasses of_this_thread;
#else
  static thread_local ToldOfPasses of_this_thread;
#endif
  return of_this_thread;
}

// For the current device, whether or not persistent kernels are wanted.
inline Planned possible_plan(const PlanProblem& problem,
                             std::optional<Partition> chosen = std::nullopt) {
  static PlanCache cache;
  return cache.plan(problem, device_facts(), chosen);
}

inline Planned planned(const PlanProblem& problem) {
  const Told& way = problem.backward ? told().backward : told().forward;
  Planned none;
  if (way.how == How::kStepByStep) {
    none.reason = "it was chosen to be";
    return none;
  }
  if (way.how == How::kByEnvironment && !persistent_is_wanted()) {
    none.reason = "FUSED_RNN_PERSISTENT=1 would allow persistent kernels, which are still new";
    return none;
  }
  return way.how == How::kChosen ? possible_plan(problem, way.partition) : possible_plan(problem);
}

using Results = std::array<Tensor, 5>;    // as K::forward's in ops.h
using Gradients = std::array<Tensor, 8>;  // as K::backward's

// One direction of a layer. What is of that direction alone (prepare, finish) stands apart from what
// a launch has once for all its directions, so that two can share one (both_directions.h).
class PersistentPath : public Stepwise {
 public:
  PersistentPath(CellKind cell, const Operands& in, bool reverse)
      : Stepwise(cell, in, reverse), tf32_(tf32_is_allowed()) {}

  std::optional<Plan> plan(bool backward, bool training, int directions = 1) const {
    return planned({cell_, checked_dtype(in_.x), tf32_, backward, training, steps_.T, in_.N, in_.H,
                    in_.P, directions})
        .plan;
  }

  // `every_c` with `training` only, where c is kept anyway.
  Results forward(const Plan& plan, bool training, bool every_c) const {
    Results out = room_for_results(training, every_c);
    PersistentForward scan{};
    const Tensor gates = prepare(scan.direction[0], out, training);
    scan.training = training;
    launch(scan, plan, 1);
    if (every_c) {
      Tensor c = matrix(out[3], 0, rows_, in_.H);
      torch::stable::copy_(c, view(gates, rows_ * columns_, {rows_, in_.H}, {in_.H, 1}));
    }
    return out;
  }

  Gradients backward(const Plan& plan, const Incoming& given) const {
    Gradients out = given.room(in_);
    PersistentBackward scan{};
    const std::array<Tensor, 2> dgates = prepare(scan.direction[0], given, out);
    launch(scan, plan, 1);
    finish(given, dgates, out);
    return out;
  }

  using Stepwise::room_for_results;

  // Makes the input product; what is returned has to outlive the launch.
  Tensor prepare(PersistentForwardDirection& d, const Results& out, bool training) const {
    const Tensor all = training ? out[4] : in_.empty({rows_ * columns_}, in_.compute_type());
    Tensor gates = matrix(all, 0, rows_, columns_);
    multiply(matrix(in_.x, 0, rows_, in_.I), transposed(in_.w_ih), gates);

    fill(d);
    d.b_ih = read(in_.b_ih), d.b_hh = read(in_.b_hh);
    d.gates = gates.data_ptr();
    d.extra = training && has_extra() ? at(all, real_, rows_ * columns_) : nullptr;
    d.y = out[0].data_ptr();
    d.h_n = out[1].data_ptr();
    d.c_n = cell_ == CellKind::kLstm ? out[2].data_ptr() : nullptr;
    return all;
  }

  // Returns room for the gradients of x W_ih^T and of h W_hh^T, one and the same but for a GRU:
  // what finish() takes after the launch.
  std::array<Tensor, 2> prepare(PersistentBackwardDirection& d, const Incoming& given,
                                Gradients& out) const {
    const bool gru = cell_ == CellKind::kGru;
    const Tensor dgates_x = in_.empty({rows_, columns_});
    const Tensor dgates_h = gru ? in_.empty({rows_, columns_}) : dgates_x;

    fill(d);
    d.gates = given.saved.const_data_ptr();
    d.extra = has_extra() ? at(given.saved, real_, rows_ * columns_) : nullptr;
    d.y = given.y.const_data_ptr();
    d.dy = read(given.dy), d.dh_n = read(given.dh_n), d.dc_n = read(given.dc_n);
    d.dgates_x = dgates_x.data_ptr();
    d.dgates_h = gru ? dgates_h.data_ptr() : nullptr;
    d.dh0 = write(out[1]);
    d.dc0 = cell_ == CellKind::kLstm ? write(out[2]) : nullptr;
    return {dgates_x, dgates_h};
  }

  void finish(const Incoming& given, const std::array<Tensor, 2>& dgates, Gradients& out) const {
    const Tensor none = in_.empty({0, 0});
    operand_gradients(given, dgates[0], dgates[1], none, none, out);
  }

  // Launches what has been prepared: as many of scan.direction as there are `directions`. Its
  // scratch may go when it is queued: the allocator keeps it from others until the stream is done.
  template <class Scan>
  void launch(Scan& scan, const Plan& plan, int directions) const {
    constexpr bool kBackward = std::is_same_v<Scan, PersistentBackward>;
    scan.cell = cell_;
    scan.dtype = checked_dtype(in_.x);
    scan.tf32 = tf32_;
    scan.T = steps_.T, scan.N = in_.N, scan.H = in_.H;
    scan.directions = directions;
    scan.plan = plan;

    using torch::headeronly::ScalarType;
    const std::int64_t bytes = scratch_layout(kBackward, cell_, element_bytes_of(scan.dtype), in_.H,
                                              directions, kShapes[plan.shape], plan)
                                   .bytes;
    Tensor scratch = in_.empty({bytes}, ScalarType::Byte), lengths = this->lengths();
    torch::stable::zero_(scratch);
    scan.scratch = write(scratch);
    scan.lengths = static_cast<const std::int32_t*>(write(lengths));
    if constexpr (kBackward) {
      launch_persistent_backward(scan, stream_);
    } else {
      launch_persistent_forward(scan, stream_);
    }
  }

 private:
  void fill(PersistentDirection& d) const {
    d.reverse = reverse_;
    d.w_hh = in_.w_hh.const_data_ptr();
    d.h0 = in_.h0.const_data_ptr();
    d.c0 = cell_ == CellKind::kLstm ? read(in_.c0) : nullptr;
  }

  // (N,) on the device, or nothing where all sequences have T steps.
  Tensor lengths() const {
    using torch::headeronly::ScalarType;
    if (rows_ == steps_.T * in_.N) {
      return in_.empty({0}, ScalarType::Int);
    }
    // Of how many steps each sequence is the last one that takes part; then of how many any later.
    std::vector<std::int32_t> host(static_cast<std::size_t>(in_.N));
    for (std::int64_t k = 0; k < steps_.T; ++k) {
      ++host[static_cast<std::size_t>(steps_.batch(k) - 1)];
    }
    std::partial_sum(host.rbegin(), host.rend(), host.rbegin());
    const Tensor out = in_.empty({in_.N}, ScalarType::Int);
    launch_write_lengths(host.data(), in_.N, static_cast<std::int32_t*>(out.data_ptr()), stream_);
    return out;
  }

  const bool tf32_;  // as it is when the op begins: plan and kernel have to agree
};

// What the ops run: one launch for all steps where there is a plan and the device has room for it, or
// else step by step.
struct Cuda {
  static Results forward(CellKind cell, const Operands& in, bool reverse, bool training,
                         bool every_c) {
    const DeviceGuard guard(in.x);
    PersistentPath problem(cell, in, reverse);
    const std::optional<Plan> plan = problem.plan(false, training);
    if (plan.has_value() && (training || !every_c)) {
      try {
        return problem.forward(*plan, training, every_c);
      } catch (const LaunchRefused&) {  // the input product, all that was made, is made again
      }
    }
    return problem.Stepwise::forward(training, every_c);
  }

  static Gradients backward(CellKind cell, const Operands& in, bool reverse,
                            const Incoming& given) {
    const DeviceGuard guard(in.x);
    PersistentPath problem(cell, in, reverse);
    in.check_saved(given.saved, problem.saved_elements());
    const std::optional<Plan> plan = problem.plan(true, true);
    // A gradient of every step's c is the stepwise path's business.
    if (plan.has_value() && !given.dc.has_value()) {
      try {
        return problem.backward(*plan, given);
      } catch (const LaunchRefused&) {  // nothing has run
      }
    }
    return problem.Stepwise::backward(given);
  }
};

// The ops beside the scans. `like` tells the device and the dtype.
inline PlanProblem problem_of(const Tensor& like, const std::string& cell, std::int64_t T,
                              std::int64_t N, std::int64_t H, std::int64_t P, bool backward,
                              bool training, std::int64_t directions) {
  STD_TORCH_CHECK(directions == 1 || directions == 2,
                  "fused_rnn: directions should be 1 or 2, got ", directions);
  return {checked_cell(cell),
          checked_dtype(like),
          tf32_is_allowed(),
          backward,
          training,
          T,
          N,
          H,
          P,
          static_cast<int>(directions)};
}

// The plan in words, or why the scan goes step by step; `regardless` of whether persistent kernels
// are wanted.
inline std::string persistent_plan(Tensor like, std::string cell, std::int64_t T, std::int64_t N,
                                   std::int64_t H, std::int64_t P, bool backward, bool training,
                                   std::int64_t directions, bool regardless) {
  const DeviceGuard guard(like);
  const PlanProblem problem = problem_of(like, cell, T, N, H, P, backward, training, directions);
  const Planned found = regardless ? possible_plan(problem) : planned(problem);
  if (!found.plan.has_value()) {
    return "step by step: " + found.reason;
  }
  const char* const each = directions == 2 ? "both directions in one launch, each " : "";
  return std::string("persistent, ") + each + describe(problem, *found.plan);
}

// Which kernel a plan for training has, whether or not it is wanted: how its blocks meet and its
// shape, as enum Meeting and kShapes count; nothing where there is no plan.
inline std::vector<std::int64_t> persistent_kernel(Tensor like, std::string cell, std::int64_t T,
                                                   std::int64_t N, std::int64_t H, bool backward,
                                                   std::int64_t directions) {
  const DeviceGuard guard(like);
  const std::optional<Plan> plan =
      possible_plan(problem_of(like, cell, T, N, H, 0, backward, true, directions)).plan;
  if (!plan.has_value()) {
    return {};
  }
  return {static_cast<std::int64_t>(plan->meeting()), plan->shape};
}

// A device as DeviceFacts has it: capability, SMs, shared memory, cooperative launches, clusters.
inline std::vector<std::int64_t> facts_of_device(std::int64_t index) {
  const DeviceGuard guard(index);
  const DeviceFacts f = device_facts();
  return {f.capability,  f.sms,         f.shared_bytes, f.cooperative,
          f.clusters[0], f.clusters[1], f.clusters[2],  f.clusters[3]};
}

// Runs what a forward in float16 cannot be quicker than (floor.h), and returns its scratch memory.
inline Tensor persistent_floor(Tensor like, std::string cell, std::int64_t T, std::int64_t N,
                               std::int64_t H, bool exchange, bool products) {
  const DeviceGuard guard(like);
  const PlanProblem problem{checked_cell(cell), Dtype::kHalf, false, false, true, T, N, H, 0, 1};
  const Planned found = make_plan(problem, device_facts());
  STD_TORCH_CHECK(found.plan.has_value(), "fused_rnn: there is no floor: ", found.reason);
  const Plan& plan = *found.plan;
  const std::int64_t bytes = scratch_layout(false, problem.cell, element_bytes_of(problem.dtype), H,
                                            1, kShapes[plan.shape], plan)
                                 .bytes;
  Tensor scratch =
      torch::stable::new_zeros(like, Sizes{bytes}, torch::headeronly::ScalarType::Byte);
  Tensor weights =
      torch::stable::new_zeros(like, Sizes{plan.blocks * kShapes[plan.shape].rows(), H},
                               torch::headeronly::ScalarType::Half);
  launch_floor({T, H, exchange, products, write(scratch), write(weights), plan},
               current_stream(like));
  return scratch;
}

// Plans that fit, whatever the model says of the stepwise path: the shape and the clusters of each, in
// the order of the model.
inline std::vector<std::int64_t> persistent_ways(Tensor like, std::string cell, std::int64_t T,
                                                 std::int64_t N, std::int64_t H, std::int64_t P,
                                                 bool backward, bool training,
                                                 std::int64_t directions) {
  const DeviceGuard guard(like);
  const PlanProblem problem = problem_of(like, cell, T, N, H, P, backward, training, directions);
  std::vector<std::int64_t> out;
  for (const Planned& found : every_plan(problem, device_facts())) {
    out.push_back(found.plan->shape);
    out.push_back(found.plan->cluster);
  }
  return out;
}

// Tells this thread's ops how, shape and clusters of forward, then of backward; returns what held
// before.
inline std::vector<std::int64_t> persistent_way(std::vector<std::int64_t> way) {
  STD_TORCH_CHECK(way.size() == 6, "fused_rnn: way should have 6 numbers, got ", way.size());
  for (const std::int64_t how : {way[0], way[3]}) {
    STD_TORCH_CHECK(how >= 0 && how <= static_cast<std::int64_t>(How::kChosen),
                    "fused_rnn: how should be from 0 to 3, got ", how);
  }
  std::vector<std::int64_t> before;
  std::size_t next = 0;
  for (Told* of : {&told().forward, &told().backward}) {
    const Told was = *of;
    before.insert(before.end(),
                  {static_cast<std::int64_t>(was.how), was.partition.shape, was.partition.cluster});
    *of = {static_cast<How>(way[next]),
           {static_cast<int>(way[next + 1]), static_cast<int>(way[next + 2])}};
    next += 3;
  }
  return before;
}

// Returns what held before.
inline bool persistent_tf32(bool allowed) { return tf32_is_allowed().exchange(allowed); }

template <class Library>
void define_persistent_ops(Library& m) {
  m.def(
      "persistent_plan(Tensor like, str cell, int T, int N, int H, int P, bool backward, bool "
      "training=False, int directions=1, bool regardless=False) -> str");
  m.def(
      "persistent_kernel(Tensor like, str cell, int T, int N, int H, bool backward, int "
      "directions=1) -> int[]");
  m.def(
      "persistent_ways(Tensor like, str cell, int T, int N, int H, int P, bool backward, bool "
      "training, int directions) -> int[]");
  m.def("persistent_way(int[] way) -> int[]");
  m.def("device_facts(int device) -> int[]");
  m.def("persistent_tf32(bool allowed) -> bool");
  m.def(
      "persistent_floor(Tensor like, str cell, int T, int N, int H, bool exchange, bool products) "
      "-> Tensor");
}

}  // namespace cuda
}  // namespace fused_rnn

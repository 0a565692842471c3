// All steps in one launch, where a plan for the problem and the device exists and the environment
// asks for it: takes the time loop over from the stepwise path, whose results, saved values and
// products before and after the loop it shares.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

#include "device.h"
#include "floor.h"
#include "stepwise.h"

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

inline Planned planned(const PlanProblem& problem) {
  if (!persistent_is_wanted()) {
    Planned none;
    none.reason = "FUSED_RNN_PERSISTENT=1 would allow persistent kernels, which are still new";
    return none;
  }
  return make_plan(problem, device_facts());
}

class PersistentPath : public Stepwise {
 public:
  PersistentPath(CellKind cell, const Operands& in, bool reverse)
      : Stepwise(cell, in, reverse), tf32_(tf32_is_allowed()) {}

  std::optional<Plan> plan(bool backward, bool training) const {
    return planned({cell_, checked_dtype(in_.x), tf32_, backward, training, steps_.T, in_.N, in_.H,
                    in_.P, 1})
        .plan;
  }

  // `every_c` with `training` only, where c is kept anyway.
  std::array<Tensor, 5> forward(const Plan& plan, bool training, bool every_c) const {
    const auto real = in_.compute_type();
    std::array<Tensor, 5> out = room_for_results(training, every_c);
    const Tensor all = training ? out[4] : in_.empty({rows_ * columns_}, real);
    Tensor gates = matrix(all, 0, rows_, columns_);
    multiply(matrix(in_.x, 0, rows_, in_.I), transposed(in_.w_ih), gates);

    PersistentForward scan{};
    PersistentForwardDirection& d = scan.direction[0];
    d.b_ih = read(in_.b_ih), d.b_hh = read(in_.b_hh);
    d.gates = gates.data_ptr();
    d.extra = training && has_extra() ? at(all, real_, rows_ * columns_) : nullptr;
    d.y = out[0].data_ptr();
    d.h_n = out[1].data_ptr();
    d.c_n = cell_ == CellKind::kLstm ? out[2].data_ptr() : nullptr;
    scan.training = training;
    const std::array<Tensor, 2> memory = fill(scan, plan, false);
    launch_persistent_forward(scan, stream_);
    if (every_c) {
      Tensor c = matrix(out[3], 0, rows_, in_.H);
      torch::stable::copy_(c, view(all, rows_ * columns_, {rows_, in_.H}, {in_.H, 1}));
    }
    return out;
  }

  std::array<Tensor, 8> backward(const Plan& plan, const Incoming& given) const {
    std::array<Tensor, 8> out = given.room(in_);
    const bool gru = cell_ == CellKind::kGru;
    const Tensor dgates_x = in_.empty({rows_, columns_});
    const Tensor dgates_h = gru ? in_.empty({rows_, columns_}) : dgates_x;

    PersistentBackward scan{};
    PersistentBackwardDirection& d = scan.direction[0];
    d.gates = given.saved.const_data_ptr();
    d.extra = has_extra() ? at(given.saved, real_, rows_ * columns_) : nullptr;
    d.y = given.y.const_data_ptr();
    d.dy = read(given.dy), d.dh_n = read(given.dh_n), d.dc_n = read(given.dc_n);
    d.dgates_x = dgates_x.data_ptr();
    d.dgates_h = gru ? dgates_h.data_ptr() : nullptr;
    d.dh0 = write(out[1]);
    d.dc0 = cell_ == CellKind::kLstm ? write(out[2]) : nullptr;
    const std::array<Tensor, 2> memory = fill(scan, plan, true);
    launch_persistent_backward(scan, stream_);
    const Tensor none = in_.empty({0, 0});
    operand_gradients(given, dgates_x, dgates_h, none, none, out);
    return out;
  }

 private:
  // What forward and backward have in common; the memory returned must outlive the launch, after
  // which the allocator keeps it from others until the stream is done with it.
  template <class Scan>
  std::array<Tensor, 2> fill(Scan& scan, const Plan& plan, bool backward) const {
    scan.cell = cell_;
    scan.dtype = checked_dtype(in_.x);
    scan.tf32 = tf32_;
    scan.T = steps_.T, scan.N = in_.N, scan.H = in_.H;
    scan.directions = 1;
    scan.plan = plan;
    PersistentDirection& d = scan.direction[0];
    d.reverse = reverse_;
    d.w_hh = in_.w_hh.const_data_ptr();
    d.h0 = in_.h0.const_data_ptr();
    d.c0 = cell_ == CellKind::kLstm ? read(in_.c0) : nullptr;

    using torch::headeronly::ScalarType;
    const std::int64_t bytes =
        scratch_layout(backward, cell_, scan.dtype, in_.H, 1, kShapes[plan.shape], plan).bytes;
    std::array<Tensor, 2> memory{in_.empty({bytes}, ScalarType::Byte), lengths()};
    torch::stable::zero_(memory[0]);
    scan.scratch = write(memory[0]);
    scan.lengths = static_cast<const std::int32_t*>(write(memory[1]));
    return memory;
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
  static std::array<Tensor, 5> forward(CellKind cell, const Operands& in, bool reverse,
                                       bool training, bool every_c) {
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

  static std::array<Tensor, 8> backward(CellKind cell, const Operands& in, bool reverse,
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

// The ops beside the scans. `like` tells the device and the dtype; the answer is the plan in words,
// or why the scan goes step by step.
inline std::string persistent_plan(Tensor like, std::string cell, std::int64_t T, std::int64_t N,
                                   std::int64_t H, std::int64_t P, bool backward, bool training) {
  const DeviceGuard guard(like);
  const CellKind kind = checked_cell(cell);
  const Dtype dtype = checked_dtype(like);
  const PlanProblem problem{kind, dtype, tf32_is_allowed(), backward, training, T, N, H, P, 1};
  const Planned found = planned(problem);
  return found.plan.has_value() ? "persistent, " + describe(problem, *found.plan)
                                : "step by step: " + found.reason;
}

// Runs what a forward in float16 cannot be quicker than (floor.h), and returns its scratch memory.
inline Tensor persistent_floor(Tensor like, std::string cell, std::int64_t T, std::int64_t N,
                               std::int64_t H, bool exchange, bool products) {
  const DeviceGuard guard(like);
  const PlanProblem problem{checked_cell(cell), Dtype::kHalf, false, false, true, T, N, H, 0, 1};
  const Planned found = make_plan(problem, device_facts());
  STD_TORCH_CHECK(found.plan.has_value(), "fused_rnn: there is no floor: ", found.reason);
  const Plan& plan = *found.plan;
  const std::int64_t bytes =
      scratch_layout(false, problem.cell, problem.dtype, H, 1, kShapes[plan.shape], plan).bytes;
  Tensor scratch =
      torch::stable::new_zeros(like, Sizes{bytes}, torch::headeronly::ScalarType::Byte);
  Tensor weights =
      torch::stable::new_zeros(like, Sizes{plan.blocks * kShapes[plan.shape].rows(), H},
                               torch::headeronly::ScalarType::Half);
  launch_floor({T, H, exchange, products, write(scratch), write(weights), plan},
               current_stream(like));
  return scratch;
}

// Returns what held before.
inline bool persistent_tf32(bool allowed) { return tf32_is_allowed().exchange(allowed); }

template <class Library>
void define_persistent_ops(Library& m) {
  m.def(
      "persistent_plan(Tensor like, str cell, int T, int N, int H, int P, bool backward, bool "
      "training=False) -> str");
  m.def("persistent_tf32(bool allowed) -> bool");
  m.def(
      "persistent_floor(Tensor like, str cell, int T, int N, int H, bool exchange, bool products) "
      "-> Tensor");
}

}  // namespace cuda
}  // namespace fused_rnn

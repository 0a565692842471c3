// What a persistent kernel gets: all steps of a layer, in one launch. Plain structs, no torch, no
// CUDA.
//
// N, H, G, rows, S (the tensors' type) and T (the arithmetic's) as in scan.h; no projection. All
// arrays are row-major and contiguous, on the device. None may alias another, except where it says
// so. What is saved, and where, is what the stepwise path saves (stepwise/steps.h): either backward can
// follow either forward.
#pragma once

#include <cstdint>

#include "scan.h"
#include "shapes.h"
#include "cuda/device.h"

namespace fused_rnn {
namespace cuda {

// How the weights lie over the blocks. A group of `blocks` blocks has the weights of one direction
// between them, `units` hidden units with all their gates each, and scans `chunks` times
// `columns` sequences; sequences beyond those have groups of their own.
struct Plan {
  int shape;    // index in kShapes
  int units;    // of a block; the last ones may have fewer, or none
  int blocks;   // of a group
  int cluster;  // blocks of a cluster; 0: the blocks of a group meet in global memory
  int columns;  // sequences that a chunk has: the exchange's columns
  int chunks;   // of a group: independent of each other, so that one hides the other's wait
  int groups;   // for all N sequences of one direction
  std::int64_t shared_bytes;  // of a block

  FUSED_RNN_INLINE constexpr Meeting meeting() const {
    return cluster == 0        ? Meeting::kMemory
           : cluster == blocks ? Meeting::kCluster
                               : Meeting::kClusters;
  }
};

// One direction. `k` counts steps in scan order, as in order.h.
struct PersistentDirection {
  bool reverse;
  const void* w_hh;  // (G*H, H)  S
  const void* h0;    // (N, H)    S
  const void* c0;    // (N, H)    S  LSTM; null otherwise
};

struct PersistentForwardDirection : PersistentDirection {
  const void* b_ih;  // (G*H,)       S  null: zero
  const void* b_hh;  // (G*H,)       S  null: zero
  void* gates;       // (rows, G*H)  T  x W_ih^T; with `training` becomes the activated gates
  void* extra;       // (rows, H)    T  training: LSTM c', GRU a_nh; null otherwise
  void* y;           // (rows, H)    S
  void* h_n;         // (N, H)       S
  void* c_n;         // (N, H)       S  LSTM; null otherwise
};

struct PersistentBackwardDirection : PersistentDirection {
  const void* gates;  // (rows, G*H)  T  activated
  const void* extra;  // (rows, H)    T  LSTM c', GRU a_nh; RNN null
  const void* y;      // (rows, H)    S
  const void* dy;     // (rows, H)    S  null: zero
  const void* dh_n;   // (N, H)       S  null: zero
  const void* dc_n;   // (N, H)       S  LSTM; null: zero
  void* dgates_x;     // (rows, G*H)  S
  void* dgates_h;     // (rows, G*H)  S  GRU; null otherwise: they are the same
  void* dh0;          // (N, H)       S  null: not wanted
  void* dc0;          // (N, H)       S  LSTM; null: not wanted
};

template <class Direction>
struct Persistent {
  CellKind cell;
  Dtype dtype;
  bool tf32;      // float's products may round their operands to TF32
  bool training;  // forward
  std::int64_t T, N, H;
  const std::int32_t* lengths;  // (N,) non-increasing, > 0; null: T of each
  void* scratch;                // scratch_layout(), zeroed: the states on their way, and flags
  int directions;               // 1 or 2, side by side on disjoint blocks
  Direction direction[2];
  Plan plan;
};

using PersistentForward = Persistent<PersistentForwardDirection>;
using PersistentBackward = Persistent<PersistentBackwardDirection>;

FUSED_RNN_INLINE constexpr int gate_count(CellKind cell) {
  return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1;
}

FUSED_RNN_INLINE constexpr int element_bytes_of(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
}

// The depth of a block's slice of the weights (shapes.h).
FUSED_RNN_INLINE constexpr std::int64_t slice_depth(bool backward, CellKind cell, std::int64_t H,
                                                    const Plan& plan) {
  if (!backward) {
    return H;
  }
  const std::int64_t G = gate_count(cell);
  return plan.cluster == 0 ? G * H : G * plan.units * (plan.blocks / plan.cluster);
}

// The flags of a chunk: [rank in the cluster][copy][cluster], without clusters [copy][block]; uint32.
// Who polls, polls for all of a rank, so that these stand in a row. Each block raises its flag in
// every copy, and polls one: warps that poll the same line of L2 wait for each other there, with 96
// blocks of 8 warps about as long as a step may take. The figures are guesses, to be measured.
struct FlagLayout {
  int copies;
  int stride;  // of a copy: whole lines of 128 bytes
};

constexpr int kPollersOfALine = 16, kMostFlagCopies = 8;

FUSED_RNN_INLINE constexpr FlagLayout flag_layout(const Plan& plan) {
  const int members = plan.cluster > 0 ? plan.blocks / plan.cluster : plan.blocks;
  const int copies = static_cast<int>(ceil_div(members, kPollersOfALine));
  return {copies < kMostFlagCopies ? copies : kMostFlagCopies,
          static_cast<int>(ceil_div(members, 32)) * 32};
}

// Of a chunk.
FUSED_RNN_INLINE constexpr std::int64_t flags_of(const Plan& plan) {
  const FlagLayout l = flag_layout(plan);
  return std::int64_t{1} * (plan.cluster > 0 ? plan.cluster : 1) * l.copies * l.stride;
}

// Where things stand in scratch, in bytes. There is none where a group is one cluster.
struct ScratchLayout {
  std::int64_t states;  // of a chunk and parity: [rank in the cluster][padded depth][columns]  S
  std::int64_t flags;   // where they begin; before them [direction][group][chunk][2] states
  std::int64_t bytes;   // of all, with the flags: [direction][group][chunk][flags_of()]  uint32
};

// `bytes`: of an element, which a kernel knows when it is compiled: a division less.
FUSED_RNN_INLINE constexpr ScratchLayout scratch_layout(bool backward, CellKind cell, int bytes,
                                                        std::int64_t H, int directions, Shape shape,
                                                        const Plan& plan) {
  if (plan.meeting() == Meeting::kCluster) {
    return {0, 0, 0};
  }
  const int ranks = plan.cluster > 0 ? plan.cluster : 1;
  const std::int64_t depth = padded_depth(shape, slice_depth(backward, cell, H, plan), bytes);
  const std::int64_t chunks = std::int64_t{1} * directions * plan.groups * plan.chunks;
  ScratchLayout l{};
  l.states = ranks * depth * plan.columns * bytes;
  l.flags = chunks * 2 * l.states;
  l.bytes = l.flags + chunks * flags_of(plan) * 4;
  return l;
}

// Throw LaunchRefused where blocks that wait for each other do not all fit on the device at once, and
// std::runtime_error where the launch fails for another reason.
void launch_persistent_forward(const PersistentForward& scan, Stream stream);
void launch_persistent_backward(const PersistentBackward& scan, Stream stream);

}  // namespace cuda
}  // namespace fused_rnn

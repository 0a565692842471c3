// The one table of tile shapes that persistent kernels are compiled for, and what a block of a shape
// has in shared memory: the plan counts with it, the kernels lay it out by it. No torch, no CUDA.
//
// A block multiplies its slice of the recurrent weights, `rows` times `depth`, by the states of a
// chunk of sequences, in products of 16 rows, 8 columns or one, and 32 bytes of depth:
//
//   forward               rows = G * units            depth = H
//   backward, cluster 0   rows = units                depth = G * H
//   backward, clusters    rows = cluster * units      depth = G * units * clusters of the group
//
// Forward's row r is gate r / units of unit r % units of the block. In a backward cluster the members have
// parts of the depth, and each adds the parts of all for its own units: so a member needs the gate
// gradients of units * clusters units only: those which the members of its own rank make, here and
// in the other clusters of its group. Member m of cluster j has units (j * cluster + m) * units on.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "macros.h"

namespace fused_rnn {
namespace cuda {

struct Shape {
  int warps_m, warps_k;  // of a block, over the rows and over the depth
  int tiles_m;           // of 16 rows, of a warp
  int columns;           // sequences of a chunk: 1, 8 or 16
  int registers;         // fragments of 16 rows and 32 bytes that a warp keeps in registers

  FUSED_RNN_INLINE constexpr int rows() const { return 16 * warps_m * tiles_m; }
  FUSED_RNN_INLINE constexpr int warps() const { return warps_m * warps_k; }
  FUSED_RNN_INLINE constexpr int threads() const { return 32 * warps(); }
};

// X(index, warps_m, warps_k, tiles_m, columns, registers)
// The depth is split over warps as far as it goes: then a warp alone loads its part of the states.
// Few rows make many blocks, for small batches; many rows make a group that fits in one cluster.
// One column is for few sequences, each with a group of its own (products.cuh).
#define FUSED_RNN_SHAPES(X) \
  X(0, 1, 8, 1, 8, 16)      \
  X(1, 1, 8, 2, 8, 16)      \
  X(2, 1, 8, 2, 16, 16)     \
  X(3, 1, 8, 3, 16, 24)     \
  X(4, 1, 8, 4, 16, 32)     \
  X(5, 2, 4, 4, 16, 32)     \
  X(6, 4, 2, 4, 16, 32)     \
  X(7, 1, 8, 1, 1, 24)      \
  X(8, 1, 8, 2, 1, 32)      \
  X(9, 1, 8, 3, 1, 24)      \
  X(10, 1, 8, 4, 1, 32)     \
  X(11, 2, 4, 4, 1, 32)     \
  X(12, 4, 2, 4, 1, 32)

constexpr Shape kShapes[] = {
#define FUSED_RNN_SHAPE(index, ...) {__VA_ARGS__},
    FUSED_RNN_SHAPES(FUSED_RNN_SHAPE)
#undef FUSED_RNN_SHAPE
};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);

// How the blocks of a group meet.
enum class Meeting {
  kMemory,    // Plan::cluster == 0: flags in global memory
  kCluster,   // Plan::cluster == Plan::blocks: the group is one cluster, or one block
  kClusters,  // between: backward's members of a cluster split the depth, clusters meet in memory
};

// A kernel exists for these shapes: every one costs time to compile, for each cell, type and
// architecture, and by the plan's model the others together would gain some hundredths.
constexpr bool is_compiled(bool backward, Meeting meeting, int shape) {
  const auto one_of = [shape](std::initializer_list<int> shapes) {
    for (const int s : shapes) {
      if (s == shape) {
        return true;
      }
    }
    return false;
  };
  switch (meeting) {
    case Meeting::kMemory:
      return backward ? one_of({0, 2, 7, 9}) : one_of({1, 2, 3, 4, 8, 9, 10});
    case Meeting::kCluster:
      return backward ? one_of({4, 5, 6, 11, 12}) : one_of({2, 4, 5, 6, 11, 12});
    case Meeting::kClusters:
      return backward && one_of({2, 4, 5});
  }
  return false;
}

constexpr int kFragmentBytes = 512;  // 16 bytes of every lane
constexpr int kFragmentDepthBytes = 32;

FUSED_RNN_INLINE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// The elements that a fragment is deep: of 2 bytes 16, of 4 bytes (TF32 or plain float) 8.
FUSED_RNN_INLINE constexpr int fragment_depth(int element_bytes) {
  return kFragmentDepthBytes / element_bytes;
}

// Steps of a fragment's depth that a warp takes; the depth is padded with zero weights to as many
// for every warp.
FUSED_RNN_INLINE constexpr std::int64_t depth_steps(Shape s, std::int64_t depth,
                                                    int element_bytes) {
  return ceil_div(ceil_div(depth, fragment_depth(element_bytes)), s.warps_k);
}

FUSED_RNN_INLINE constexpr std::int64_t padded_depth(Shape s, std::int64_t depth,
                                                     int element_bytes) {
  return depth_steps(s, depth, element_bytes) * s.warps_k * fragment_depth(element_bytes);
}

// Where things stand in a block's dynamic shared memory, in bytes; each begins at a multiple of 16.
struct SharedLayout {
  std::int64_t weights;   // [warp][fragment beyond the registers'][lane][16 bytes]
  std::int64_t partials;  // [warps_k][rows][columns]        float
  std::int64_t biases;    // [pre-activations][units]        float: forward's, 4 at the most
  std::int64_t states;    // [chunks][units][columns]         float: c, h or a carried gradient
  std::int64_t exchange;  // what other members of the cluster write: exchange_bytes()
  std::int64_t bytes;     // of all
};

// Of a warp, in registers. Plain floats of several columns leave no room for any.
FUSED_RNN_INLINE constexpr int kept_fragments(Shape s, bool by_mma) {
  return by_mma || s.columns == 1 ? s.registers : 0;
}

struct SharedNeeds {
  bool backward;
  Shape shape;
  bool by_mma;
  int element_bytes;
  std::int64_t depth;
  int units, chunks;
  std::int64_t exchange_bytes;
};

FUSED_RNN_INLINE constexpr std::int64_t aligned(std::int64_t bytes) {
  return ceil_div(bytes, 16) * 16;
}

FUSED_RNN_INLINE constexpr SharedLayout shared_layout(SharedNeeds n) {
  const Shape s = n.shape;
  const std::int64_t fragments = depth_steps(s, n.depth, n.element_bytes) * s.tiles_m;
  const std::int64_t kept = kept_fragments(s, n.by_mma);
  const std::int64_t in_memory = fragments > kept ? fragments - kept : 0;
  SharedLayout l{};
  l.weights = 0;
  l.partials = l.weights + s.warps() * in_memory * kFragmentBytes;
  l.biases = l.partials + std::int64_t{4} * s.warps_k * s.rows() * s.columns;
  l.states = l.biases + (n.backward ? 0 : aligned(std::int64_t{4} * 4 * n.units));
  l.exchange = l.states + aligned(std::int64_t{4} * n.chunks * n.units * s.columns);
  l.bytes = l.exchange + aligned(n.exchange_bytes);
  return l;
}

// Forward: h of all units, in the padded depth, of each chunk and parity of the step. Backward: partial
// sums of this member's units from every member, for each parity; then, where no other cluster makes
// them, the gate gradients of the padded depth of each chunk.
FUSED_RNN_INLINE constexpr std::int64_t exchange_bytes(bool backward, Meeting meeting, Shape s,
                                                       int element_bytes, std::int64_t depth,
                                                       int units, int cluster, int chunks) {
  if (meeting == Meeting::kMemory) {
    return 0;
  }
  const std::int64_t states = padded_depth(s, depth, element_bytes) * s.columns * element_bytes;
  const std::int64_t sums = std::int64_t{4} * cluster * units * s.columns;
  const bool alone = meeting == Meeting::kCluster;
  return backward ? aligned(2 * sums) + (alone ? chunks * states : 0) : 2 * chunks * states;
}

}  // namespace cuda
}  // namespace fused_rnn

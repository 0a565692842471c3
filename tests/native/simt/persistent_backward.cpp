// The persistent backward kernels' C interface: a scan is numbers, and arrays in the order that
// simt_persistent_backward_arrays() gives, null where there is none.
#include <exception>
#include <string>

#include "cuda/persistent/plan.h"

namespace {

using namespace fused_rnn;
using namespace fused_rnn::cuda;

struct Numbers {
  std::int64_t cell, dtype, tf32, T, N, H, directions, reverse[2];
  std::int64_t shape, units, blocks, cluster, chunks, groups;
};

PersistentBackward scan_of(const Numbers& n) {
  PersistentBackward scan{};
  scan.cell = static_cast<CellKind>(n.cell);
  scan.dtype = static_cast<Dtype>(n.dtype);
  scan.tf32 = n.tf32 != 0;
  scan.T = n.T, scan.N = n.N, scan.H = n.H;
  scan.directions = static_cast<int>(n.directions);
  for (int d = 0; d < scan.directions; ++d) {
    scan.direction[d].reverse = n.reverse[d] != 0;
  }
  Plan& plan = scan.plan;
  plan.shape = static_cast<int>(n.shape), plan.units = static_cast<int>(n.units);
  plan.blocks = static_cast<int>(n.blocks), plan.cluster = static_cast<int>(n.cluster);
  plan.columns = kShapes[n.shape].columns, plan.chunks = static_cast<int>(n.chunks);
  plan.groups = static_cast<int>(n.groups);
  const PlanProblem problem{scan.cell, scan.dtype, scan.tf32, true, true,
                            n.T,       n.N,        n.H,       0,    scan.directions};
  plan.shared_bytes = planning::layout(problem, plan).bytes;
  return scan;
}

}  // namespace

#define DIRECTION_ARRAYS(X) \
  X(w_hh)                   \
  X(h0)                     \
  X(c0) X(gates) X(extra) X(y) X(dy) X(dh_n) X(dc_n) X(dgates_x) X(dgates_h) X(dh0) X(dc0)
#define NAME(field) #field " "
#define TAKE(field) scan.direction[d].field = *arrays++;
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* simt_persistent_backward_arrays() { return DIRECTION_ARRAYS(NAME); }

EXPORTED std::int64_t simt_persistent_backward_scratch(const Numbers* numbers) {
  const PersistentBackward scan = scan_of(*numbers);
  return scratch_layout(true, scan.cell, element_bytes_of(scan.dtype), scan.H, scan.directions,
                        kShapes[scan.plan.shape], scan.plan)
      .bytes;
}

// Rows and columns of a shape.
EXPORTED void simt_shape(int shape, int* rows, int* columns) {
  *rows = kShapes[shape].rows(), *columns = kShapes[shape].columns;
}

EXPORTED int simt_shape_count() { return kShapeCount; }

// Whether a kernel is compiled for a meeting, as enum Meeting counts.
EXPORTED int simt_backward_is_compiled(int shape, int meeting) {
  return is_compiled(true, static_cast<Meeting>(meeting), shape);
}

// Returns null or what went wrong.
EXPORTED const char* simt_persistent_backward(const Numbers* numbers, const std::int32_t* lengths,
                                              void* scratch, void* const* arrays) {
  static std::string failure;
  PersistentBackward scan = scan_of(*numbers);
  scan.lengths = lengths, scan.scratch = scratch;
  for (int d = 0; d < scan.directions; ++d) {
    DIRECTION_ARRAYS(TAKE)
  }
  try {
    launch_persistent_backward(scan, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

// The persistent forward kernels' C interface: a scan is numbers, and arrays in the order that
// simt_persistent_forward_arrays() gives, for one direction after the other, null where there is
// none.
#include <exception>
#include <string>

#include "cuda/persistent/products.cuh"

namespace {

using namespace fused_rnn;
using namespace fused_rnn::cuda;

struct Numbers {
  std::int64_t cell, dtype, tf32, training, T, N, H, directions, reverse[2];
  std::int64_t shape, units, blocks, cluster, chunks, groups;
};

PersistentForward scan_of(const Numbers& n) {
  PersistentForward scan{};
  scan.cell = static_cast<CellKind>(n.cell);
  scan.dtype = static_cast<Dtype>(n.dtype);
  scan.tf32 = n.tf32 != 0, scan.training = n.training != 0;
  scan.T = n.T, scan.N = n.N, scan.H = n.H;
  scan.directions = static_cast<int>(n.directions);
  scan.direction[0].reverse = n.reverse[0] != 0, scan.direction[1].reverse = n.reverse[1] != 0;
  const Shape shape = kShapes[n.shape];
  Plan& plan = scan.plan;
  plan.shape = static_cast<int>(n.shape), plan.units = static_cast<int>(n.units);
  plan.blocks = static_cast<int>(n.blocks), plan.cluster = static_cast<int>(n.cluster);
  plan.columns = shape.columns, plan.chunks = static_cast<int>(n.chunks);
  plan.groups = static_cast<int>(n.groups);
  const int bytes = element_bytes_of(scan.dtype);
  const bool by_mma = scan.dtype != Dtype::kFloat || scan.tf32;
  plan.shared_bytes = shared_layout({false, shape, by_mma, bytes, n.H, plan.units, plan.chunks,
                                     exchange_bytes(false, plan.meeting(), shape, bytes, n.H,
                                                    plan.units, plan.cluster, plan.chunks)})
                          .bytes;
  return scan;
}

}  // namespace

#define DIRECTION_ARRAYS(X) \
  X(w_hh)                   \
  X(b_ih) X(b_hh) X(h0) X(c0) X(gates) X(extra) X(y) X(h_n) X(c_n)
#define NAME(field) #field " "
#define TAKE(field) direction.field = *arrays++;
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* simt_persistent_forward_arrays() { return DIRECTION_ARRAYS(NAME); }

EXPORTED std::int64_t simt_persistent_forward_scratch(const Numbers* numbers) {
  const PersistentForward scan = scan_of(*numbers);
  return scratch_layout(false, scan.cell, element_bytes_of(scan.dtype), scan.H, scan.directions,
                        kShapes[scan.plan.shape], scan.plan)
      .bytes;
}

EXPORTED int simt_shape_count() { return kShapeCount; }

// Rows and columns of a shape.
EXPORTED void simt_shape(int shape, int* rows, int* columns) {
  *rows = kShapes[shape].rows(), *columns = kShapes[shape].columns;
}

// Where an array of so many columns in shared memory has an element.
EXPORTED int simt_place_of(int columns, int row, int column) {
  return columns == 16  ? place_of<16>(row, column)
         : columns == 8 ? place_of<8>(row, column)
                        : place_of<1>(row, column);
}

EXPORTED int simt_forward_is_compiled(int shape, int in_cluster) {
  return is_compiled(false, in_cluster != 0 ? Meeting::kCluster : Meeting::kMemory, shape);
}

// Returns null or what went wrong.
EXPORTED const char* simt_persistent_forward(const Numbers* numbers, const std::int32_t* lengths,
                                             void* scratch, void* const* arrays) {
  static std::string failure;
  PersistentForward scan = scan_of(*numbers);
  scan.lengths = lengths;
  scan.scratch = scratch;
  for (int d = 0; d < scan.directions; ++d) {
    PersistentForwardDirection& direction = scan.direction[d];
    DIRECTION_ARRAYS(TAKE)
  }
  try {
    launch_persistent_forward(scan, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    failure = error.what();
    return failure.c_str();
  }
}

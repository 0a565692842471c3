// The plan of persistent kernels behind a C interface.
#include "cuda/persistent/plan_cache.h"

#include <cstring>

using namespace fused_rnn;
using namespace fused_rnn::cuda;

struct Answer {
  std::int32_t found, shape, units, blocks, cluster, columns, chunks, groups;
  std::int32_t rows, threads, flag_copies, flag_stride;
  std::int64_t shared_bytes, depth, padded_depth, scratch_bytes, register_bytes;
  double microseconds;
  char text[512];  // the plan in words, or the reason why there is none
};

namespace {

void describe_to(const PlanProblem* problem, const Planned& planned, Answer* answer) {
  *answer = {};
  std::string text = planned.reason;
  if (planned.plan.has_value()) {
    const Plan& p = *planned.plan;
    const Shape shape = kShapes[p.shape];
    const std::int64_t depth = slice_depth(problem->backward, problem->cell, problem->H, p);
    text = describe(*problem, p);
    answer->found = 1;
    answer->shape = p.shape, answer->units = p.units, answer->blocks = p.blocks;
    answer->cluster = p.cluster, answer->columns = p.columns, answer->chunks = p.chunks;
    answer->groups = p.groups, answer->shared_bytes = p.shared_bytes;
    answer->rows = shape.rows(), answer->threads = shape.threads(), answer->depth = depth;
    answer->padded_depth = padded_depth(shape, depth, element_bytes_of(problem->dtype));
    answer->scratch_bytes =
        scratch_layout(problem->backward, problem->cell, element_bytes_of(problem->dtype),
                       problem->H, problem->directions, shape, p)
            .bytes;
    answer->register_bytes = std::int64_t{1} * kept_fragments(shape, planning::by_mma(*problem)) *
                             shape.warps() * kFragmentBytes;
    answer->flag_copies = flag_layout(p).copies, answer->flag_stride = flag_layout(p).stride;
    answer->microseconds = planned.microseconds;
  }
  std::strncpy(answer->text, text.c_str(), sizeof(answer->text) - 1);
}

PlanCache cache;

}  // namespace

extern "C" void fused_rnn_plan(const PlanProblem* problem, const DeviceFacts* device,
                               Answer* answer) {
  describe_to(problem, make_plan(*problem, *device), answer);
}

// The same, remembered; returns how many plans have had to be made.
extern "C" std::int64_t fused_rnn_known_plan(const PlanProblem* problem, const DeviceFacts* device,
                                             Answer* answer) {
  describe_to(problem, cache.plan(*problem, *device), answer);
  return static_cast<std::int64_t>(cache.made());
}

// Whether a kernel is compiled for a shape, and how many shapes there are.
extern "C" int fused_rnn_is_compiled(int backward, int meeting, int shape) {
  return is_compiled(backward != 0, static_cast<Meeting>(meeting), shape);
}
extern "C" int fused_rnn_shape_count() { return kShapeCount; }

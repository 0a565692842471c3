// What an op accepts, one check per argument. Messages name the argument, what was expected and
// what came. The modules check users' input with torch's own messages first; these guard the ops
// themselves.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "dtypes.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch before 2.13 has it by its other name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fused_rnn {

using torch::stable::Tensor;
using Sizes = std::vector<std::int64_t>;

inline std::string to_string(const Sizes& sizes) {
  std::ostringstream out;
  out << '(';
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    out << (i > 0 ? ", " : "") << sizes[i];
  }
  out << (sizes.size() == 1 ? ",)" : ")");
  return out.str();
}

inline Sizes sizes_of(const Tensor& t) {
  Sizes sizes;
  for (std::int64_t d = 0; d < t.dim(); ++d) {
    sizes.push_back(t.size(d));
  }
  return sizes;
}

inline bool has_shape(const Tensor& t, const Sizes& shape) {
  bool same = t.dim() == static_cast<std::int64_t>(shape.size());
  for (std::size_t d = 0; same && d < shape.size(); ++d) {
    same = t.size(static_cast<std::int64_t>(d)) == shape[d];
  }
  return same;
}

inline Dtype checked_dtype(torch::headeronly::ScalarType type) {
  switch (type) {
#define FUSED_RNN_CASE(name, stored, compute) \
  case torch::headeronly::ScalarType::name:   \
    return Dtype::k##name;
    FUSED_RNN_DTYPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
    default:
      break;
  }
  STD_TORCH_CHECK(false,
                  "fused_rnn: x should be of dtype float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(type));
  return Dtype::kFloat;
}

inline Dtype checked_dtype(const Tensor& x) { return checked_dtype(x.scalar_type()); }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && a.get_device_index() == b.get_device_index();
}

// `t`, contiguous, after checking that it has this shape and goes with x.
inline Tensor checked(const Tensor& t, const char* name, const Sizes& shape, const Tensor& x) {
  STD_TORCH_CHECK(has_shape(t, shape), "fused_rnn: ", name, " should have shape ", to_string(shape),
                  ", got ", to_string(sizes_of(t)));
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "fused_rnn: ", name,
                  " should have the dtype of x, ", torch::headeronly::toString(x.scalar_type()),
                  ", got ", torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(same_device(t, x), "fused_rnn: ", name, " should be on the device of x");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> checked(const std::optional<Tensor>& t, const char* name,
                                     const Sizes& shape, const Tensor& x) {
  return t.has_value() ? std::optional<Tensor>(checked(*t, name, shape, x)) : std::nullopt;
}

// (T,) int64 on the CPU: positive, non-increasing, first N, their sum the rows of x.
inline Tensor checked_batch_sizes(const Tensor& t, std::int64_t N, std::int64_t rows) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == torch::headeronly::ScalarType::Long &&
                      t.dim() == 1 && t.size(0) > 0,
                  "fused_rnn: batch_sizes should be a non-empty 1-D int64 tensor on the CPU");
  const Tensor sizes = t.is_contiguous() ? t : torch::stable::contiguous(t);
  const auto* p = static_cast<const std::int64_t*>(sizes.const_data_ptr());
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < sizes.size(0); ++i) {
    STD_TORCH_CHECK(p[i] > 0, "fused_rnn: batch_sizes should be positive, got ", p[i], " at step ",
                    i);
    STD_TORCH_CHECK(i == 0 || p[i] <= p[i - 1], "fused_rnn: batch_sizes should not increase, got ",
                    p[i - 1], " then ", p[i], " at step ", i);
    sum += p[i];
  }
  STD_TORCH_CHECK(p[0] == N, "fused_rnn: batch_sizes should begin with the batch size of h0, ", N,
                  ", got ", p[0]);
  STD_TORCH_CHECK(sum == rows, "fused_rnn: batch_sizes should add up to the rows of x, ", rows,
                  ", got ", sum);
  return sizes;
}

}  // namespace fused_rnn

// What the paths take from PyTorch through the stable ABI: views, matrix products, sums, the
// current device and stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <vector>

#include "operands.h"
#include "device.h"

namespace fused_rnn {
namespace cuda {

inline std::int64_t element_bytes(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// Of the elements from `begin` on.
inline Tensor view(const Tensor& t, std::int64_t begin, std::array<std::int64_t, 2> sizes,
                   std::array<std::int64_t, 2> strides) {
  AtenTensorHandle handle = nullptr;
  // What it calls a storage offset is added to the tensor's own.
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 2, sizes.data(), strides.data(), begin, &handle));
  return Tensor(handle);
}

// `rows` rows of `columns` elements of a contiguous tensor, from row `begin` on.
inline Tensor matrix(const Tensor& t, std::int64_t begin, std::int64_t rows, std::int64_t columns) {
  return view(t, begin * columns, {rows, columns}, {columns, 1});
}

// Without the original's place in an autograd graph: an op may be called outside of one.
inline Tensor matrix(const Tensor& t) { return matrix(t, 0, t.size(0), t.size(1)); }

inline Tensor transposed(const Tensor& t) {
  return view(t, 0, {t.size(1), t.size(0)}, {1, t.size(1)});
}

template <std::size_t kCount>
Tensor call(const char* op, const char* overload, std::array<StableIValue, kCount> stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a b. `out` may be of float where a and b are of a narrower type: the sums are not rounded
// before the gates see them.
inline void multiply(const Tensor& a, const Tensor& b, Tensor& out) {
  using torch::stable::detail::from;
  const auto type = out.scalar_type();
  if (a.scalar_type() == type) {
    call<3>("aten::mm", "out", {from(a), from(b), from(out)});
    return;
  }
#if defined(FUSED_RNN_HOST_BENCH)  // only cuBLAS has products with a type of their own
  const Tensor wide_a = torch::stable::to(a, type), wide_b = torch::stable::to(b, type);
  call<3>("aten::mm", "out", {from(wide_a), from(wide_b), from(out)});
#else
  call<4>("aten::mm", "dtype_out", {from(a), from(b), from(type), from(out)});
#endif
}

// out[j] = sum over rows of t[..][j], in a fixed order.
inline void sum_rows(const Tensor& t, Tensor& out) {
  const std::int64_t rows = 0;
  torch::stable::sum_out(out, t, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
}

// The stable ABI has a difference of tensors, but no sum.
inline Tensor added(const Tensor& a, const Tensor& b) {
  return torch::stable::subtract(a, b, -1.0);
}

inline Tensor concatenated(const std::vector<Tensor>& pieces) {
  using torch::stable::detail::from;
  return call<2>("aten::cat", "", {from(pieces), from(std::int64_t{0})});
}

#if defined(FUSED_RNN_HOST_BENCH)
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
  explicit DeviceGuard(std::int64_t) {}
};
inline Stream current_stream(const Tensor&) { return nullptr; }
#else
// Kernels are launched on the current device, which need not be the tensors'.
struct DeviceGuard {
  explicit DeviceGuard(const Tensor& x) : guard(checked_index(x)) {}
  explicit DeviceGuard(std::int64_t index)
      : guard(static_cast<torch::stable::accelerator::DeviceIndex>(index)) {}
  static torch::stable::accelerator::DeviceIndex checked_index(const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), "fused_rnn: x should be on the CUDA device of the others");
    return x.get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard;
};
inline Stream current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}
#endif

}  // namespace cuda
}  // namespace fused_rnn

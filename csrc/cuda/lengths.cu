// See lengths.h.
#include "lengths.h"

#include <algorithm>

#include "launch.cuh"

namespace fused_rnn {
namespace cuda {
namespace {

constexpr int kAtOnce = 512;  // a launch's parameters have room for 4 KB

struct Numbers {
  std::int32_t of[kAtOnce];
};

__global__ void write_lengths(Numbers numbers, int n, std::int32_t* out) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) {
    out[i] = numbers.of[i];
  }
}

}  // namespace

void launch_write_lengths(const std::int32_t* host, std::int64_t n, std::int32_t* device,
                          Stream stream) {
  for (std::int64_t begin = 0; begin < n; begin += kAtOnce) {
    const int count = static_cast<int>(std::min<std::int64_t>(kAtOnce, n - begin));
    Numbers numbers{};
    std::copy_n(host + begin, count, numbers.of);
    launch(write_lengths, "write_lengths", dim3(1), dim3(kAtOnce), 0, stream, numbers, count,
           device + begin);
  }
}

}  // namespace cuda
}  // namespace fused_rnn

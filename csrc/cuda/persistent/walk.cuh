// Which sequences each step of a scan has, and where their rows are.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace fused_rnn {
namespace cuda {

// The steps of a scan, k = 0 .. T - 1: which sequences they have, and where their rows are. The
// longest sequences stand first, so a step has the first so many.
class ForwardWalk {
 public:
  int k = 0;
  int before = 0, now, after;  // sequences at k - 1, k and k + 1
  std::int64_t row;            // of sequence 0

  __device__ __forceinline__ ForwardWalk(const std::int32_t* lengths, std::int64_t T,
                                         std::int64_t N, bool reverse)
      : lengths_(lengths),
        T_(static_cast<int>(T)),
        N_(static_cast<int>(N)),
        reverse_(reverse),
        longer_(reverse ? 0 : N_) {
    look();
    now = count(0);
    row = reverse ? all_rows() - now : 0;
    after = count(1);
  }

  __device__ __forceinline__ void advance() {
    row += reverse_ ? -after : now;
    before = now, now = after;
    ++k;
    after = count(k + 1);
  }

 private:
  // To be asked for 0, 1, 2, ... in turn.
  __device__ __forceinline__ int count(int i) {
    if (i >= T_) {
      return 0;
    }
    if (lengths_ == nullptr) {
      return N_;
    }
    if (reverse_) {
      for (; longer_ < N_ && edge_ > T_ - 1 - i; look()) ++longer_;
    } else {
      for (; longer_ > 0 && edge_ <= i; look()) --longer_;
    }
    return longer_;
  }

  // The length that the next change of the count hangs on.
  __device__ __forceinline__ void look() {
    const int n = reverse_ ? longer_ : longer_ - 1;
    edge_ = lengths_ != nullptr && n >= 0 && n < N_ ? lengths_[n] : 0;
  }

  __device__ __forceinline__ std::int64_t all_rows() const {
    if (lengths_ == nullptr) {
      return std::int64_t{T_} * N_;
    }
    std::int64_t rows = 0;
    for (int n = 0; n < N_; ++n) {
      rows += lengths_[n];
    }
    return rows;
  }

  const std::int32_t* const lengths_;
  const int T_, N_;
  const bool reverse_;
  int longer_, edge_ = 0;
};

}  // namespace cuda
}  // namespace fused_rnn

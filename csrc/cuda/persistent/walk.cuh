// Which sequences each step of a scan has, and where their rows are: forward and backward.
#pragma once

#include <cstdint>

#include "params.h"
#include "products.cuh"
#include "cuda/launch.cuh"

namespace fused_rnn {
namespace cuda {

// The steps of a scan, k = 0 .. T - 1: which sequences they have, and where their rows are. The
// longest sequences stand first, so a step has the first so many.
class ForwardWalk {
 public:
  int k = 0;
  int before = 0, now, after, beyond;  // sequences at k - 1, k, k + 1 and k + 2
  std::int64_t row;                    // of sequence 0

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
    beyond = count(2);
  }

  __device__ __forceinline__ void advance() {
    row += reverse_ ? -after : now;
    before = now, now = after, after = beyond;
    ++k;
    beyond = count(k + 2);
  }

  // Of sequence 0 at k + 2.
  __device__ __forceinline__ std::int64_t row_beyond() const {
    return reverse_ ? row - after - beyond : row + now + after;
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

// The steps of a scan from its last to its first, j = 0 .. T. As the longest sequences stand first,
// a step has the first so many; a sequence's steps follow one another, and at j = T none is left.
class BackwardWalk {
 public:
  int j = 0;
  int before = 0, now, after;  // sequences at j - 1, j and j + 1
  std::int64_t row;            // where those of j begin

  // By all lanes of a warp.
  __device__ __forceinline__ BackwardWalk(const PersistentBackward& a, bool reverse)
      : a_(a), reverse_(reverse), longer_(reverse ? static_cast<int>(a.N) : 0) {
    now = count(0);
    after = count(1);
    row = reverse ? 0 : all_rows() - now;
  }

  __device__ __forceinline__ void advance() {
    ++j;
    row = row_after();
    before = now, now = after;
    after = count(j + 1);
  }

  // Where those of j + 1 begin, if there are any: time runs on where the scan ran back.
  __device__ __forceinline__ std::int64_t row_after() const {
    return reverse_ ? row + now : row - after;
  }

  // Where the rows of j + 2 begin, or, with as many sequences from there on, something close to it
  // that is good for a hint. Not known for sequences that end on the way.
  __device__ __forceinline__ bool has_beyond() const {
    return j + 2 < a_.T && (a_.lengths == nullptr || !reverse_);
  }
  __device__ __forceinline__ std::int64_t row_beyond() const {
    return reverse_ ? row_after() + after : row_after() - after;
  }

 private:
  // To be asked for 0, 1, 2, ... in turn.
  __device__ __forceinline__ int count(int i) {
    const std::int32_t* const lengths = a_.lengths;
    const int T = static_cast<int>(a_.T), N = static_cast<int>(a_.N);
    if (i >= T) {
      return 0;
    }
    if (lengths == nullptr) {
      return N;
    }
    if (reverse_) {
      while (longer_ > 0 && lengths[longer_ - 1] <= i) --longer_;
    } else {
      while (longer_ < N && lengths[longer_] > T - 1 - i) ++longer_;
    }
    return longer_;
  }

  __device__ __forceinline__ std::int64_t all_rows() const {
    if (a_.lengths == nullptr) {
      return a_.T * a_.N;
    }
    long long rows = 0;
    for (std::int64_t n = lane_of_warp(); n < a_.N; n += 32) {
      rows += a_.lengths[n];
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      rows += __shfl_xor_sync(kAllLanes, rows, lanes);
    }
    return rows;
  }

  const PersistentBackward& a_;
  const bool reverse_;
  int longer_;  // sequences that are longer than the time that was asked for last
};

}  // namespace cuda
}  // namespace fused_rnn

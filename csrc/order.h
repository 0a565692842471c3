// The order of the steps. In the namespace of whoever includes it: the SIMD levels compile it for
// different machines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "scan.h"

#if !defined(FUSED_RNN_LEVEL)
#error "order.h stands in the namespace FUSED_RNN_LEVEL, which has no name here"
#endif

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Steps in scan order, k = 0 .. T-1, and the rows (in time order) that each of them covers.
class Steps {
 public:
  explicit Steps(const ScanArgs& a) : Steps(a.T, a.N, a.batch_sizes, a.reverse) {}
  Steps(std::int64_t T_, std::int64_t N_, const std::int64_t* batch_sizes, bool reverse)
      : T(T_), N(N_), reverse_(reverse) {
    if (batch_sizes != nullptr) {
      begin_.resize(static_cast<std::size_t>(T) + 1, 0);
      for (std::int64_t t = 0; t < T; ++t) {
        begin_[static_cast<std::size_t>(t) + 1] =
            begin_[static_cast<std::size_t>(t)] + batch_sizes[t];
      }
    }
  }

  const std::int64_t T, N;

  // First row of scan step k. Steps -1 and T have no rows.
  std::int64_t begin(std::int64_t k) const { return k < 0 || k >= T ? 0 : row_of_time(time(k)); }
  std::int64_t batch(std::int64_t k) const {
    return k < 0 || k >= T ? 0 : row_of_time(time(k) + 1) - row_of_time(time(k));
  }
  std::int64_t total() const { return row_of_time(T); }

  // The rows of steps k0 .. k1-1, which stand together whichever way the scan goes.
  std::int64_t first_row(std::int64_t k0, std::int64_t k1) const {
    return std::min(begin(k0), begin(k1 - 1));
  }
  std::int64_t rows(std::int64_t k0, std::int64_t k1) const {
    const std::int64_t last = std::max(time(k0), time(k1 - 1));
    return row_of_time(last + 1) - first_row(k0, k1);
  }

 private:
  std::int64_t time(std::int64_t k) const { return reverse_ ? T - 1 - k : k; }
  std::int64_t row_of_time(std::int64_t t) const {
    return begin_.empty() ? t * N : begin_[static_cast<std::size_t>(t)];
  }

  bool reverse_;
  std::vector<std::int64_t> begin_;
};

// The end of the group of steps that begins with k and has at most `rows` rows, or one step; of Steps
// or of what reads like them.
template <class StepsOf>
std::int64_t chunk_end(const StepsOf& s, std::int64_t k, std::int64_t rows) {
  std::int64_t end = k + 1;
  while (end < s.T && s.rows(k, end + 1) <= rows) {
    ++end;
  }
  return end;
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

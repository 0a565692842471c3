// What the sanitized programs of some kernels share: arrays that are exactly as long as they have to be, and
// comparisons that are counted.
#pragma once

#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace fused_rnn::bench {

inline int failures = 0, comparisons = 0;

inline void check(bool good, const std::string& where, const char* what) {
  ++comparisons;
  if (!good) {
    ++failures;
    std::printf("WRONG %s: %s\n", where.c_str(), what);
  }
}

template <class T>
using Array = std::vector<T>;

// Between -1 and 1, the same in every run.
template <class T>
Array<T> numbers(std::int64_t count, std::uint32_t& seed, double scale = 1) {
  Array<T> found(static_cast<std::size_t>(count));
  for (T& v : found) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<T>(scale * (static_cast<double>(seed >> 8) / (1 << 23) - 1));
  }
  return found;
}

template <class T>
Array<T> unset(std::int64_t count) {
  return Array<T>(static_cast<std::size_t>(count), std::numeric_limits<T>::quiet_NaN());
}

// Null for an array that there is not.
template <class T>
const T* read(const Array<T>& a) {
  return a.empty() ? nullptr : a.data();
}

}  // namespace fused_rnn::bench

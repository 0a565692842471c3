// Layer norm of a row, forward and backward.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
T sum_of(Vec<T> v) {
  T sum{};
  for (std::int64_t i = 0; i < kLanes<T>; ++i) {
    sum += v[i];
  }
  return sum;
}

// Calls f(first unit, how many) for vectors of `units` units.
template <class T, class F>
FUSED_RNN_INLINE void for_units(std::int64_t units, F&& f) {
  std::int64_t j = 0;
  for (; j + kLanes<T> <= units; j += kLanes<T>) {
    f(j, kLanes<T>);
  }
  if (j < units) {
    f(j, units - j);
  }
}

// The sum over vectors f(first unit, how many), whose other lanes are zero. In four running sums: one
// would wait for itself.
template <class T, class F>
FUSED_RNN_INLINE T sum_units(std::int64_t units, F&& f) {
  constexpr std::int64_t kW = kLanes<T>;
  Vec<T> s0{}, s1{}, s2{}, s3{};
  std::int64_t j = 0;
  for (; j + 4 * kW <= units; j += 4 * kW) {
    s0 += f(j, kW);
    s1 += f(j + kW, kW);
    s2 += f(j + 2 * kW, kW);
    s3 += f(j + 3 * kW, kW);
  }
  for (; j < units; j += kW) {
    s0 += f(j, std::min(kW, units - j));
  }
  return sum_of<T>((s0 + s1) + (s2 + s3));
}

// Lanes from `valid` on as zero: what is computed from the zeros there may be anything.
template <class T>
FUSED_RNN_INLINE Vec<T> only(Vec<T> v, std::int64_t valid) {
  for (std::int64_t i = valid; i < kLanes<T>; ++i) {
    v[i] = T{};
  }
  return v;
}

template <class T>
struct Moments {
  T mean, scale;  // 1 / sqrt(variance + eps)

  FUSED_RNN_INLINE Vec<T> hat(Vec<T> v) const { return (v - mean) * scale; }

  // Those of one of a row's norms, among those of the others.
  static Moments read(const T* stats, int which) {
    return {stats[2 * which], stats[2 * which + 1]};
  }
  void write(T* stats, int which) const {
    stats[2 * which] = mean;
    stats[2 * which + 1] = scale;
  }
};

template <class T>
Moments<T> moments_of(const T* row, std::int64_t units, double eps) {
  const T count = static_cast<T>(units);
  const T mean = sum_units<T>(units, [&](std::int64_t j,
                                         std::int64_t valid) { return load(row + j, valid); }) /
                 count;
  const T variance = sum_units<T>(units,
                                  [&](std::int64_t j, std::int64_t valid) {
                                    const Vec<T> d = only<T>(load(row + j, valid) - mean, valid);
                                    return d * d;
                                  }) /
                     count;
  return {mean, T{1} / std::sqrt(variance + static_cast<T>(eps))};
}

// From the gradient `d` of gain hat(row) that of `row`, into `out`, which may be `d`; adds the gain's.
template <class T>
void normalise_back(const T* row, const Moments<T>& m, const T* d, std::int64_t units,
                    const T* gain, T* out, T* dgain) {
  Vec<T> sum{}, product{};
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    const Vec<T> hat = m.hat(load(row + j, valid)), dv = load(d + j, valid);
    const Vec<T> g = dv * load(gain + j, valid);
    sum += g;
    product += g * hat;
    store<T>(dgain + j, load(dgain + j, valid) + dv * hat, valid);
  });
  const T mean = sum_of<T>(sum) / static_cast<T>(units);
  const T slope = sum_of<T>(product) / static_cast<T>(units);
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    const Vec<T> hat = m.hat(load(row + j, valid));
    const Vec<T> g = load(d + j, valid) * load(gain + j, valid);
    store<T>(out + j, (g - mean - hat * slope) * m.scale, valid);
  });
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

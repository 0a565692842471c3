// Bands of sequences: what a batch of many is cut into.
//
// A step of thousands of sequences leaves the cache: its pre-activations are gone when they are
// needed, and the weights' gradients, which meet all rows of a step, fetch the inputs again for every
// few units. So a band is taken through all its steps before the next one begins.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Sequences [first, first + N) of a scan. Steps are counted and rows numbered as in the scan, so that
// a band reads as Steps do; all its rows are in scan steps [from, T).
class Band {
 public:
  Band(const Steps& steps, std::int64_t first_, std::int64_t n)
      : first(first_), N(n), T(steps.T), steps_(&steps) {
    while (first > 0 && batch(from) == 0) {  // reverse
      ++from;
    }
    while (first > 0 && batch(T - 1) == 0) {
      --T;
    }
  }

  std::int64_t first, N, from = 0, T;

  std::int64_t batch(std::int64_t k) const {
    return std::clamp<std::int64_t>(steps_->batch(k) - first, 0, N);
  }
  // Row of the scan. Steps without one of the band's have none.
  std::int64_t begin(std::int64_t k) const { return steps_->begin(k) + first; }

  std::int64_t first_row(std::int64_t k0, std::int64_t k1) const {
    return steps_->first_row(k0, k1) + first;
  }
  // Of steps k0 .. k1-1; more than any chunk has where others' rows stand between theirs.
  std::int64_t rows(std::int64_t k0, std::int64_t k1) const {
    if (k1 - k0 == 1) {
      return batch(k0);
    }
    const std::int64_t earliest = steps_->begin(k0) < steps_->begin(k1 - 1) ? k0 : k1 - 1;
    const bool alone = first == 0 && steps_->batch(earliest) <= N;
    return alone ? steps_->rows(k0, k1) : std::numeric_limits<std::int64_t>::max();
  }

 private:
  const Steps* steps_;
};

// The most sequences of a band, whose widest array has `width` values in a row: such arrays are to stay
// in the second-level cache, and there are to be enough rows for the weights that are read at each
// step, or changed. More of ragged ones: a step has ever fewer of a band's.
inline std::int64_t band_limit(const ScanArgs& a, std::int64_t width) {
  constexpr std::int64_t kFewest = 256, kValues = 1 << 18;
  return std::max(kFewest, kValues / width) * (a.batch_sizes != nullptr ? 4 : 1);
}

// Bands of nearly equal size, in the order in which they are taken.
inline std::vector<Band> cut_into_bands(const Steps& steps, std::int64_t limit) {
  const std::int64_t count = std::max<std::int64_t>(ceil_div(steps.N, limit), 1);
  std::vector<Band> bands;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t first = steps.N * i / count;
    bands.emplace_back(steps, first, steps.N * (i + 1) / count - first);
  }
  return bands;
}

// Sequences of the largest one.
inline std::int64_t band_rows(const std::vector<Band>& bands) {
  std::int64_t most = 0;
  for (const Band& band : bands) {
    most = std::max(most, band.N);
  }
  return most;
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

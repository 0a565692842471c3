// Bands of sequences: what a batch of many is cut into, on vectors and on tiles.
//
// A step of thousands of sequences leaves the cache: its pre-activations are gone when they are
// needed, and the weights' gradients, which meet all rows of a step, fetch the inputs again for every
// few units. So a band is taken through all its steps before the next one begins. Bands have nothing
// to do with each other.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Sequences [first, first + N) of a scan, and the steps that they have, k = 0 .. T-1. It reads as Steps
// do, with rows of the scan.
class Band {
 public:
  Band(const ScanArgs& a, const Steps& scan, std::int64_t first_, std::int64_t n)
      : own(own_steps(a, first_, n)),
        first(first_),
        N(n),
        T(own.T),
        scan_(&scan),
        skipped_(a.reverse ? scan.T - own.T : 0) {}

  const Steps own;  // as if there were no other sequences
  const std::int64_t first, N, T;

  std::int64_t batch(std::int64_t k) const { return own.batch(k); }
  // Of the band's first sequence, where step k has it.
  std::int64_t begin(std::int64_t k) const { return scan_->begin(k + skipped_) + first; }

  std::int64_t first_row(std::int64_t k0, std::int64_t k1) const {
    return scan_->first_row(k0 + skipped_, k1 + skipped_) + first;
  }
  // Of steps k0 .. k1-1; more than any chunk has where others' rows stand between theirs.
  std::int64_t rows(std::int64_t k0, std::int64_t k1) const {
    if (k1 - k0 == 1) {
      return batch(k0);
    }
    const std::int64_t earliest = own.begin(k0) < own.begin(k1 - 1) ? k0 : k1 - 1;
    const bool alone = first == 0 && scan_->batch(earliest + skipped_) <= N;
    return alone ? own.rows(k0, k1) : std::numeric_limits<std::int64_t>::max();
  }

 private:
  static Steps own_steps(const ScanArgs& a, std::int64_t first, std::int64_t n) {
    if (a.batch_sizes == nullptr) {
      return Steps(a.T, n, nullptr, a.reverse);
    }
    std::vector<std::int64_t> sizes;
    for (std::int64_t t = 0; t < a.T && a.batch_sizes[t] > first; ++t) {
      sizes.push_back(std::min(a.batch_sizes[t] - first, n));
    }
    return Steps(static_cast<std::int64_t>(sizes.size()), n, sizes.data(), a.reverse);
  }

  const Steps* scan_;
  std::int64_t skipped_;  // steps of the scan before the band's first
};

// The most sequences of a band, whose widest array has `width` values in a row: such arrays are to stay
// in the second-level cache, and there are to be enough rows for the weights that are read at each
// step, or changed. More of ragged ones: a step has ever fewer of a band's.
inline std::int64_t band_limit(const ScanArgs& a, std::int64_t width) {
  constexpr std::int64_t kFewest = 256, kValues = 1 << 18;
  return std::max(kFewest, kValues / width) * (a.batch_sizes != nullptr ? 4 : 1);
}

// Bands of nearly equal size, in the order in which they are taken; all but the last of whole
// `multiple`s.
inline std::vector<Band> cut_into_bands(const ScanArgs& a, const Steps& scan, std::int64_t limit,
                                        std::int64_t multiple = 1) {
  const std::int64_t count = std::max<std::int64_t>(ceil_div(a.N, limit), 1);
  const std::int64_t whole = ceil_div(ceil_div(a.N, count), multiple) * multiple;
  std::vector<Band> bands;
  for (std::int64_t first = 0, i = 1; first < a.N; ++i) {
    const std::int64_t end = multiple > 1 ? std::min(i * whole, a.N) : a.N * i / count;
    bands.emplace_back(a, scan, first, end - first);
    first = end;
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

// Consecutive steps of a band whose products are made together.
struct Chunk {
  std::int64_t begin, end;
  std::int64_t row, rows;  // the first, as `steps` count them, and how many
};

// Of `steps`, which are a band or its own.
template <class StepsOf>
Chunk chunk_of(const StepsOf& steps, std::int64_t begin, std::int64_t end) {
  return {begin, end, steps.first_row(begin, end), steps.rows(begin, end)};
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

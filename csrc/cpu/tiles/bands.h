// The bands that forward and backward take on tiles. As bands.h, but that a chunk is of a band's own rows.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Sequences of a band: as many as leave a step's operands in the second-level cache.
constexpr std::int64_t kTileBandRows = 256;

inline std::vector<Band> cut_for_tiles(const ScanArgs& a, const Steps& scan) {
  return cut_into_bands(a, scan, kTileBandRows, 2 * kTileRows);
}

// Of the largest band, in pairs of tiles.
inline std::int64_t padded_band_rows(std::int64_t N) {
  return ceil_div(ceil_div(N, ceil_div(N, kTileBandRows)), 2 * kTileRows) * 2 * kTileRows;
}

// Calls f(step, sequence, row of the chunk), the first two of the band, for rows [from, to) of a chunk:
// rows are gathered from wherever they stand when they are cut into pieces.
template <class F>
void for_chunk_rows(const Band& band, const Chunk& chunk, std::int64_t from, std::int64_t to,
                    F&& f) {
  for (std::int64_t k = chunk.begin; k < chunk.end; ++k) {
    const std::int64_t first = band.own.begin(k) - chunk.row;
    const std::int64_t last = std::min(to, first + band.batch(k));
    for (std::int64_t row = std::max(from, first); row < last; ++row) {
      f(k, row - first, row);
    }
  }
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

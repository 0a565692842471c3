// What forward and backward share on tiles: parts of the batch, and where packed weights lie.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Sequences that are scanned together, through all their steps: as many as leave a step's operands in
// the second-level cache. Parts have nothing to do with each other.
constexpr std::int64_t kPartRows = 256;

struct Part {
  // Sequences [first, first + steps.N) of the scan. Their steps, the first of which is scan step
  // `skip` of the whole.
  Steps steps;
  std::int64_t first, skip;
};

inline std::int64_t padded_part_rows(std::int64_t N) {
  return ceil_div(ceil_div(N, ceil_div(N, kPartRows)), 2 * kTileRows) * 2 * kTileRows;
}

inline std::vector<Part> cut_batch(const ScanArgs& a) {
  std::vector<Part> parts;
  const std::int64_t rows = std::min(padded_part_rows(a.N), a.N);
  std::vector<std::int64_t> sizes;
  for (std::int64_t first = 0; first < a.N; first += rows) {
    const std::int64_t n = std::min(rows, a.N - first);
    sizes.clear();
    for (std::int64_t t = 0; a.batch_sizes != nullptr && t < a.T; ++t) {
      if (a.batch_sizes[t] > first) {
        sizes.push_back(std::min(a.batch_sizes[t] - first, n));
      }
    }
    const std::int64_t T = a.batch_sizes != nullptr ? static_cast<std::int64_t>(sizes.size()) : a.T;
    parts.push_back({Steps(T, n, sizes.empty() ? nullptr : sizes.data(), a.reverse), first,
                     a.reverse ? a.T - T : 0});
  }
  return parts;
}

// Consecutive steps of a part whose products with x are made together.
struct TileChunk {
  std::int64_t begin, end;  // scan steps of the part
  std::int64_t row, rows;   // of the part, in time's order
};

// Calls f(scan step, sequence, row of the chunk), all of the part, for rows [from, to) of a chunk.
template <class F>
void for_chunk_rows(const Part& part, const TileChunk& chunk, std::int64_t from, std::int64_t to,
                    F&& f) {
  for (std::int64_t k = chunk.begin; k < chunk.end; ++k) {
    const std::int64_t first = part.steps.begin(k) - chunk.row;
    const std::int64_t last = std::min(to, first + part.steps.batch(k));
    for (std::int64_t row = std::max(from, first); row < last; ++row) {
      f(k, row - first, row);
    }
  }
}

// Row of the scan that part's sequence i has in the part's scan step k.
inline std::int64_t scan_row(const Steps& steps, const Part& part, std::int64_t k, std::int64_t i) {
  return steps.begin(k + part.skip) + part.first + i;
}

// A cell's gates as columns of B. Two slices of hidden units are a block of depth of the next
// product's A, so they are made together: a group. A kernel takes a block: all gates of one slice or,
// where those are no even number, of two.
template <class Cell>
struct GateBlocks {
  static constexpr int kGates = Cell::kGates;
  static constexpr int kSlices = kGates % 2 == 0 ? 1 : 2;  // of a block
  static constexpr int kVectors = kGates * kSlices;
  static constexpr int kPerGroup = 2 / kSlices;
  static constexpr int kNarrow = kGates == 4 ? 4 : kGates == 3 ? 3 : 2;  // columns of multiply_1x
};

// A gate matrix as tiles of B: [block][strip of `width` vectors][k block][vector][piece], or as floats in
// the pieces' place.
template <class Cell, class S>
struct GateTiles {
  using Blocks = GateBlocks<Cell>;

  GateTiles(std::int64_t slices, std::int64_t blocks_deep_, int width_, bool floats_,
            bool keep = true)
      : blocks_deep(blocks_deep_),
        width(width_),
        floats(floats_),
        tile_size((floats_ ? 2 : kPieces<S>)*kTileSize),
        data(ceil_div<std::int64_t>(slices, 2) * Blocks::kPerGroup * block_size(), keep) {}

  std::int64_t block_size() const { return Blocks::kVectors * blocks_deep * tile_size; }
  const Piece* strip(std::int64_t block, std::int64_t i) const {
    return data.get() + block * block_size() + i * width * blocks_deep * tile_size;
  }
  Piece* tile(std::int64_t block, int vector, std::int64_t k) const {
    return data.get() + block * block_size() +
           ((vector / width * blocks_deep + k) * width + vector % width) * tile_size;
  }

  // Packs a vector of a block from `first_block` of depth on: the weights, `depth` columns of them, of the
  // pre-activations from `first_pre` on; no more than zeros past H. Returns whether pieces carry it.
  bool pack(const Shape<Cell, S>& s, const void* w, std::int64_t depth, int first_pre,
            std::int64_t block, int vector, std::int64_t first_block = 0) const {
    const std::int64_t slice = block * Blocks::kSlices + vector / Blocks::kGates;
    const RowBlock<S> rows =
        slice < s.slices
            ? s.gate_rows(w, depth, slice * Blocks::kGates + vector % Blocks::kGates, first_pre)
            : RowBlock<S>{static_cast<const S*>(w), 0};
    return pack_columns_of_b(rows, depth, depth, floats,
                             [&](std::int64_t k) { return tile(block, vector, first_block + k); });
  }

  std::int64_t blocks_deep;
  int width;
  bool floats;
  std::int64_t tile_size;
  Buffer<Piece> data;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// A gate matrix as columns of B in forward, and its product with rows of A.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

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
  static constexpr int kP = kPieces<S>;
  static constexpr std::int64_t kPairRows = 2 * kTileRows, kFold = kBlocksPerStepFold<kP>;
  using Sums = float[Blocks::kVectors][kPairRows * kTileRows];

  // `wide`: for two tiles of rows at a time, or one.
  GateTiles(std::int64_t slices, std::int64_t blocks_deep_, bool wide_, bool floats_,
            bool keep = true)
      : blocks_deep(blocks_deep_),
        wide(wide_),
        width(wide_ ? 2 : Blocks::kNarrow),
        floats(floats_),
        tile_size((floats_ ? 2 : kP) * kTileSize),
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

  // How often a block's product calls what runs beside it.
  std::int64_t calls() const {
    return blocks_deep * (wide ? Blocks::kVectors / 2 * kCalls2x2<kP>
                               : Blocks::kVectors / Blocks::kNarrow * kCalls1x<Blocks::kNarrow>);
  }

  // Rows a0, and below them a1 where those are wanted (wide), times a block: [vector][row][lane].
  template <class W>
  FUSED_RNN_INLINE void multiply(TileRow a0, TileRow a1, std::int64_t block, Sums& sums,
                                 CutRoom& room, W&& work) const {
    if constexpr (kP > 1) {
      if (floats) {
        multiply_strips(a0, a1, block, sums, work, [&](const Piece* strip, auto columns) {
          return CutStrip<decltype(columns)::value>{reinterpret_cast<const float*>(strip), room};
        });
        return;
      }
    }
    multiply_strips(a0, a1, block, sums, work, [&](const Piece* strip, auto columns) {
      return PackedStrip<kP, decltype(columns)::value>{strip};
    });
  }

  std::int64_t blocks_deep;
  bool wide;
  int width;
  bool floats;
  std::int64_t tile_size;
  Buffer<Piece> data;

 private:
  template <class W, class F>
  FUSED_RNN_INLINE void multiply_strips(TileRow a0, TileRow a1, std::int64_t block, Sums& sums,
                                        W&& work, F&& columns) const {
    constexpr int kN = Blocks::kNarrow;
    if (wide) {
      for (int j = 0; j < Blocks::kVectors / 2; ++j) {
        float *const first = sums[2 * j], *const second = sums[2 * j + 1];
        float* const out[4] = {first, second, first + kTileSums, second + kTileSums};
        folded_2x2<kP, false, kFold>(a0, a1,
                                     columns(strip(block, j), std::integral_constant<int, 2>{}),
                                     blocks_deep, out, work);
      }
      return;
    }
    for (int j = 0; j < Blocks::kVectors / kN; ++j) {
      float* out[4] = {};
      for (int v = 0; v < kN; ++v) {
        out[v] = sums[j * kN + v];
      }
      folded_1x<kP, kN, kFold>(a0, columns(strip(block, j), std::integral_constant<int, kN>{}),
                               blocks_deep, out, work);
    }
  }
  static constexpr std::int64_t kTileSums = kTileRows * kTileRows;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

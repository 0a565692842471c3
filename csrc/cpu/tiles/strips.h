// Matrices whose rows are the depth of a product: B in strips of two tiles of columns, without a
// transposition.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// [strip][block of depth][2][piece]. Within a block, depth j stands beside depth j + 16: their A is made of
// registers of 16 depths each, which come to lie side by side without a shuffle.
template <class S>
struct Strips {
  static constexpr std::int64_t kColumns = 2 * kTileRows;

  Strips() = default;
  Strips(std::int64_t columns_, std::int64_t blocks_, bool floats_ = false)
      : columns(columns_),
        blocks(blocks_),
        count(ceil_div(columns_, kColumns)),
        floats(floats_),
        tile_size((floats_ ? 2 : kPieces<S>)*kTileSize),
        data(count * blocks_ * 2 * tile_size) {}

  Piece* at(std::int64_t strip, std::int64_t block) const {
    return data.get() + (strip * blocks + block) * 2 * tile_size;
  }
  PackedStrip<kPieces<S>, 2> strip(std::int64_t strip, std::int64_t block) const {
    return {at(strip, block)};
  }
  CutStrip<2> strip_to_cut(std::int64_t strip, CutRoom& room) const {
    return {reinterpret_cast<const float*>(at(strip, 0)), room};
  }

  // Packs a block of a strip: row(j), j < 32, is a row of the matrix, or null where there is none.
  // Returns whether pieces carry it; one of tiny numbers alone only where `tiny`.
  template <class F>
  bool pack(std::int64_t strip, std::int64_t block, bool tiny, F&& row) const {
    Carried<S> carried;
    Piece* const out = at(strip, block);
    for (std::int64_t v = 0; v < 2; ++v) {
      const std::int64_t column = strip * kColumns + v * kTileRows;
      const std::int64_t valid = std::clamp<std::int64_t>(columns - column, 0, kTileRows);
      const auto of = [&](std::int64_t j) {
        const S* const p = valid > 0 ? row(j) : nullptr;
        return p != nullptr ? load(p + column, valid) : Vec<float>{};
      };
      for (std::int64_t j = 0; j < kTileRows; ++j) {
        const Vec<float> first = of(j), second = of(j + kTileRows);
        carried.add(first);
        carried.add(second);
        if (floats) {
          put_floats(first, second, out + v * tile_size + j * 2 * kTileDepth);
        } else {
          put_pair<S>(first, second, out + v * tile_size + j * kTileDepth);
        }
      }
    }
    return tiny ? carried.finite() : carried.all_lanes();
  }

  std::int64_t columns = 0, blocks = 0, count = 0;
  bool floats = false;  // to be cut later (cut.h)
  std::int64_t tile_size = 0;
  Buffer<Piece> data;
};

// Row of a gate matrix at depth j of block (gate, group of slices); null past H.
template <class Cell, class S>
const S* gate_depth(const Shape<Cell, S>& s, const void* w, std::int64_t columns, int pre,
                    std::int64_t group, std::int64_t j) {
  const std::int64_t unit = group * kTileDepth + j;
  return unit < s.H ? static_cast<const S*>(w) + (Cell::order(pre) * s.H + unit) * columns
                    : nullptr;
}

// Rows of A, not cut into tiles, so that a tile may begin at any of them: [block][piece][row][32].
struct RowPieces {
  RowPieces() = default;
  RowPieces(std::int64_t rows_, std::int64_t blocks, int pieces_)
      // A tile may begin at the last row. An odd number of tiles: else all blocks would lie on the
      // same sets of the cache.
      : rows((ceil_div(rows_ + 2 * kTileRows, 2 * kTileRows) * 2 + 1) * kTileRows),
        pieces(pieces_),
        data(blocks * pieces_ * rows * kTileDepth) {}

  Piece* at(std::int64_t block, int piece, std::int64_t row) const {
    return data.get() + ((block * pieces + piece) * rows + row) * kTileDepth;
  }
  std::int64_t piece() const { return rows * kTileDepth; }
  TileRow tile(std::int64_t block, std::int64_t row) const {
    return {at(block, 0, row), pieces * piece(), piece()};
  }

  std::int64_t rows = 0;
  int pieces = 0;
  Buffer<Piece> data;
};

// A pair of row tiles, from `row` on (`both`: or the first of them alone), of a's depth from `block` on,
// times a strip: [2 * tile of rows + column]. `work` gets how many calls the product makes of it.
template <class S, class W>
FUSED_RNN_INLINE void multiply_strip(const RowPieces& a, std::int64_t block, std::int64_t row,
                                     const Strips<S>& b, std::int64_t strip, bool both,
                                     float (&sums)[4][kTileRows * kTileRows], CutRoom& room,
                                     W&& work) {
  constexpr int kP = kPieces<S>;
  float* const out[4] = {sums[0], sums[1], sums[2], sums[3]};
  const TileRow a0 = a.tile(block, row), a1 = a.tile(block, row + kTileRows);
  const auto multiply = [&](auto columns) {
    if (both) {
      folded_2x2<kP, true>(a0, a1, columns, b.blocks, out, [&] { work(b.blocks * kCalls2x2<kP>); });
    } else {
      folded_1x<kP, 2>(a0, columns, b.blocks, out, [&] { work(b.blocks * kCalls1x<2>); });
    }
  };
  if constexpr (kP > 1) {
    if (b.floats) {
      multiply(b.strip_to_cut(strip, room));
      return;
    }
  }
  multiply(b.strip(strip, 0));
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

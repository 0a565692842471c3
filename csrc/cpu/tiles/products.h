// The products of tiles: sums of 32 rows by two columns of tiles, or of 16 rows by up to four.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

using Tiles = FUSED_RNN_TILES;

// Registers at full size for as long as this lives; the thread's own state (none: those who use tiles
// release them) afterwards.
class TileScope {
 public:
  TileScope() { Tiles::configure(); }
  ~TileScope() { Tiles::release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// 16 rows of A along K: piece p of block k at data + k * block + p * piece.
struct TileRow {
  const Piece* data;
  std::int64_t block, piece;

  FUSED_RNN_INLINE TileRow from(std::int64_t k) const { return {data + k * block, block, piece}; }
};

constexpr std::int64_t kTileBytesPerRow = 64;

struct NoWork {
  FUSED_RNN_INLINE void operator()() const {}
};

// Cache lines ahead of a product's reads, some after each multiplication: all at once they would hold
// it up. Where one piece is all, there are too few multiplications to hide them behind.
template <int kP>
FUSED_RNN_INLINE void prefetch_lines(const Piece*& at) {
  if constexpr (kP > 1) {
    for (int i = 0; i < 4; ++i, at += kTileDepth) {
      __builtin_prefetch(at, 0, 3);
    }
  }
}

// [a0; a1] times a strip of B, [block][2][piece], into 16 x 16 sums each: c[2 * row + column].
// `work` runs once for every block, beside the products.
template <int kP, class W>
FUSED_RNN_INLINE void multiply_2x2(TileRow a0, TileRow a1, const Piece* b, std::int64_t blocks,
                                   float* const* c, W&& work) {
  Tiles::zero<0>(), Tiles::zero<1>(), Tiles::zero<2>(), Tiles::zero<3>();
  for (std::int64_t k = 0; k < blocks; ++k, b += 2 * kP * kTileSize) {
    const Piece *const p0 = a0.data + k * a0.block, *const p1 = a1.data + k * a1.block;
    const auto load_a = [&](int p) __attribute__((always_inline)) {
      Tiles::load<4>(p0 + p * a0.piece, kTileBytesPerRow);
      Tiles::load<5>(p1 + p * a1.piece, kTileBytesPerRow);
    };
    const auto load_b = [&](int p) __attribute__((always_inline)) {
      Tiles::load<6>(b + p * kTileSize, kTileBytesPerRow);
      Tiles::load<7>(b + (kP + p) * kTileSize, kTileBytesPerRow);
    };
    const Piece* ahead = b + 4 * kP * kTileSize;
    const auto multiply = [&]() __attribute__((always_inline)) {
      Tiles::multiply<0, 4, 6>();
      prefetch_lines<kP>(ahead);
      Tiles::multiply<2, 5, 6>();
      prefetch_lines<kP>(ahead);
      Tiles::multiply<1, 4, 7>();
      prefetch_lines<kP>(ahead);
      Tiles::multiply<3, 5, 7>();
      prefetch_lines<kP>(ahead);
    };
    load_a(0);
    if constexpr (kP == 1) {
      load_b(0), multiply();
    } else {  // one operand changes at a time, the largest products come last
      load_b(2), multiply();
      load_b(1), multiply();
      load_a(1), multiply();
      load_b(0), multiply();
      load_a(2), multiply();
      load_a(0), multiply();
    }
    work();
  }
  Tiles::store<0>(c[0], kTileBytesPerRow), Tiles::store<1>(c[1], kTileBytesPerRow);
  Tiles::store<2>(c[2], kTileBytesPerRow), Tiles::store<3>(c[3], kTileBytesPerRow);
}

// One column of multiply_1x: A's pieces are in tiles 4, 5 and 6.
template <int kP, int kColumn>
FUSED_RNN_INLINE void multiply_column(const Piece* b) {
  Tiles::load<7>(b + (kP - 1) * kTileSize, kTileBytesPerRow);
  Tiles::multiply<kColumn, 4, 7>();
  if constexpr (kP > 1) {
    Tiles::load<7>(b + kTileSize, kTileBytesPerRow);
    Tiles::multiply<kColumn, 5, 7>();
    Tiles::multiply<kColumn, 4, 7>();
    Tiles::load<7>(b, kTileBytesPerRow);
    Tiles::multiply<kColumn, 6, 7>();
    Tiles::multiply<kColumn, 5, 7>();
    Tiles::multiply<kColumn, 4, 7>();
  }
}

// As multiply_2x2, for one tile of rows and kWidth columns: B is [block][kWidth][piece].
template <int kP, int kWidth, class W>
FUSED_RNN_INLINE void multiply_1x(TileRow a, const Piece* b, std::int64_t blocks, float* const* c,
                                  W&& work) {
  Tiles::zero<0>(), Tiles::zero<1>(), Tiles::zero<2>(), Tiles::zero<3>();
  constexpr std::int64_t kColumn = kP * kTileSize;
  for (std::int64_t k = 0; k < blocks; ++k, b += kWidth * kColumn) {
    const Piece* const p = a.data + k * a.block;
    Tiles::load<4>(p, kTileBytesPerRow);
    if constexpr (kP > 1) {
      Tiles::load<5>(p + a.piece, kTileBytesPerRow);
      Tiles::load<6>(p + 2 * a.piece, kTileBytesPerRow);
    }
    multiply_column<kP, 0>(b);
    multiply_column<kP, 1>(b + kColumn);
    if constexpr (kWidth > 2) multiply_column<kP, 2>(b + 2 * kColumn);
    if constexpr (kWidth > 3) multiply_column<kP, 3>(b + 3 * kColumn);
    work();
  }
  Tiles::store<0>(c[0], kTileBytesPerRow), Tiles::store<1>(c[1], kTileBytesPerRow);
  if constexpr (kWidth > 2) Tiles::store<2>(c[2], kTileBytesPerRow);
  if constexpr (kWidth > 3) Tiles::store<3>(c[3], kTileBytesPerRow);
}

// The rounding error of a running sum grows with its length: sums over this many blocks, added up,
// keep it near that of a blocked product (measured over K = 2048 and 6400: 2.3 and 6 times as
// exact). bfloat16's own rounding hides it.
template <int kP>
constexpr std::int64_t kBlocksPerFold = kP > 1 ? 16 : 64;

// Calls product(first block, blocks, where to) for each stretch of K, and adds the stretches up in
// the `count` tiles at c.
template <int kP, class F>
FUSED_RNN_INLINE void fold(std::int64_t blocks, float* const* c, int count, F&& product) {
  constexpr std::int64_t kFold = kBlocksPerFold<kP>;
  product(0, std::min(blocks, kFold), c);
  if (blocks <= kFold) {
    return;
  }
  alignas(64) float part[4][kTileRows * kTileRows];
  float* const parts[4] = {part[0], part[1], part[2], part[3]};
  for (std::int64_t k = kFold; k < blocks; k += kFold) {
    product(k, std::min(blocks - k, kFold), parts);
    for (int i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < kTileRows * kTileRows; j += kLanes<float>) {
        store<float>(c[i] + j, load(c[i] + j) + load(part[i] + j));
      }
    }
  }
}

template <int kP, class W>
void folded_2x2(TileRow a0, TileRow a1, const Piece* b, std::int64_t blocks, float* const* c,
                W&& work) {
  fold<kP>(blocks, c, 4, [&](std::int64_t k, std::int64_t n, float* const* to) {
    multiply_2x2<kP>(a0.from(k), a1.from(k), b + k * 2 * kP * kTileSize, n, to, work);
  });
}

template <int kP, int kWidth, class W>
void folded_1x(TileRow a, const Piece* b, std::int64_t blocks, float* const* c, W&& work) {
  fold<kP>(blocks, c, kWidth, [&](std::int64_t k, std::int64_t n, float* const* to) {
    multiply_1x<kP, kWidth>(a.from(k), b + k * kWidth * kP * kTileSize, n, to, work);
  });
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

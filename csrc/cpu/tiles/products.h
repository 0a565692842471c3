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

// How often a product calls what runs beside it, for every block of depth.
template <int kP>
constexpr std::int64_t kCalls2x2 = kP > 1 ? 6 : 1;
template <int kWidth>
constexpr std::int64_t kCalls1x = kWidth;

FUSED_RNN_INLINE void prefetch_lines(const Piece* at, int lines) {
#pragma GCC unroll 8
  for (int i = 0; i < lines; ++i) {
    __builtin_prefetch(at + i * kTileDepth, 0, 3);
  }
}

// B of a product as pieces, [block][kWidth][piece]. After each multiplication some lines of the block
// after the next are fetched: all at once they would hold it up. Where one piece is all, there are too
// few multiplications to hide them behind.
template <int kP, int kWidth>
struct PackedStrip {
  const Piece* data;

  static constexpr std::int64_t kBlock = kWidth * kP * kTileSize;
  FUSED_RNN_INLINE PackedStrip from(std::int64_t k) const { return {data + k * kBlock}; }
  FUSED_RNN_INLINE void begin(std::int64_t) const {}
  FUSED_RNN_INLINE const Piece* block() const { return data; }
  FUSED_RNN_INLINE void next() { data += kBlock; }
  // After multiplication i of `count` that a block takes.
  FUSED_RNN_INLINE void beside(int i, int count) const {
    if constexpr (kP > 1) {
      const int lines = static_cast<int>(kBlock / kTileDepth) / count;
      prefetch_lines(data + 2 * kBlock + i * lines * kTileDepth, lines);
    }
  }
};

// [a0; a1] times a strip of B of two columns, into 16 x 16 sums each: c[2 * row + column]. `kFetchA`: A's
// next block is fetched too, which pays where its pieces lie apart.
template <int kP, bool kFetchA, class B, class W>
FUSED_RNN_INLINE void multiply_2x2(TileRow a0, TileRow a1, B b, std::int64_t blocks,
                                   float* const* c, W&& work) {
  b.begin(blocks);
  Tiles::zero<0>(), Tiles::zero<1>(), Tiles::zero<2>(), Tiles::zero<3>();
  for (std::int64_t k = 0; k < blocks; ++k, b.next()) {
    const Piece *const p0 = a0.data + k * a0.block, *const p1 = a1.data + k * a1.block;
    const Piece* const strip = b.block();
    const auto load_a = [&](int p) __attribute__((always_inline)) {
      Tiles::load<4>(p0 + p * a0.piece, kTileBytesPerRow);
      Tiles::load<5>(p1 + p * a1.piece, kTileBytesPerRow);
    };
    const auto load_b = [&](int p) __attribute__((always_inline)) {
      Tiles::load<6>(strip + p * kTileSize, kTileBytesPerRow);
      Tiles::load<7>(strip + (kP + p) * kTileSize, kTileBytesPerRow);
    };
    const auto multiply = [&](int call) __attribute__((always_inline)) {
      const auto beside = [&](int i) __attribute__((always_inline)) {
        b.beside(call * 4 + i, 4 * kCalls2x2<kP>);
        if constexpr (kP > 1 && kFetchA) {  // a quarter of a tile of A's next block
          prefetch_lines((call % 2 == 0 ? p0 + a0.block : p1 + a1.block) + call / 2 * a0.piece +
                             i * 4 * kTileDepth,
                         4);
        }
      };
      Tiles::multiply<0, 4, 6>(), beside(0);
      Tiles::multiply<2, 5, 6>(), beside(1);
      Tiles::multiply<1, 4, 7>(), beside(2);
      Tiles::multiply<3, 5, 7>(), beside(3);
      work();
    };
    load_a(0);
    if constexpr (kP == 1) {
      load_b(0), multiply(0);
    } else {  // one operand changes at a time, the largest products come last
      load_b(2), multiply(0);
      load_b(1), multiply(1);
      load_a(1), multiply(2);
      load_b(0), multiply(3);
      load_a(2), multiply(4);
      load_a(0), multiply(5);
    }
  }
  Tiles::store<0>(c[0], kTileBytesPerRow), Tiles::store<1>(c[1], kTileBytesPerRow);
  Tiles::store<2>(c[2], kTileBytesPerRow), Tiles::store<3>(c[3], kTileBytesPerRow);
}

// One column of multiply_1x: A's pieces are in tiles 4, 5 and 6. `beside(i)` runs after product i.
template <int kP, int kColumn, class F>
FUSED_RNN_INLINE void multiply_column(const Piece* b, F&& beside) {
  Tiles::load<7>(b + (kP - 1) * kTileSize, kTileBytesPerRow);
  Tiles::multiply<kColumn, 4, 7>(), beside(0);
  if constexpr (kP > 1) {
    Tiles::load<7>(b + kTileSize, kTileBytesPerRow);
    Tiles::multiply<kColumn, 5, 7>(), beside(1);
    Tiles::multiply<kColumn, 4, 7>(), beside(2);
    Tiles::load<7>(b, kTileBytesPerRow);
    Tiles::multiply<kColumn, 6, 7>(), beside(3);
    Tiles::multiply<kColumn, 5, 7>(), beside(4);
    Tiles::multiply<kColumn, 4, 7>(), beside(5);
  }
}

// As multiply_2x2, for one tile of rows and kWidth columns.
template <int kP, int kWidth, class B, class W>
FUSED_RNN_INLINE void multiply_1x(TileRow a, B b, std::int64_t blocks, float* const* c, W&& work) {
  b.begin(blocks);
  Tiles::zero<0>(), Tiles::zero<1>(), Tiles::zero<2>(), Tiles::zero<3>();
  constexpr int kEach = kP > 1 ? 6 : 1;
  for (std::int64_t k = 0; k < blocks; ++k, b.next()) {
    const Piece* const p = a.data + k * a.block;
    Tiles::load<4>(p, kTileBytesPerRow);
    if constexpr (kP > 1) {
      Tiles::load<5>(p + a.piece, kTileBytesPerRow);
      Tiles::load<6>(p + 2 * a.piece, kTileBytesPerRow);
    }
    const auto column = [&](auto v) __attribute__((always_inline)) {
      constexpr int kColumn = decltype(v)::value;
      if constexpr (kColumn < kWidth) {
        multiply_column<kP, kColumn>(b.block() + kColumn * kP * kTileSize,
                                     [&](int i) __attribute__((always_inline)) {
                                       b.beside(kColumn * kEach + i, kWidth * kEach);
                                     });
        work();
      }
    };
    column(std::integral_constant<int, 0>{}), column(std::integral_constant<int, 1>{});
    column(std::integral_constant<int, 2>{}), column(std::integral_constant<int, 3>{});
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
// Within a step's sums errors do not add up over rows: half as many additions (twice as long a fold is
// as exact up to K = 1024: 0.3 to 0.5 of torch.nn's error either way).
template <int kP>
constexpr std::int64_t kBlocksPerStepFold = kP > 1 ? 32 : 64;

// Calls product(first block, blocks, where to) for each stretch of K, and adds the stretches up in
// the `count` tiles at c.
template <std::int64_t kFold, class F>
FUSED_RNN_INLINE void fold(std::int64_t blocks, float* const* c, int count, F&& product) {
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

template <int kP, bool kFetchA, std::int64_t kFold = kBlocksPerFold<kP>, class B, class W>
void folded_2x2(TileRow a0, TileRow a1, B b, std::int64_t blocks, float* const* c, W&& work) {
  fold<kFold>(blocks, c, 4, [&](std::int64_t k, std::int64_t n, float* const* to) {
    multiply_2x2<kP, kFetchA>(a0.from(k), a1.from(k), b.from(k), n, to, work);
  });
}

template <int kP, int kWidth, std::int64_t kFold = kBlocksPerFold<kP>, class B, class W>
void folded_1x(TileRow a, B b, std::int64_t blocks, float* const* c, W&& work) {
  fold<kFold>(blocks, c, kWidth, [&](std::int64_t k, std::int64_t n, float* const* to) {
    multiply_1x<kP, kWidth>(a.from(k), b.from(k), n, to, work);
  });
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

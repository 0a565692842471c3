// Weights that a step reads from beyond the second-level cache: there bytes are the limit, and a float has
// four where its pieces have six. They are kept as floats, and cut into pieces beside the products of the
// block before: the same pieces in the same order, so the same bits.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Two blocks' pieces, of up to four columns.
struct CutRoom {
  alignas(64) Piece block[2][4 * kPieces<float> * kTileSize];
};

// Whether weights of so many numbers are kept as floats: where a member's share of their pieces does not
// stay in its cache, and each is read for one pair of row tiles alone. For more rows they would be cut
// again and again.
inline bool cuts_weights(std::int64_t rows, std::int64_t weights, int members) {
#if defined(FUSED_RNN_TILES_ALWAYS)  // tests: some of each
  constexpr std::int64_t kCacheBytes = 8 << 10;
#else
  constexpr std::int64_t kCacheBytes = 3 << 19;
#endif
  constexpr std::int64_t kBytes = kPieces<float> * sizeof(Piece);
  return rows <= 2 * kTileRows && weights * kBytes / members > kCacheBytes;
}

// As PackedStrip, of floats: [block][kWidth][pair of depths][2][lane].
template <int kWidth>
struct CutStrip {
  static constexpr int kP = kPieces<float>, kPairs = kWidth * static_cast<int>(kTileRows);
  static constexpr std::int64_t kBlock = kWidth * kTileSize;

  const float* data;
  CutRoom& room;
  int now = 0;
  std::int64_t left = 0;

  FUSED_RNN_INLINE CutStrip from(std::int64_t k) const { return {data + k * kBlock, room}; }
  FUSED_RNN_INLINE void begin(std::int64_t blocks) {
    left = blocks;
    for (int i = 0; i < kPairs; ++i) {
      cut(data, room.block[0], i);
    }
    ahead();
  }
  FUSED_RNN_INLINE const Piece* block() const { return room.block[now]; }
  FUSED_RNN_INLINE void next() {
    now = 1 - now;
    ahead();
  }
  FUSED_RNN_INLINE void beside(int i, int count) {
#pragma GCC unroll 8
    for (int pair = i * kPairs / count; pair < (i + 1) * kPairs / count; ++pair) {
      __builtin_prefetch(data + kBlock + pair * 2 * kTileRows, 0, 3);
      __builtin_prefetch(data + kBlock + (pair * 2 + 1) * kTileRows, 0, 3);
      cut(data, room.block[1 - now], pair);
    }
  }

 private:
  // To the block that is cut beside this one's products; beside the last, that one again.
  FUSED_RNN_INLINE void ahead() { data += --left > 0 ? kBlock : 0; }

  FUSED_RNN_INLINE static void cut(const float* from, Piece* to, int pair) {
    const float* const first = from + pair * 2 * kTileRows;
    put_pair<float>(load(first), load(first + kTileRows),
                    to + pair / kTileRows * kP * kTileSize + pair % kTileRows * kTileDepth);
  }
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

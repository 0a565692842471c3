// The input product of a chunk of steps, where it is made apart from the recurrent one.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Rows whose input product is made at once: few enough that it stays in the second-level cache.
constexpr std::int64_t kTileChunkRows = 256;

// Whether [x h] is one operand of a step instead. bfloat16's sums of x that are made apart take as long to
// be written and read again as to be made: a step rather reads both weights, where they stay in the
// second-level cache. (float32 has six times the products: it gained nothing.)
template <class Cell, class S>
bool multiplies_x_with_h(const Shape<Cell, S>& s) {
#if defined(FUSED_RNN_TILES_ALWAYS)  // tests: some of each
  constexpr std::int64_t kCacheBytes = 16 << 10;
#else
  constexpr std::int64_t kCacheBytes = 3 << 19;
#endif
  constexpr std::int64_t kBytes = kPieces<S> * sizeof(Piece);
  return kPieces<S> == 1 && Cell::kRecurrent == 0 &&
         Cell::kGates * s.H * (s.I + s.H) * kBytes <= kCacheBytes;
}

template <class Cell, class S>
class TileInput {
  using T = float;
  using Blocks = GateBlocks<Cell>;
  static constexpr int kP = kPieces<S>;
  static constexpr std::int64_t kW = kLanes<T>, kBlock = kP * kTileSize, kPairRows = 2 * kTileRows;

 public:
  // `rows`: the most of a chunk; 0 where nothing is made apart. `keep`: see scratch_free.
  TileInput(const ForwardArgs& a, const Shape<Cell, S>& s, std::int64_t rows, bool keep)
      : a_(a),
        s_(s),
        capacity_(ceil_div(rows, kPairRows) * kPairRows),
        groups_(ceil_div<std::int64_t>(s.slices, 2)),
        w_ih_(s.slices, rows > 0 ? depth_blocks(s.I) : 0, true, false, keep),
        x_(capacity_ * depth_blocks(s.I) * kTileDepth * kP),
        sums_(groups_ * 2 * Blocks::kGates * capacity_ * kW) {}

  std::int64_t capacity() const { return capacity_; }
  const GateTiles<Cell, S>& weights() const { return w_ih_; }

  // A tile of rows of a chunk's x, wherever the steps that they belong to have them. Returns whether pieces
  // carry it.
  bool split(const Band& band, const Chunk& chunk, std::int64_t tile) const {
    const std::int64_t from = tile * kTileRows, to = std::min(from + kTileRows, chunk.rows);
    Piece* const out = x_.get() + tile * w_ih_.blocks_deep * kBlock;
    bool carried = true;
    for_chunk_rows(band, chunk, from, to, [&](std::int64_t k, std::int64_t i, std::int64_t row) {
      const S* const x = static_cast<const S*>(a_.x) + (band.begin(k) + i) * s_.I;
      carried &= pack_row(x, s_.I, out + (row - from) * kTileDepth);
    });
    return carried;
  }

  void project(Team::Member& m, const Chunk& chunk) const {
    const Grid grid(groups_, ceil_div(chunk.rows, kPairRows), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t p0, std::int64_t p1) {
        for (std::int64_t b = g0 * Blocks::kPerGroup; b < g1 * Blocks::kPerGroup; ++b) {
          for (int j = 0; j < Blocks::kVectors / 2; ++j) {
            for (std::int64_t pair = p0; pair < p1; ++pair) {
              project_pair(b, j, pair);
            }
          }
        }
      });
    });
  }

  // Sums of a vector of gates.
  T* gates(std::int64_t vector, std::int64_t chunk_row) const {
    return sums_.get() + (vector * capacity_ + chunk_row) * kW;
  }

 private:
  void project_pair(std::int64_t block, int strip, std::int64_t pair) const {
    const std::int64_t blocks = w_ih_.blocks_deep;
    const Piece* const x = x_.get() + 2 * pair * blocks * kBlock;
    const TileRow upper{x, kBlock, kTileSize}, lower{x + blocks * kBlock, kBlock, kTileSize};
    T* const first = gates(block * Blocks::kVectors + 2 * strip, pair * kPairRows);
    T* const second = gates(block * Blocks::kVectors + 2 * strip + 1, pair * kPairRows);
    T* const out[4] = {first, second, first + kTileRows * kW, second + kTileRows * kW};
    folded_2x2<kP, false, kBlocksPerStepFold<kP>>(
        upper, lower, PackedStrip<kP, 2>{w_ih_.strip(block, strip)}, blocks, out, NoWork{});
  }

  const ForwardArgs& a_;
  const Shape<Cell, S>& s_;
  const std::int64_t capacity_;  // rows of a chunk, in pairs of tiles
  const std::int64_t groups_;
  GateTiles<Cell, S> w_ih_;
  Buffer<Piece> x_;  // [tile of the chunk's rows][block of I][piece]
  Buffer<T> sums_;   // [slice][gate][row of the chunk][lane]
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

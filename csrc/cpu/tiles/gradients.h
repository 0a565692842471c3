// A chunk's shares of dW, db and dx, with the products on tiles. As gradients.h.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Rows whose share of a weight's gradient is made at once: a whole fold.
constexpr std::int64_t kTileDepthRows = kBlocksPerFold<3> * kTileDepth;

template <class Cell, class S>
class TileGradients {
  using T = float;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>, kPairRows = 2 * kTileRows;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kRecurrent = Cell::kRecurrent;
  static constexpr int kP = kPieces<S>;
  static constexpr std::int64_t kBlock = kP * kTileSize, kSquare = 4 * kTileRows * kW;
  static constexpr std::int64_t kMostPairs = 8;  // of rows of dx at a time

 public:
  // What the time loop leaves.
  struct Source {
    const T* dgates;          // [slice][row of the chunk][kPre][lane]
    const RowPieces* pieces;  // the same: [kPre][group]
    RowPieces* edge;          // gets the chunk's first scan step
  };

  TileGradients(const BackwardArgs& a, const Shape<Cell, S>& s, std::int64_t groups,
                std::int64_t capacity, int members)
      : a_(a),
        s_(s),
        groups_(groups),
        capacity_(capacity),
        deep_(depth_blocks(capacity)),
        w_ih_(a.dx != nullptr ? s.I : 0, G * groups),
        x_(a.dw_ih != nullptr ? s.I : 0, deep_),
        h_(a.dw_hh != nullptr ? s.H : 0, deep_),
        turned_(x_.count + h_.count > 0 ? members * turned_size() : 0),
        dx_(w_ih_.count * members * kMostPairs * kSquare),
        dbias_(s.slices * kPre * kW),
        dw_ih_(a.dw_ih, G * s.H * s.I),
        dw_hh_(a.dw_hh, G * s.H * s.H) {}

  // Pieces of W_ih to be packed before the first chunk.
  std::int64_t weight_blocks() const { return w_ih_.count * w_ih_.blocks; }
  bool pack_weights(std::int64_t i) const {
    const std::int64_t block = i % w_ih_.blocks;
    return w_ih_.pack(i / w_ih_.blocks, block, false, [&](std::int64_t j) {
      return gate_depth<Cell, S>(s_, a_.w_ih, s_.I, static_cast<int>(block / groups_),
                                 block % groups_, j);
    });
  }

  // Adds what a chunk's steps contribute. Whether pieces have carried all of it, as far as this member
  // has seen.
  bool accumulate(Team::Member& m, const Band& band, const Chunk& c, const Source& from) {
    bool carried = true;
    if (x_.count + h_.count > 0) {
      m.run(depth_blocks(c.rows), [&](std::int64_t block) { carried &= stage(band, c, block); });
    }
    const std::int64_t pairs = ceil_div(c.rows, kPairRows);
    const std::int64_t each =
        std::clamp<std::int64_t>(ceil_div<std::int64_t>(pairs, m.members()), 1, kMostPairs);
    m.run(groups_ + (w_ih_.count > 0 ? ceil_div(pairs, each) : 0), [&](std::int64_t i) {
      if (i < groups_) {
        group_weights(m, band, c, from, i);
      } else {
        const std::int64_t first = (i - groups_) * each;
        input_gradient(m, band, c, from, first, std::min(first + each, pairs));
      }
    });
    return carried;
  }

  void finish(Team::Member& m) {
    finish_gradients<Cell, S>(m, a_, s_, dbias_.get(), {&dw_ih_, &dw_hh_});
  }

 private:
  std::int64_t turned_size() const { return kPre * 2 * deep_ * kBlock; }

  // x, and h of the step before, of 32 rows of the chunk.
  bool stage(const Band& band, const Chunk& c, std::int64_t block) {
    const S *x[kTileDepth] = {}, *h[kTileDepth] = {};
    const std::int64_t from = block * kTileDepth, to = std::min(from + kTileDepth, c.rows);
    for_chunk_rows(band, c, from, to, [&](std::int64_t k, std::int64_t i, std::int64_t row) {
      x[row - from] = static_cast<const S*>(a_.x) + (band.begin(k) + i) * s_.I;
      h[row - from] = i < band.batch(k - 1)
                          ? static_cast<const S*>(a_.y) + (band.begin(k - 1) + i) * s_.H
                          : static_cast<const S*>(a_.h0) + (band.first + i) * s_.H;
    });
    bool carried = true;
    for (std::int64_t strip = 0; strip < x_.count; ++strip) {
      carried &= x_.pack(strip, block, false, [&](std::int64_t j) { return x[j]; });
    }
    for (std::int64_t strip = 0; strip < h_.count; ++strip) {
      carried &= h_.pack(strip, block, true, [&](std::int64_t j) { return h[j]; });
    }
    return carried;
  }

  bool adds(const Band& band, const Chunk& c) const { return band.first > 0 || c.end < band.T; }

  void group_weights(Team::Member& m, const Band& band, const Chunk& c, const Source& from,
                     std::int64_t group) {
    for (std::int64_t slice = 2 * group; slice < std::min(2 * group + 2, s_.slices); ++slice) {
      const T* const d = from.dgates + slice * capacity_ * kPre * kW;
      for (int p = 0; p < kPre; ++p) {
        const V sum = sum_rows(d + p * kW, kPre * kW, c.rows);
        T* total = dbias_.get() + (slice * kPre + p) * kW;
        store<T>(total, adds(band, c) ? load(total) + sum : sum);
      }
    }
    if (x_.count + h_.count > 0) {
      Piece* const turned = turned_.get() + m.id() * turned_size();
      turn(from.dgates, c.rows, group, turned);
      multiply_rows(band, c, group, turned, 0, x_, dw_ih_.data());
      multiply_rows(band, c, group, turned, kRecurrent, h_, dw_hh_.data());
    }
    for (int p = 0; p < kPre; ++p) {
      const std::int64_t block = p * groups_ + group;
      const std::int64_t row = band.own.begin(c.begin) - c.row;
      for (int piece = 0; piece < kP; ++piece) {
        std::copy_n(from.pieces->at(block, piece, row), band.batch(c.begin) * kTileDepth,
                    from.edge->at(block, piece, 0));
      }
    }
  }

  // A group's gradients with units as rows: [kPre][slice of the group][block of rows][piece].
  void turn(const T* dgates, std::int64_t rows, std::int64_t group, Piece* out) const {
    for (int p = 0; p < kPre; ++p) {
      for (std::int64_t slice = 2 * group; slice < 2 * group + 2; ++slice, out += deep_ * kBlock) {
        const std::int64_t end = depth_blocks(rows) * kTileDepth;
        if (slice >= s_.slices) {
          std::fill_n(out, depth_blocks(rows) * kBlock, Piece{0});
          continue;
        }
        const T* const d = dgates + (slice * capacity_ * kPre + p) * kW;
        for (std::int64_t row = 0; row < end; row += kTileDepth) {
          V squares[2][kW];
          for (std::int64_t half = 0; half < 2; ++half) {
            for (std::int64_t j = 0; j < kW; ++j) {
              const std::int64_t r = row + half * kW + j;
              squares[half][j] = r < rows ? rounded<S>(load(d + r * kPre * kW)) : V{};
            }
            transpose<T>(squares[half]);
          }
          Piece* const at = out + row / kTileDepth * kBlock;
          for (std::int64_t u = 0; u < kW; ++u) {
            put_pair<S>(squares[0][u], squares[1][u], at + u * kTileDepth);
          }
        }
      }
    }
  }

  // dW[gate][unit][column] (+)= sum over rows of dgates[row][gate][unit] * in[row][column].
  void multiply_rows(const Band& band, const Chunk& c, std::int64_t group, const Piece* turned,
                     int first_pre, const Strips<S>& in, T* dw) const {
    alignas(64) T sums[4][kTileRows * kW];
    T* const out[4] = {sums[0], sums[1], sums[2], sums[3]};
    for (std::int64_t strip = 0; strip < in.count; ++strip) {
      for (int p = first_pre; p < first_pre + G; ++p) {
        const Piece* const a = turned + p * 2 * deep_ * kBlock;
        T* const first = dw + (Cell::order(p) * s_.H + 2 * group * kW) * in.columns;
        const std::int64_t units = std::min<std::int64_t>(2 * kW, s_.H - 2 * group * kW);
        std::int64_t u = 0;
        folded_2x2<kP, true>({a, kBlock, kTileSize}, {a + deep_ * kBlock, kBlock, kTileSize},
                             in.strip(strip, 0), depth_blocks(c.rows), out, [&] {
                               // The sums' places meanwhile come to the cache, to be written.
                               if (u < units) {
                                 const T* const at = first + u * in.columns + strip * 2 * kW;
                                 __builtin_prefetch(at, 1, 3), __builtin_prefetch(at + kW, 1, 3);
                                 ++u;
                               }
                             });
        for (std::int64_t slice = 2 * group; slice < std::min(2 * group + 2, s_.slices); ++slice) {
          T* const rows = dw + (Cell::order(p) * s_.H + slice * kW) * in.columns;
          for (std::int64_t u = 0; u < s_.valid(slice); ++u) {
            add_columns(rows + u * in.columns, in.columns, strip, sums, slice % 2, u,
                        adds(band, c));
          }
        }
      }
    }
  }

  // Row u of one of two tiles of rows, as columns of a strip.
  static FUSED_RNN_INLINE void add_columns(T* row, std::int64_t columns, std::int64_t strip,
                                           const T (*sums)[kTileRows * kW], std::int64_t tile,
                                           std::int64_t u, bool add) {
    for (std::int64_t v = 0; v < 2; ++v) {
      const std::int64_t column = (strip * 2 + v) * kW;
      const std::int64_t valid = std::clamp<std::int64_t>(columns - column, 0, kW);
      if (valid > 0) {
        const V sum = load(sums[2 * tile + v] + u * kW);
        store<T>(row + column, add ? load(row + column, valid) + sum : sum, valid);
      }
    }
  }

  // dx of pairs [p0, p1) of tiles of rows, a stretch of depth after the other.
  void input_gradient(Team::Member& m, const Band& band, const Chunk& c, const Source& from,
                      std::int64_t p0, std::int64_t p1) const {
    T* const sums = dx_.get() + m.id() * w_ih_.count * kMostPairs * kSquare;
    const auto square = [&](std::int64_t strip, std::int64_t pair) {
      return sums + (strip * kMostPairs + pair - p0) * kSquare;
    };
    alignas(64) T spare[kSquare];
    for (std::int64_t k = 0; k < w_ih_.blocks; k += kBlocksPerFold<3>) {
      const std::int64_t n = std::min(w_ih_.blocks - k, kBlocksPerFold<3>);
      for (std::int64_t strip = 0; strip < w_ih_.count; ++strip) {
        for (std::int64_t pair = p0; pair < p1; ++pair) {
          T* const total = square(strip, pair);
          T* const to = k == 0 ? total : spare;
          constexpr std::int64_t kTile = kTileRows * kW;
          T* const out[4] = {to, to + kTile, to + 2 * kTile, to + 3 * kTile};
          multiply_2x2<kP, true>(from.pieces->tile(k, pair * kPairRows),
                                 from.pieces->tile(k, pair * kPairRows + kTileRows),
                                 w_ih_.strip(strip, k), n, out, NoWork{});
          for (std::int64_t j = 0; k > 0 && j < kSquare; j += kW) {
            store<T>(total + j, load(total + j) + load(spare + j));
          }
        }
      }
    }
    const std::int64_t first = p0 * kPairRows, last = std::min(p1 * kPairRows, c.rows);
    for_chunk_rows(band, c, first, last, [&](std::int64_t k, std::int64_t i, std::int64_t row) {
      S* const dx = static_cast<S*>(a_.dx) + (band.begin(k) + i) * s_.I;
      const std::int64_t j = row % kPairRows;
      for (std::int64_t column = 0; column < s_.I; column += kW) {
        const std::int64_t q = column / kW;
        const T* const sum = square(q / 2, row / kPairRows) +
                             ((j / kTileRows * 2 + q % 2) * kTileRows + j % kTileRows) * kW;
        store<S>(dx + column, load(sum), std::min(kW, s_.I - column));
      }
    });
  }

  const BackwardArgs& a_;
  const Shape<Cell, S>& s_;
  const std::int64_t groups_, capacity_, deep_;
  Strips<S> w_ih_;        // depth: [gate][group]
  Strips<S> x_, h_;       // depth: the chunk's rows
  Buffer<Piece> turned_;  // [member][kPre][slice of a group][block of rows][piece]
  Buffer<T> dx_;          // [member][strip][pair of row tiles][2][2][row][lane]
  Buffer<T> dbias_;       // [slice][kPre][lane]
  Gradient<S> dw_ih_, dw_hh_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// One direction of one layer, forward, with the products on tiles. As forward.h, but that operands are
// pieces: h is cut into its own where its gates are.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Cell, class S>
class TileForward {
  using T = float;
  using V = Vec<T>;
  using Blocks = GateBlocks<Cell>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kP = kPieces<S>;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  static constexpr std::int64_t kBlock = kP * kTileSize;  // of A: a tile of each piece
  static constexpr std::int64_t kPairRows = 2 * kTileRows;

 public:
  TileForward(const ForwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        bands_(cut_for_tiles(a, steps_)),
        band_rows_(padded_band_rows(a.N)),
        x_blocks_(multiplies_x_with_h(s_) ? depth_blocks(s_.I) : 0),
        groups_(ceil_div<std::int64_t>(s_.slices, 2)),
        input_(a, s_,
               x_blocks_ > 0 ? 0 : std::max(band_rows_, std::min(steps_.total(), kTileChunkRows)),
               !a.training),
        w_hh_(s_.slices, x_blocks_ + depth_blocks(s_.H), std::min(a.N, band_rows_) > kTileRows,
              kP > 1 && cuts_weights(band_rows_, G * s_.H * s_.H, members)),
        calls_(w_hh_.calls()),
        bias_(s_.slices * kPre * kW),
        state_(kHasState ? band_rows_ * s_.Hp : 0) {
    for (Buffer<Piece>& h : h_) {
      h = Buffer<Piece>(band_rows_ * w_hh_.blocks_deep * kTileDepth * kP);
    }
  }

  // Whether pieces carried all numbers; where not, what was written is to be written again.
  bool carried() const { return !refused_.load(std::memory_order_relaxed); }

  void member(Team::Member& m) {
    const TileScope scope;
    m.run(groups_, [&](std::int64_t group) { prepare_weights(group); });
    for (const Band& band : bands_) {
      m.run(ceil_div(band.N, kPairRows) * 2, [&](std::int64_t i) { prepare_rows(band, i); });
      if (x_blocks_ > 0) {
        for (std::int64_t k = 0; k < band.T; ++k) {
          step(m, band, k, {});
        }
        continue;
      }
      for (std::int64_t k = 0; k < band.T;) {
        const Chunk chunk = chunk_of(band.own, k, chunk_end(band.own, k, input_.capacity()));
        m.run(ceil_div(chunk.rows, kTileRows), [&](std::int64_t i) {
          if (!input_.split(band, chunk, i)) {
            refuse();
          }
        });
        if (!carried()) {  // members may differ in what they see: none waits for another
          return;
        }
        input_.project(m, chunk);
        for (; k < chunk.end; ++k) {
          step(m, band, k, chunk);
        }
      }
    }
  }

 private:
  // The sums of a block for a pair of row tiles, and the rows of it whose gates are to be computed.
  struct Sums {
    alignas(64) typename GateTiles<Cell, S>::Sums tile;
  };
  struct Pending {
    std::int64_t block = 0, pair = 0, row = 0, rows = 0, due = 0;
  };
  // Where the band's first sequence stands in a step, and where its h goes.
  struct Here {
    std::int64_t first;  // sequence of the scan
    std::int64_t row;    // of the scan
    std::int64_t chunk_row;
    std::int64_t going_on;  // sequences that have a next step
    Piece* h;
  };

  void refuse() { refused_.store(true, std::memory_order_relaxed); }

  void prepare_weights(std::int64_t group) {
    bool carried = true;
    for (std::int64_t block = group * Blocks::kPerGroup; block < (group + 1) * Blocks::kPerGroup;
         ++block) {
      for (int v = 0; v < Blocks::kVectors; ++v) {
        const GateTiles<Cell, S>& w_ih = x_blocks_ > 0 ? w_hh_ : input_.weights();
        carried &= w_ih.pack(s_, a_.w_ih, s_.I, 0, block, v);
        carried &= w_hh_.pack(s_, a_.w_hh, s_.H, Cell::kRecurrent, block, v, x_blocks_);
      }
    }
    if (!carried) {
      refuse();
    }
    for (std::int64_t slice = 2 * group; slice < std::min(2 * group + 2, s_.slices); ++slice) {
      for (int p = 0; p < kPre; ++p) {
        store<T>(bias_.get() + (slice * kPre + p) * kW, gate_bias<Cell, S>(a_, s_, slice, p));
      }
    }
  }

  // The initial states of a tile of sequences; h in both buffers, as in forward.h.
  void prepare_rows(const Band& band, std::int64_t tile) {
    const std::int64_t size = w_hh_.blocks_deep * kBlock;
    Piece* const h = h_[0].get() + tile * size;
    std::fill_n(h, size, Piece{0});
    const std::int64_t first = tile * kTileRows;
    for (std::int64_t i = first; i < std::min(first + kTileRows, band.N); ++i) {
      const std::int64_t n = band.first + i;
      const S* const h0 = static_cast<const S*>(a_.h0) + n * s_.H;
      Piece* const row = h + (i - first) * kTileDepth;
      if (!pack_row(h0, s_.H, row + x_blocks_ * kBlock)) {
        refuse();
      }
      const S* const state = Cell::kHasCell ? static_cast<const S*>(a_.c0) + n * s_.H : h0;
      for (std::int64_t slice = 0; kHasState && slice < s_.slices; ++slice) {
        store<T>(state_at(slice, i), load(state + slice * kW, s_.valid(slice)));
      }
    }
    std::copy_n(h, size, h_[1].get() + tile * size);
    if (x_blocks_ > 0) {
      x_beside_h(band, 0, first, first + kTileRows);
    }
  }

  // Where [x h] is one operand: x of sequences [from, to) at scan step k.
  void x_beside_h(const Band& band, std::int64_t k, std::int64_t from, std::int64_t to) {
    bool carried = true;
    const std::int64_t first = band.begin(k);
    for (std::int64_t i = from; i < std::min(to, band.batch(k)); ++i) {
      const S* const x = static_cast<const S*>(a_.x) + (first + i) * s_.I;
      carried &= pack_row(x, s_.I,
                          h_[k % 2].get() + i / kTileRows * w_hh_.blocks_deep * kBlock +
                              i % kTileRows * kTileDepth);
    }
    if (!carried) {
      refuse();
    }
  }

  T* state_at(std::int64_t slice, std::int64_t i) const {
    return state_.get() + (slice * band_rows_ + i) * kW;
  }

  // Weights are passed up in one step and down in the next: what has been read last is in the cache.
  void step(Team::Member& m, const Band& band, std::int64_t k, const Chunk& chunk) {
    const Here here{band.first, band.begin(k), band.own.begin(k) - chunk.row, band.batch(k + 1),
                    h_[(k + 1) % 2].get()};
    const std::int64_t batch = band.batch(k);
    const Grid grid(groups_, ceil_div(batch, kPairRows), m.members());
    const bool down = k % 2 != 0;
    m.run(grid.items(), [&](std::int64_t i) {
      const std::int64_t item = down ? mirrored(i, grid.items(), m.members()) : i;
      if (x_blocks_ > 0) {
        const std::int64_t next = band.batch(k + 1);
        x_beside_h(band, k + 1, next * i / grid.items(), next * (i + 1) / grid.items());
      }
      grid.item(item, [&](std::int64_t g0, std::int64_t g1, std::int64_t p0, std::int64_t p1) {
        Sums sums[2];
        CutRoom room;
        Carried<S> carried;
        Pending pending;
        int now = 0;
        const auto one_row = [&] {
          gates_of_row(here, pending, sums[1 - now], carried);
          ++pending.row;
        };
        // Rows of the block before, spread evenly over the calls of this one's products.
        const auto some_rows = [&] {
          for (pending.due += pending.rows; pending.due >= calls_; pending.due -= calls_) {
            one_row();
          }
        };
        const std::int64_t b0 = g0 * Blocks::kPerGroup, b1 = g1 * Blocks::kPerGroup;
        for (std::int64_t j = b0; j < b1; ++j) {
          const std::int64_t b = down ? b0 + b1 - 1 - j : j;
          for (std::int64_t pair = p0; pair < p1 && b * Blocks::kSlices < s_.slices; ++pair) {
            multiply_block(k, b, pair, sums[now], room, some_rows);
            pending = {b, pair, 0, std::min(batch - pair * kPairRows, kPairRows), 0};
            now = 1 - now;
          }
        }
        while (pending.row < pending.rows) {
          one_row();
        }
        if (!carried.finite()) {
          refuse();
        }
      });
    });
  }

  // Item i of those that a team's member takes first, counted from the last of them.
  static std::int64_t mirrored(std::int64_t i, std::int64_t items, std::int64_t members) {
    const std::int64_t owner = ((i + 1) * members - 1) / items;
    return items * owner / members + items * (owner + 1) / members - 1 - i;
  }

  template <class W>
  FUSED_RNN_INLINE void multiply_block(std::int64_t k, std::int64_t block, std::int64_t pair,
                                       Sums& sums, CutRoom& room, W&& work) const {
    const Piece* const h = h_[k % 2].get() + 2 * pair * w_hh_.blocks_deep * kBlock;
    const TileRow upper{h, kBlock, kTileSize};
    const TileRow lower{h + w_hh_.blocks_deep * kBlock, kBlock, kTileSize};
    w_hh_.multiply(upper, lower, block, sums.tile, room, work);
  }

  void gates_of_row(const Here& here, const Pending& at, const Sums& sums, Carried<S>& carried) {
    for (int j = 0; j < Blocks::kSlices; ++j) {
      const std::int64_t slice = at.block * Blocks::kSlices + j;
      if (slice < s_.slices) {
        V of_gate[G];
        for (int g = 0; g < G; ++g) {
          of_gate[g] = load(sums.tile[j * G + g] + at.row * kW);
        }
        unit_step(here, slice, at.pair * kPairRows + at.row, of_gate, carried);
      }
    }
  }

  // All gates of one slice of hidden units of the band's sequence i, from the recurrent sums.
  FUSED_RNN_INLINE void unit_step(const Here& here, std::int64_t slice, std::int64_t i,
                                  const V* sums, Carried<S>& carried) {
    const std::int64_t n = here.first + i, row = here.row + i, unit = slice * kW;
    const std::int64_t valid = s_.valid(slice);
    V pre[kPre];
    for (int p = 0; p < kPre; ++p) {
      pre[p] = load(bias_.get() + (slice * kPre + p) * kW);
      if (p < G && x_blocks_ == 0) {
        pre[p] += load(input_.gates(slice * G + p, here.chunk_row + i));
      }
      if (p >= Cell::kRecurrent) {
        pre[p] += sums[p - Cell::kRecurrent];
      }
    }
    T* const state = kHasState ? state_at(slice, i) : nullptr;
    V saved[Cell::kSaved];
    const V h =
        rounded<S>(Cell::template forward<GateMath<S>>(pre, kHasState ? load(state) : V{}, saved));
    if (Cell::kStateIsHidden) {
      saved[Cell::kSaved - 1] = h;
    }
    if (kHasState) {
      store<T>(state, saved[Cell::kSaved - 1]);
    }
    const bool last = i >= here.going_on;
    store<S>(static_cast<S*>(a_.y) + row * s_.H + unit, h, valid);
    if (last) {
      store<S>(static_cast<S*>(a_.h_n) + n * s_.H + unit, h, valid);
    }
    if (Cell::kHasCell) {
      const V c = saved[Cell::kSaved - 1];
      if (a_.c != nullptr) {
        store<S>(static_cast<S*>(a_.c) + row * s_.H + unit, c, valid);
      }
      if (last) {
        store<S>(static_cast<S*>(a_.c_n) + n * s_.H + unit, c, valid);
      }
    }
    if constexpr (std::is_same<Cell, Rnn<true>>::value) {  // the only h without a bound
      carried.add(h);
    }
    pass_on(here.h, slice, i, h);
    if (a_.training) {
      T* out = static_cast<T*>(a_.saved) + (slice * steps_.total() + row) * s_.kKept * kW;
      for (int j = 0; j < s_.kKept; ++j) {
        store<T>(out + j * kW, saved[j]);
      }
    }
  }

  // h to the next step, as pieces. Lanes past H may hold 0 * inf, and are to be zeros there.
  FUSED_RNN_INLINE void pass_on(Piece* next, std::int64_t slice, std::int64_t i, V h) {
    if (s_.valid(slice) < kW) {
      alignas(64) T lanes[kW];
      store<T>(lanes, h);
      h = load(lanes, s_.valid(slice));
    }
    put_row<S>(h, next + (i / kTileRows * w_hh_.blocks_deep + x_blocks_ + slice / 2) * kBlock +
                      i % kTileRows * kTileDepth + slice % 2 * kW);
  }

  const ForwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::vector<Band> bands_;
  const std::int64_t band_rows_;  // of the largest band, padded to pairs of tiles
  const std::int64_t x_blocks_;   // of x beside h in a step's operand; 0: their products are apart
  const std::int64_t groups_;
  std::atomic<bool> refused_{false};
  TileInput<Cell, S> input_;
  GateTiles<Cell, S> w_hh_;
  const std::int64_t calls_;  // that a block's products make beside them
  Buffer<T> bias_;            // [slice][kPre][lane]
  Buffer<T> state_;           // [slice][row of the band][lane]
  Buffer<Piece> h_[2];        // [tile of the band's rows][block of H][piece], as in forward.h
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

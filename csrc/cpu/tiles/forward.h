// One direction of one layer, forward, with the products on tiles. As forward.h, but that sequences
// are taken in parts, and that operands are pieces: h is cut into its own where its gates are.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Rows whose input product is made at once: few enough that it stays in the second-level cache.
constexpr std::int64_t kTileChunkRows = 256;

template <class Cell, class S, bool kTraining>
class TileForward {
  using T = float;
  using V = Vec<T>;
  using Blocks = GateBlocks<Cell>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kP = kPieces<S>;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  static constexpr std::int64_t kBlock = kP * kTileSize;  // of A: a tile of each piece
  static constexpr std::int64_t kPairRows = 2 * kTileRows, kFold = kBlocksPerStepFold<kP>;

 public:
  TileForward(const ForwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        parts_(cut_batch(a)),
        part_rows_(padded_part_rows(a.N)),
        wide_(std::min(a.N, part_rows_) > kTileRows),
        x_blocks_(multiplies_x_with_h() ? depth_blocks(s_.I) : 0),
        capacity_(x_blocks_ > 0
                      ? 0
                      : padded(std::max(part_rows_, std::min(steps_.total(), kTileChunkRows)))),
        groups_(ceil_div<std::int64_t>(s_.slices, 2)),
        w_ih_(s_.slices, x_blocks_ > 0 ? 0 : depth_blocks(s_.I), 2, false, !kTraining),
        w_hh_(s_.slices, x_blocks_ + depth_blocks(s_.H), wide_ ? 2 : Blocks::kNarrow,
              kP > 1 && cuts_weights(part_rows_, G * s_.H * s_.H, members)),
        calls_(w_hh_.blocks_deep *
               (wide_ ? Blocks::kVectors / 2 * kCalls2x2<kP>
                      : Blocks::kVectors / Blocks::kNarrow * kCalls1x<Blocks::kNarrow>)),
        bias_(s_.slices * kPre * kW),
        x_(capacity_ * depth_blocks(s_.I) * kTileDepth * kP),
        gates_x_(groups_ * 2 * G * capacity_ * kW),
        state_(kHasState ? part_rows_ * s_.Hp : 0) {
    for (Buffer<Piece>& h : h_) {
      h = Buffer<Piece>(part_rows_ * w_hh_.blocks_deep * kTileDepth * kP);
    }
  }

  // Whether pieces carried all numbers; where not, what was written is to be written again.
  bool carried() const { return !refused_.load(std::memory_order_relaxed); }

  void member(Team::Member& m) {
    const TileScope scope;
    m.run(groups_, [&](std::int64_t group) { prepare_weights(group); });
    for (const Part& part : parts_) {
      m.run(ceil_div(padded(part.steps.N), kTileRows),
            [&](std::int64_t i) { prepare_rows(part, i); });
      for (std::int64_t k = 0; x_blocks_ > 0 && k < part.steps.T; ++k) {
        step(m, part, k, {});
      }
      if (x_blocks_ > 0) {
        continue;
      }
      for (std::int64_t k = 0; k < part.steps.T;) {
        const std::int64_t end = chunk_end(part.steps, k, capacity_);
        const TileChunk chunk{k, end, part.steps.first_row(k, end), part.steps.rows(k, end)};
        m.run(ceil_div(chunk.rows, kTileRows), [&](std::int64_t i) { split_x(part, chunk, i); });
        if (!carried()) {  // members may differ in what they see: none waits for another
          return;
        }
        project_input(m, chunk);
        for (; k < end; ++k) {
          step(m, part, k, chunk);
        }
      }
    }
  }

 private:
  // The sums of a block for a pair of row tiles, and the rows of it whose gates are to be computed.
  struct Sums {
    alignas(64) T tile[Blocks::kVectors][kPairRows * kW];
  };
  struct Pending {
    std::int64_t block = 0, pair = 0, row = 0, rows = 0, due = 0;
  };
  // Where the part's first sequence stands in a scan step, and where its h goes.
  struct Here {
    std::int64_t first;  // sequence of the scan
    std::int64_t row;    // of the scan
    std::int64_t chunk_row;
    std::int64_t going_on;  // sequences that have a next step
    Piece* h;
  };

  static std::int64_t padded(std::int64_t rows) { return ceil_div(rows, kPairRows) * kPairRows; }
  void refuse() { refused_.store(true, std::memory_order_relaxed); }

  // Whether [x h] is one operand of a step. bfloat16's sums of x that are made apart take as long to be
  // written and read again as to be made: a step rather reads both weights, where they stay in the
  // second-level cache. (float32 has six times the products: it gained nothing.)
  bool multiplies_x_with_h() const {
#if defined(FUSED_RNN_TILES_ALWAYS)  // tests: some of each
    constexpr std::int64_t kCacheBytes = 16 << 10;
#else
    constexpr std::int64_t kCacheBytes = 3 << 19;
#endif
    constexpr std::int64_t kBytes = kP * sizeof(Piece);
    return kP == 1 && Cell::kRecurrent == 0 && G * s_.H * (s_.I + s_.H) * kBytes <= kCacheBytes;
  }

  void prepare_weights(std::int64_t group) {
    bool carried = true;
    for (std::int64_t block = group * Blocks::kPerGroup; block < (group + 1) * Blocks::kPerGroup;
         ++block) {
      for (int v = 0; v < Blocks::kVectors; ++v) {
        const GateTiles<Cell, S>& w_ih = x_blocks_ > 0 ? w_hh_ : w_ih_;
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
  void prepare_rows(const Part& part, std::int64_t tile) {
    const std::int64_t size = w_hh_.blocks_deep * kBlock;
    Piece* const h = h_[0].get() + tile * size;
    std::fill_n(h, size, Piece{0});
    const std::int64_t first = tile * kTileRows;
    for (std::int64_t i = first; i < std::min(first + kTileRows, part.steps.N); ++i) {
      const std::int64_t n = part.first + i;
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
      x_beside_h(part, 0, first, first + kTileRows);
    }
  }

  // Where [x h] is one operand: x of sequences [from, to) at scan step k.
  void x_beside_h(const Part& part, std::int64_t k, std::int64_t from, std::int64_t to) {
    bool carried = true;
    const std::int64_t first = scan_row(steps_, part, k, 0);
    for (std::int64_t i = from; i < std::min(to, part.steps.batch(k)); ++i) {
      const S* const x = static_cast<const S*>(a_.x) + (first + i) * s_.I;
      carried &= pack_row(x, s_.I,
                          h_[k % 2].get() + i / kTileRows * w_hh_.blocks_deep * kBlock +
                              i % kTileRows * kTileDepth);
    }
    if (!carried) {
      refuse();
    }
  }

  // Rows of a chunk's x, wherever the steps that they belong to have them.
  void split_x(const Part& part, const TileChunk& chunk, std::int64_t tile) {
    const std::int64_t blocks = depth_blocks(s_.I);
    const std::int64_t from = tile * kTileRows, to = std::min(from + kTileRows, chunk.rows);
    bool carried = true;
    for_chunk_rows(part, chunk, from, to, [&](std::int64_t k, std::int64_t i, std::int64_t row) {
      const S* const x = static_cast<const S*>(a_.x) + scan_row(steps_, part, k, i) * s_.I;
      carried &= pack_row(x, s_.I, x_.get() + tile * blocks * kBlock + (row - from) * kTileDepth);
    });
    if (!carried) {
      refuse();
    }
  }

  TileRow row_tile(const Buffer<Piece>& a, std::int64_t blocks, std::int64_t tile) const {
    return {a.get() + tile * blocks * kBlock, kBlock, kTileSize};
  }

  void project_input(Team::Member& m, const TileChunk& chunk) {
    const std::int64_t blocks = w_ih_.blocks_deep;
    const Grid grid(groups_, ceil_div(chunk.rows, kPairRows), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t p0, std::int64_t p1) {
        for (std::int64_t b = g0 * Blocks::kPerGroup; b < g1 * Blocks::kPerGroup; ++b) {
          for (int j = 0; j < Blocks::kVectors / 2; ++j) {
            for (std::int64_t pair = p0; pair < p1; ++pair) {
              T* const first = gates_x(b * Blocks::kVectors + 2 * j, pair * kPairRows);
              T* const second = gates_x(b * Blocks::kVectors + 2 * j + 1, pair * kPairRows);
              T* const out[4] = {first, second, first + kTileRows * kW, second + kTileRows * kW};
              folded_2x2<kP, false, kFold>(
                  row_tile(x_, blocks, 2 * pair), row_tile(x_, blocks, 2 * pair + 1),
                  PackedStrip<kP, 2>{w_ih_.strip(b, j)}, blocks, out, NoWork{});
            }
          }
        }
      });
    });
  }

  T* gates_x(std::int64_t vector, std::int64_t chunk_row) const {
    return gates_x_.get() + (vector * capacity_ + chunk_row) * kW;
  }
  T* state_at(std::int64_t slice, std::int64_t i) const {
    return state_.get() + (slice * part_rows_ + i) * kW;
  }

  // Weights are passed up in one step and down in the next: what has been read last is in the cache.
  void step(Team::Member& m, const Part& part, std::int64_t k, const TileChunk& chunk) {
    const Here here{part.first, scan_row(steps_, part, k, 0), part.steps.begin(k) - chunk.row,
                    part.steps.batch(k + 1), h_[(k + 1) % 2].get()};
    const std::int64_t batch = part.steps.batch(k);
    const Grid grid(groups_, ceil_div(batch, kPairRows), m.members());
    const bool down = k % 2 != 0;
    m.run(grid.items(), [&](std::int64_t i) {
      const std::int64_t item = down ? mirrored(i, grid.items(), m.members()) : i;
      if (x_blocks_ > 0) {
        const std::int64_t next = part.steps.batch(k + 1);
        x_beside_h(part, k + 1, next * i / grid.items(), next * (i + 1) / grid.items());
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
                                       Sums& sums, CutRoom& room, W&& work) {
    if constexpr (kP > 1) {
      if (w_hh_.floats) {
        multiply_strips(k, block, pair, sums, work, [&](const Piece* strip, auto width) {
          return CutStrip<decltype(width)::value>{reinterpret_cast<const float*>(strip), room};
        });
        return;
      }
    }
    multiply_strips(k, block, pair, sums, work, [&](const Piece* strip, auto width) {
      return PackedStrip<kP, decltype(width)::value>{strip};
    });
  }

  template <class W, class F>
  FUSED_RNN_INLINE void multiply_strips(std::int64_t k, std::int64_t block, std::int64_t pair,
                                        Sums& sums, W&& work, F&& strip) {
    const Buffer<Piece>& h = h_[k % 2];
    const std::int64_t blocks = w_hh_.blocks_deep;
    const TileRow a0 = row_tile(h, blocks, 2 * pair);
    constexpr int kN = Blocks::kNarrow;
    if (wide_) {
      const TileRow a1 = row_tile(h, blocks, 2 * pair + 1);
      for (int j = 0; j < Blocks::kVectors / 2; ++j) {
        T *const first = sums.tile[2 * j], *const second = sums.tile[2 * j + 1];
        T* const out[4] = {first, second, first + kTileRows * kW, second + kTileRows * kW};
        folded_2x2<kP, false, kFold>(a0, a1,
                                     strip(w_hh_.strip(block, j), std::integral_constant<int, 2>{}),
                                     blocks, out, work);
      }
    } else {
      for (int j = 0; j < Blocks::kVectors / kN; ++j) {
        T* out[4] = {};
        for (int v = 0; v < kN; ++v) {
          out[v] = sums.tile[j * kN + v];
        }
        folded_1x<kP, kN, kFold>(
            a0, strip(w_hh_.strip(block, j), std::integral_constant<int, kN>{}), blocks, out, work);
      }
    }
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

  // All gates of one slice of hidden units of the part's sequence i, from the recurrent sums.
  FUSED_RNN_INLINE void unit_step(const Here& here, std::int64_t slice, std::int64_t i,
                                  const V* sums, Carried<S>& carried) {
    const std::int64_t n = here.first + i, row = here.row + i, unit = slice * kW;
    const std::int64_t valid = s_.valid(slice);
    V pre[kPre];
    for (int p = 0; p < kPre; ++p) {
      pre[p] = load(bias_.get() + (slice * kPre + p) * kW);
      if (p < G && x_blocks_ == 0) {
        pre[p] += load(gates_x(slice * G + p, here.chunk_row + i));
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
    if (kTraining) {
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
  const std::vector<Part> parts_;
  const std::int64_t part_rows_;  // of the largest part, padded to pairs of tiles
  const bool wide_;               // steps of two tiles of rows at a time
  const std::int64_t x_blocks_;   // of x beside h in a step's operand; 0: their products are apart
  const std::int64_t capacity_;   // rows of a chunk, padded
  const std::int64_t groups_;
  std::atomic<bool> refused_{false};
  GateTiles<Cell, S> w_ih_, w_hh_;
  const std::int64_t calls_;  // that a block's products make beside them
  Buffer<T> bias_;            // [slice][kPre][lane]
  Buffer<Piece> x_;           // [tile of the chunk's rows][block of I][piece]
  Buffer<T> gates_x_;         // [slice][gate][row of the chunk][lane]
  Buffer<T> state_;           // [slice][row of the part][lane]
  Buffer<Piece> h_[2];        // [tile of the part's rows][block of H][piece], as in forward.h
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

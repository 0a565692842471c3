// One direction of one layer, backward, with the products on tiles: the time loop. As backward.h, but
// that sequences are taken in parts.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Cell, class S>
class TileBackward {
  using T = float;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>, kPairRows = 2 * kTileRows;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kRecurrent = Cell::kRecurrent;
  static constexpr int kP = kPieces<S>;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;

 public:
  TileBackward(const BackwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        parts_(cut_batch(a)),
        part_rows_(padded_part_rows(a.N)),
        capacity_(std::max(std::min(part_rows_, a.N), std::min(steps_.total(), kTileDepthRows))),
        groups_(ceil_div<std::int64_t>(s_.slices, 2)),
        w_hh_(s_.H, G * groups_),
        dgates_(s_.slices * capacity_ * kPre * kW),
        pieces_(capacity_, kPre * groups_, kP),
        edge_(part_rows_, kPre * groups_, kP),
        carry_(kHasState ? part_rows_ * s_.Hp : 0),
        gradients_(a, s_, steps_, groups_, capacity_, members) {}

  bool carried() const {
    const std::uint32_t largest = largest_.load(std::memory_order_relaxed);
    return !refused_.load(std::memory_order_relaxed) && (largest == 0 || largest >= kSmallest);
  }

  void member(Team::Member& m) {
    const TileScope scope;
    const std::int64_t own = w_hh_.count * w_hh_.blocks;
    m.run(own + gradients_.weight_blocks(), [&](std::int64_t i) {
      if (!(i < own ? pack_weights(i) : gradients_.pack_weights(i - own))) {
        refuse();
      }
    });
    const typename TileGradients<Cell, S>::Source source{dgates_.get(), &pieces_, &edge_};
    for (const Part& part : parts_) {
      m.run(part.steps.N, [&](std::int64_t i) { prepare_row(part, i); });
      TileChunk now{part.steps.T, part.steps.T, 0, 0};
      while (now.begin > 0) {
        const std::int64_t begin = chunk_begin(part.steps, now.begin, capacity_);
        now = {begin, now.begin, part.steps.first_row(begin, now.begin),
               part.steps.rows(begin, now.begin)};
        for (std::int64_t k = now.end - 1; k >= now.begin; --k) {
          step(m, part, k, now);
        }
        if (!gradients_.accumulate(m, part, now, source)) {
          refuse();
        }
        if (refused_.load(std::memory_order_relaxed)) {  // as in TileForward::member
          return;
        }
      }
      step(m, part, -1, now);
      finish(m, part);
    }
    gradients_.finish(m);
  }

 private:
  // The largest gradient of a pre-activation, below which their products vanish as denormal numbers
  // (2^-93). Smaller ones beside it count for nothing.
  static constexpr std::uint32_t kSmallest = 0x11000000u;

  void refuse() { refused_.store(true, std::memory_order_relaxed); }

  bool pack_weights(std::int64_t i) {
    const std::int64_t block = i % w_hh_.blocks;
    return w_hh_.pack(i / w_hh_.blocks, block, false, [&](std::int64_t j) {
      return gate_depth<Cell, S>(s_, a_.w_hh, s_.H, kRecurrent + static_cast<int>(block / groups_),
                                 block % groups_, j);
    });
  }

  void prepare_row(const Part& part, std::int64_t i) {
    for (std::int64_t slice = 0; kHasState && slice < s_.slices; ++slice) {
      const bool given = Cell::kHasCell && a_.dc_n != nullptr;
      const S* const dc_n = static_cast<const S*>(a_.dc_n) + (part.first + i) * s_.H + slice * kW;
      store<T>(carry_at(slice, i), given ? load(dc_n, s_.valid(slice)) : V{});
    }
  }

  T* carry_at(std::int64_t slice, std::int64_t i) const {
    return carry_.get() + (slice * part_rows_ + i) * kW;
  }

  // As BackwardScan::step, a group of two slices at a time.
  void step(Team::Member& m, const Part& part, std::int64_t k, const TileChunk& to) {
    const std::int64_t inner = part.steps.batch(k + 1), here = part.steps.batch(k);
    const bool inside = k >= to.begin && k + 1 < to.end;
    const RowPieces& from = inside ? pieces_ : edge_;
    const std::int64_t row = inside ? part.steps.begin(k + 1) - to.row : 0;
    const std::int64_t rows = std::max(inner, here);
    const Grid grid(groups_, ceil_div(rows, kPairRows), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      Carried<S> carried;
      alignas(64) T sums[4][kTileRows * kW];  // [2 * tile of rows + slice]
      T* const out[4] = {sums[0], sums[1], sums[2], sums[3]};
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t p0, std::int64_t p1) {
        for (std::int64_t g = g0; g < g1; ++g) {
          for (std::int64_t first = p0 * kPairRows; first < std::min(p1 * kPairRows, rows);
               first += kPairRows) {
            if (first < inner) {
              multiply(from, row + first, g, inner - first > kTileRows, out);
            }
            const std::int64_t last = std::min(first + kPairRows, rows);
            for (std::int64_t n = first; n < last; ++n) {
              for (std::int64_t slice = 2 * g; slice < std::min(2 * g + 2, s_.slices); ++slice) {
                const std::int64_t j = n - first;
                const T* const sum = sums[j / kTileRows * 2 + slice % 2] + j % kTileRows * kW;
                hidden_gradient(part, k, to, n, slice, n < inner ? load(sum) : V{}, carried);
              }
            }
          }
        }
      });
      note(carried);
    });
  }

  void multiply(const RowPieces& from, std::int64_t row, std::int64_t strip, bool both,
                T* const* out) const {
    const TileRow a0 = from.tile(kRecurrent * groups_, row);
    const std::int64_t blocks = G * groups_;
    if (both) {
      folded_2x2<kP>(a0, from.tile(kRecurrent * groups_, row + kTileRows), w_hh_.at(strip, 0),
                     blocks, out, NoWork{});
    } else {
      folded_1x<kP, 2>(a0, w_hh_.at(strip, 0), blocks, out, NoWork{});
    }
  }

  void note(const Carried<S>& carried) {
    if (!carried.finite()) {
      refuse();
    }
    const std::uint32_t found = carried.largest();
    std::uint32_t known = largest_.load(std::memory_order_relaxed);
    while (found > known &&
           !largest_.compare_exchange_weak(known, found, std::memory_order_relaxed)) {
    }
  }

  // `recurrent`: what the later step passes back to a slice of h of the part's sequence i at step k.
  void hidden_gradient(const Part& part, std::int64_t k, const TileChunk& to, std::int64_t i,
                       std::int64_t slice, V recurrent, Carried<S>& carried) {
    const std::int64_t unit = slice * kW, valid = s_.valid(slice), n = part.first + i;
    if (i >= part.steps.batch(k)) {
      if (Cell::kStateIsHidden) {
        recurrent += load(carry_at(slice, i));
      }
      if (a_.dh0 != nullptr) {
        store<S>(static_cast<S*>(a_.dh0) + n * s_.H + unit, recurrent, valid);
      }
      return;
    }
    V dh = recurrent;
    if (a_.dy != nullptr) {
      dh += load(static_cast<const S*>(a_.dy) + scan_row(steps_, part, k, i) * s_.H + unit, valid);
    }
    if (a_.dh_n != nullptr && i >= part.steps.batch(k + 1)) {
      dh += load(static_cast<const S*>(a_.dh_n) + n * s_.H + unit, valid);
    }
    unit_gradient(part, k, to, i, slice, dh, carried);
  }

  // All gates of one slice of hidden units of the part's sequence i.
  FUSED_RNN_INLINE void unit_gradient(const Part& part, std::int64_t k, const TileChunk& to,
                                      std::int64_t i, std::int64_t slice, V dh,
                                      Carried<S>& carried) {
    const std::int64_t row = scan_row(steps_, part, k, i), unit = slice * kW,
                       valid = s_.valid(slice);
    const T* base = static_cast<const T*>(a_.saved) + slice * steps_.total() * s_.kKept * kW;
    V saved[Cell::kSaved];
    for (int j = 0; j < s_.kKept; ++j) {
      saved[j] = load(base + (row * s_.kKept + j) * kW);
    }
    const auto hidden = [&](std::int64_t at) {
      return load(static_cast<const S*>(a_.y) + at * s_.H + unit, valid);
    };
    if (s_.kHiddenInY) {
      saved[Cell::kSaved - 1] = hidden(row);
    }
    V prev{}, carry{}, dpre[kPre];
    if (kHasState) {
      carry = load(carry_at(slice, i));
      if (Cell::kHasCell && a_.dc != nullptr) {
        carry += load(static_cast<const S*>(a_.dc) + row * s_.H + unit, valid);
      }
      if (i >= part.steps.batch(k - 1)) {
        prev = load(
            static_cast<const S*>(Cell::kHasCell ? a_.c0 : a_.h0) + (part.first + i) * s_.H + unit,
            valid);
      } else {
        const std::int64_t before = scan_row(steps_, part, k - 1, i);
        prev =
            s_.kHiddenInY ? hidden(before) : load(base + (before * s_.kKept + s_.kKept - 1) * kW);
      }
    }
    Cell::backward(saved, prev, dh, carry, dpre);
    if (kHasState) {
      store<T>(carry_at(slice, i), carry);
    }
    const std::int64_t chunk_row = part.steps.begin(k) - to.row + i;
    T* const out = dgates_.get() + (slice * capacity_ + chunk_row) * kPre * kW;
    for (int p = 0; p < kPre; ++p) {
      store<T>(out + p * kW, dpre[p]);
      if (valid < kW) {  // as in backward.h
        dpre[p] = load(out + p * kW, valid);
        store<T>(out + p * kW, dpre[p]);
      }
      carried.add(dpre[p]);
      put_pieces(dpre[p], p * groups_ + slice / 2, chunk_row, slice % 2 * kW);
    }
    if (slice % 2 == 0 && slice + 1 == s_.slices) {
      for (int p = 0; p < kPre; ++p) {
        put_pieces(V{}, p * groups_ + slice / 2, chunk_row, kW);
      }
    }
  }

  FUSED_RNN_INLINE void put_pieces(V v, std::int64_t block, std::int64_t row, std::int64_t lane) {
    if constexpr (kP == 1) {
      v = rounded<S>(v);
    }
    for (int piece = 0; piece < kP; ++piece) {
      const Halves h = upper_halves(take_piece(v));
      std::memcpy(pieces_.at(block, piece, row) + lane, &h, sizeof(h));
    }
  }

  void finish(Team::Member& m, const Part& part) {
    if (Cell::kHasCell && a_.dc0 != nullptr) {
      m.run(part.steps.N, [&](std::int64_t i) {
        for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
          store<S>(static_cast<S*>(a_.dc0) + (part.first + i) * s_.H + slice * kW,
                   load(carry_at(slice, i)), s_.valid(slice));
        }
      });
    }
  }

  const BackwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::vector<Part> parts_;
  const std::int64_t part_rows_;
  const std::int64_t capacity_;  // rows of a chunk
  const std::int64_t groups_;
  std::atomic<bool> refused_{false};
  std::atomic<std::uint32_t> largest_{0};
  Strips<S> w_hh_;    // depth: [gate][group]
  Buffer<T> dgates_;  // [slice][row of the chunk][kPre][lane]
  RowPieces pieces_;  // the same: [kPre][group]
  RowPieces edge_;    // the first scan step of the later chunk
  Buffer<T> carry_;   // [slice][row of the part][lane], the gradient of the elementwise state
  TileGradients<Cell, S> gradients_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

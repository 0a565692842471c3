// One direction of one layer, backward, with the products on tiles: the time loop. As backward.h.
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
        bands_(cut_for_tiles(a, steps_)),
        band_rows_(padded_band_rows(a.N)),
        capacity_(std::max(std::min(band_rows_, a.N), std::min(steps_.total(), kTileDepthRows))),
        groups_(ceil_div<std::int64_t>(s_.slices, 2)),
        w_hh_(s_.H, G * groups_, kP > 1 && cuts_weights(band_rows_, G * s_.H * s_.H, members)),
        dgates_(s_.slices * capacity_ * kPre * kW),
        pieces_(capacity_, kPre * groups_, kP),
        edge_(band_rows_, kPre * groups_, kP),
        carry_(kHasState ? band_rows_ * s_.Hp : 0),
        gradients_(a, s_, groups_, capacity_, members) {}

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
    for (const Band& band : bands_) {
      m.run(band.N, [&](std::int64_t i) { prepare_row(band, i); });
      Chunk now{band.T, band.T, 0, 0};
      while (now.begin > 0) {
        now = chunk_of(band.own, chunk_begin(band.own, now.begin, capacity_), now.begin);
        for (std::int64_t k = now.end - 1; k >= now.begin; --k) {
          step(m, band, k, now);
        }
        if (!gradients_.accumulate(m, band, now, source)) {
          refuse();
        }
        if (refused_.load(std::memory_order_relaxed)) {  // as in TileForward::member
          return;
        }
      }
      step(m, band, -1, now);
      finish(m, band);
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

  void prepare_row(const Band& band, std::int64_t i) {
    for (std::int64_t slice = 0; kHasState && slice < s_.slices; ++slice) {
      const bool given = Cell::kHasCell && a_.dc_n != nullptr;
      const S* const dc_n = static_cast<const S*>(a_.dc_n) + (band.first + i) * s_.H + slice * kW;
      store<T>(carry_at(slice, i), given ? load(dc_n, s_.valid(slice)) : V{});
    }
  }

  T* carry_at(std::int64_t slice, std::int64_t i) const {
    return carry_.get() + (slice * band_rows_ + i) * kW;
  }

  // What the later step passes back to two slices of a pair of row tiles, [2 * tile of rows + slice],
  // and the rows whose gradients are to be made of it.
  struct Sums {
    alignas(64) T tile[4][kTileRows * kW];
  };
  struct Pending {
    std::int64_t group = 0, first = 0, row = 0, end = 0, due = 0;
  };
  // A step of a band: how many of its sequences have it, the one later and the one before, and where the
  // rows of the first one stand.
  struct Here {
    Here(const Band& band, std::int64_t k, const Chunk& to)
        : batch(band.batch(k)),
          later(band.batch(k + 1)),
          before(band.batch(k - 1)),
          first(band.first),
          row(band.begin(k)),
          row_before(band.begin(k - 1)),
          chunk_row(band.own.begin(k) - to.row) {}
    const std::int64_t batch, later, before, first, row, row_before, chunk_row;
  };

  // As BackwardScan::step, a group of two slices at a time. The gates' gradients of one group run beside
  // the products of the next.
  void step(Team::Member& m, const Band& band, std::int64_t k, const Chunk& to) {
    const Here here(band, k, to);
    const std::int64_t inner = here.later;
    const bool inside = k >= to.begin && k + 1 < to.end;
    const RowPieces& from = inside ? pieces_ : edge_;
    const std::int64_t row = inside ? band.own.begin(k + 1) - to.row : 0;
    const std::int64_t rows = std::max(inner, here.batch);
    const Grid grid(groups_, ceil_div(rows, kPairRows), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      Carried<S> carried;
      Sums sums[2];
      CutRoom room;
      Pending pending;
      int now = 0;
      const auto one_row = [&] {
        group_gradient(here, pending, sums[1 - now], carried);
        ++pending.row;
      };
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t p0, std::int64_t p1) {
        for (std::int64_t g = g0; g < g1; ++g) {
          for (std::int64_t first = p0 * kPairRows; first < std::min(p1 * kPairRows, rows);
               first += kPairRows) {
            if (first < inner) {
              multiply_strip(from, kRecurrent * groups_, row + first, w_hh_, g,
                             inner - first > kTileRows, sums[now].tile, room,
                             [&](std::int64_t calls) {
                               for (pending.due += pending.end - pending.first;
                                    pending.due >= calls; pending.due -= calls) {
                                 one_row();
                               }
                             });
            }
            while (pending.row < pending.end) {
              one_row();
            }
            pending = {g, first, first, std::min(first + kPairRows, rows), 0};
            now = 1 - now;
          }
        }
        while (pending.row < pending.end) {
          one_row();
        }
      });
      note(carried);
    });
  }

  // A row's two slices of a group.
  void group_gradient(const Here& here, const Pending& at, const Sums& sums, Carried<S>& carried) {
    const std::int64_t i = at.row, j = i - at.first;
    V dpre[2][kPre] = {};
    for (std::int64_t slice = 2 * at.group; slice < std::min(2 * at.group + 2, s_.slices);
         ++slice) {
      const T* const sum = sums.tile[j / kTileRows * 2 + slice % 2] + j % kTileRows * kW;
      hidden_gradient(here, i, slice, i < here.later ? load(sum) : V{}, dpre[slice % 2], carried);
    }
    if (i < here.batch) {
      for (int p = 0; p < kPre; ++p) {
        put_pair<S>(rounded<S>(dpre[0][p]), rounded<S>(dpre[1][p]),
                    pieces_.at(p * groups_ + at.group, 0, here.chunk_row + i), pieces_.piece());
      }
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

  // `recurrent`: what the later step passes back to a slice of h of the band's sequence i.
  FUSED_RNN_INLINE void hidden_gradient(const Here& here, std::int64_t i, std::int64_t slice,
                                        V recurrent, V* dpre, Carried<S>& carried) {
    const std::int64_t unit = slice * kW, valid = s_.valid(slice), n = here.first + i;
    if (i >= here.batch) {
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
      dh += load(static_cast<const S*>(a_.dy) + (here.row + i) * s_.H + unit, valid);
    }
    if (a_.dh_n != nullptr && i >= here.later) {
      dh += load(static_cast<const S*>(a_.dh_n) + n * s_.H + unit, valid);
    }
    unit_gradient(here, i, slice, dh, dpre, carried);
  }

  // All gates of one slice of hidden units of the band's sequence i.
  FUSED_RNN_INLINE void unit_gradient(const Here& here, std::int64_t i, std::int64_t slice, V dh,
                                      V* dpre, Carried<S>& carried) {
    const std::int64_t row = here.row + i, unit = slice * kW, valid = s_.valid(slice);
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
    V prev{}, carry{};
    if (kHasState) {
      carry = load(carry_at(slice, i));
      if (Cell::kHasCell && a_.dc != nullptr) {
        carry += load(static_cast<const S*>(a_.dc) + row * s_.H + unit, valid);
      }
      if (i >= here.before) {
        prev = load(
            static_cast<const S*>(Cell::kHasCell ? a_.c0 : a_.h0) + (here.first + i) * s_.H + unit,
            valid);
      } else {
        const std::int64_t before = here.row_before + i;
        prev =
            s_.kHiddenInY ? hidden(before) : load(base + (before * s_.kKept + s_.kKept - 1) * kW);
      }
    }
    Cell::template backward<GateMath<S>>(saved, prev, dh, carry, dpre);
    if (kHasState) {
      store<T>(carry_at(slice, i), carry);
    }
    T* const out = dgates_.get() + (slice * capacity_ + here.chunk_row + i) * kPre * kW;
    for (int p = 0; p < kPre; ++p) {
      store<T>(out + p * kW, dpre[p]);
      if (valid < kW) {  // as in backward.h
        dpre[p] = load(out + p * kW, valid);
        store<T>(out + p * kW, dpre[p]);
      }
      carried.add(dpre[p]);
    }
  }

  void finish(Team::Member& m, const Band& band) {
    if (Cell::kHasCell && a_.dc0 != nullptr) {
      m.run(band.N, [&](std::int64_t i) {
        for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
          store<S>(static_cast<S*>(a_.dc0) + (band.first + i) * s_.H + slice * kW,
                   load(carry_at(slice, i)), s_.valid(slice));
        }
      });
    }
  }

  const BackwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::vector<Band> bands_;
  const std::int64_t band_rows_;
  const std::int64_t capacity_;  // rows of a chunk
  const std::int64_t groups_;
  std::atomic<bool> refused_{false};
  std::atomic<std::uint32_t> largest_{0};
  Strips<S> w_hh_;    // depth: [gate][group]
  Buffer<T> dgates_;  // [slice][row of the chunk][kPre][lane]
  RowPieces pieces_;  // the same: [kPre][group]
  RowPieces edge_;    // the first scan step of the later chunk
  Buffer<T> carry_;   // [slice][row of the band][lane], the gradient of the elementwise state
  TileGradients<Cell, S> gradients_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

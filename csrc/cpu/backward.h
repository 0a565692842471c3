// One direction of one layer, backward: per band of sequences the time loop, which gives the gradients
// of the pre-activations of a chunk of steps. What comes of those is in gradients.h.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Cell, class S>
class BackwardScan {
  using T = typename ComputeType<S>::type;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kRecurrent = Cell::kRecurrent;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;

 public:
  BackwardScan(const BackwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        bands_(cut_into_bands(a, steps_, band_limit(a, s_.widest()))),
        band_rows_(band_rows(bands_)),
        capacity_(std::min(steps_.total(), std::max(band_rows_, kBackwardChunkRows))),
        streamed_(streams(static_cast<std::int64_t>(bands_.size()) * steps_.T, steps_.total())),
        // One step alone has no product with W_hh but dh0.
        packed_(!streamed_ && (steps_.T > 1 || a.dh0 != nullptr)),
        w_hh_(ceil_div(s_.R, kW), packed_ ? s_.slices * G * kW : 0,
              balanced_width<T>(ceil_div(s_.R, kW), band_rows_, members)),
        dgates_(s_.slices * capacity_ * kPre * kW),
        edge_(s_.slices * band_rows_ * kPre * kW),
        carry_(kHasState ? band_rows_ * s_.Hp : 0),
        gradients_(a, s_, capacity_, band_rows_, steps_.total(),
                   ceil_div(steps_.total(), std::max<std::int64_t>(capacity_, 1)), members) {
    if (streamed_) {
      w_hh_streamed_ = StreamedWeights<Cell, S>(s_.R, members);
    }
    if (s_.P > 0) {
      w_hr_ = Packed<T>(s_.slices, s_.P, balanced_width<T>(s_.slices, band_rows_, members));
      dh_ = Buffer<T>(capacity_ * s_.Rp);
      unprojected_ = Buffer<T>(capacity_ * s_.Hp);
    }
  }

  void member(Team::Member& m) {
    const std::int64_t inputs = gradients_.groups();
    m.run(w_hh_.groups() + inputs + w_hr_.groups(),
          [&](std::int64_t i) { prepare_weights(i, inputs); });
    const typename OperandGradients<Cell, S>::Source source{dgates_.get(), edge_.get(), dh_.get(),
                                                            unprojected_.get()};
    for (const Band& band : bands_) {
      m.run(band.N, [&](std::int64_t n) { prepare_row(band, n); });
      Chunk now{band.T, band.T, 0, 0};
      while (now.begin > 0) {
        now = chunk_of(band, chunk_begin(band, now.begin, capacity_), now.begin);
        for (std::int64_t k = now.end - 1; k >= now.begin; --k) {
          step(m, band, k, now);
        }
        gradients_.accumulate(m, band, now, source);
      }
      step(m, band, -1, now);
      finish(m, band);
    }
    gradients_.finish(m);
  }

 private:
  void prepare_weights(std::int64_t i, std::int64_t inputs) {
    if (i < w_hh_.groups()) {
      pack_columns<S>(w_hh_, s_.R, i,
                      [&](std::int64_t k) { return s_.gate_row(a_.w_hh, s_.R, k, kRecurrent); });
    } else if (i < w_hh_.groups() + inputs) {
      gradients_.pack(i - w_hh_.groups());
    } else {
      pack_columns<S>(w_hr_, s_.H, i - w_hh_.groups() - inputs,
                      [&](std::int64_t k) { return static_cast<const S*>(a_.w_hr) + k * s_.H; });
    }
  }

  // Where a band stands in one of its steps.
  struct Here {
    std::int64_t first;         // its first sequence's
    std::int64_t row, before;   // row of the scan in this step, and in the one before it
    std::int64_t chunk_row;     // of the chunk
    std::int64_t batch;         // sequences in this step,
    std::int64_t begun, later;  // in the one before it, and in the next
  };

  void prepare_row(const Band& band, std::int64_t n) {
    if (kHasState) {
      const bool given = Cell::kHasCell && a_.dc_n != nullptr;
      const std::int64_t first = (band.first + n) * s_.H;
      for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
        const V dc =
            given ? load(static_cast<const S*>(a_.dc_n) + first + slice * kW, s_.valid(slice))
                  : V{};
        store<T>(carry_.get() + n * s_.Hp + slice * kW, dc);
      }
    }
  }

  // Sequences of the band's step k from the dgates of step k + 1. Those that ended at k have no later
  // step; those that began at k + 1 (all of them before the first step) give the initial state's
  // gradient instead, where it is wanted.
  void step(Team::Member& m, const Band& band, std::int64_t k, const Chunk& to) {
    const Here here{band.first,    band.begin(k),     band.begin(k - 1), band.begin(k) - to.row,
                    band.batch(k), band.batch(k - 1), band.batch(k + 1)};
    const std::int64_t all = a_.dh0 != nullptr ? std::max(here.later, here.batch) : here.batch;
    const std::int64_t inner = std::min(here.later, all);
    if (all == 0) {
      return;
    }
    const bool inside = k >= to.begin && k + 1 < to.end;
    const T* const from =
        inside ? dgates_.get() + (band.begin(k + 1) - to.row) * kPre * kW : edge_.get();
    const std::int64_t rows = inside ? capacity_ : band_rows_;
    const Rows<T> dgates = gate_rows<Cell>(from, s_.slices, rows, 0, kRecurrent);
    const Grid grid =
        streamed_ ? w_hh_streamed_.grid(all, m.members()) : Grid(w_hh_.groups(), all, m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        const auto take = [&](std::int64_t n, int height, const V* sums, std::int64_t q,
                              int width) {
          for (int j = 0; j < height; ++j) {
            for (int v = 0; v < width; ++v) {
              hidden_gradient(here, n + j, q + v, sums[j * width + v]);
            }
          }
        };
        if (streamed_) {
          w_hh_streamed_.multiply(m, s_, from, rows * kPre * kW, kRecurrent, a_.w_hh, n0,
                                  std::min(n1, inner), g0, g1, take);
        } else {
          w_hh_.multiply(dgates, n0, std::min(n1, inner), g0, g1, take);
        }
        const V none{};
        const std::int64_t width = streamed_ ? w_hh_streamed_.width() : w_hh_.width;
        const std::int64_t last = std::min(g1 * width, w_hh_.vectors);
        for (std::int64_t n = std::max(n0, inner); n < n1; ++n) {
          for (std::int64_t q = g0 * width; q < last; ++q) {
            take(n, 1, &none, q, 1);
          }
        }
      });
    });
    if (s_.P > 0 && here.batch > 0) {
      unproject(m, here);
    }
  }

  // `recurrent`: what the later step passes back to vector q of h in this one.
  FUSED_RNN_INLINE void hidden_gradient(const Here& here, std::int64_t n, std::int64_t q,
                                        V recurrent) {
    const std::int64_t unit = q * kW, valid = std::min(kW, s_.R - unit);
    if (n >= here.batch) {
      if (Cell::kStateIsHidden) {
        recurrent += load(carry_.get() + n * s_.Hp + unit);
      }
      store<S>(static_cast<S*>(a_.dh0) + (here.first + n) * s_.R + unit, recurrent, valid);
      return;
    }
    V dh = recurrent;
    if (a_.dy != nullptr) {
      dh += load(static_cast<const S*>(a_.dy) + (here.row + n) * s_.R + unit, valid);
    }
    if (a_.dh_n != nullptr && n >= here.later) {
      dh += load(static_cast<const S*>(a_.dh_n) + (here.first + n) * s_.R + unit, valid);
    }
    if (s_.P > 0) {
      store<T>(dh_.get() + (here.chunk_row + n) * s_.Rp + unit, dh);
    } else {
      unit_gradient(here, n, q, dh);
    }
  }

  // All gates of one slice of hidden units of sequence n.
  FUSED_RNN_INLINE void unit_gradient(const Here& here, std::int64_t n, std::int64_t slice, V dh) {
    const std::int64_t row = here.row + n, unit = slice * kW;
    const T* base = static_cast<const T*>(a_.saved) + slice * steps_.total() * s_.kKept * kW;
    V saved[Cell::kSaved];
    for (int i = 0; i < s_.kKept; ++i) {
      saved[i] = load(base + (row * s_.kKept + i) * kW);
    }
    const auto hidden = [&](std::int64_t at) {
      return load(static_cast<const S*>(a_.y) + at * s_.H + unit, s_.valid(slice));
    };
    if (s_.kHiddenInY) {
      saved[Cell::kSaved - 1] = hidden(row);
    }
    V prev{}, carry{}, dpre[kPre];
    T* const carried = kHasState ? carry_.get() + n * s_.Hp + unit : nullptr;
    if (kHasState) {
      carry = load(carried);
      if (Cell::kHasCell && a_.dc != nullptr) {
        carry += load(static_cast<const S*>(a_.dc) + row * s_.H + unit, s_.valid(slice));
      }
      const std::int64_t before = here.before + n;
      if (n >= here.begun) {
        const S* const state = static_cast<const S*>(Cell::kHasCell ? a_.c0 : a_.h0);
        prev = load(state + (here.first + n) * s_.H + unit, s_.valid(slice));
      } else {
        prev =
            s_.kHiddenInY ? hidden(before) : load(base + (before * s_.kKept + s_.kKept - 1) * kW);
      }
    }
    Cell::backward(saved, prev, dh, carry, dpre);
    if (kHasState) {
      store<T>(carried, carry);
    }
    T* out = dgates_.get() + (slice * capacity_ + here.chunk_row + n) * kPre * kW;
    for (int p = 0; p < kPre; ++p) {
      // Lanes past H may hold 0 * inf, and meet zero weights in the products to come: 0 * NaN.
      store<T>(out + p * kW, dpre[p]);
      if (s_.valid(slice) < kW) {
        store<T>(out + p * kW, load(out + p * kW, s_.valid(slice)));
      }
    }
    if constexpr (Cell::kHasCell) {
      if (s_.P > 0) {
        store<T>(unprojected_.get() + (here.chunk_row + n) * s_.Hp + unit, Cell::hidden(saved));
      }
    }
  }

  // Through W_hr: the gradient of o tanh(c), and from it the gates'.
  void unproject(Team::Member& m, const Here& here) {
    const Rows<T> dh{dh_.get() + here.chunk_row * s_.Rp, s_.Rp, s_.P};
    const Grid grid(w_hr_.groups(), here.batch, m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        w_hr_.multiply(dh, n0, n1, g0, g1,
                       [&](std::int64_t n, int height, const V* sums, std::int64_t q, int width) {
                         for (int j = 0; j < height; ++j) {
                           for (int v = 0; v < width; ++v) {
                             unit_gradient(here, n + j, q + v, sums[j * width + v]);
                           }
                         }
                       });
      });
    });
  }

  void finish(Team::Member& m, const Band& band) {
    if (Cell::kHasCell && a_.dc0 != nullptr) {
      m.run(band.N, [&](std::int64_t n) {
        S* const dc0 = static_cast<S*>(a_.dc0) + (band.first + n) * s_.H;
        for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
          store<S>(dc0 + slice * kW, load(carry_.get() + n * s_.Hp + slice * kW), s_.valid(slice));
        }
      });
    }
  }

  const BackwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::vector<Band> bands_;
  const std::int64_t band_rows_;
  const std::int64_t capacity_;   // rows of a chunk
  const bool streamed_, packed_;  // W_hh
  Packed<T> w_hh_, w_hr_;
  StreamedWeights<Cell, S> w_hh_streamed_;
  Buffer<T> dgates_;       // [slice][row of the chunk][kPre][lane]
  Buffer<T> edge_;         // [slice][n][kPre][lane]: the first scan step of the later chunk
  Buffer<T> carry_;        // (n, Hp), the gradient of the elementwise state
  Buffer<T> dh_;           // (row of the chunk, Rp), where P > 0
  Buffer<T> unprojected_;  // (row of the chunk, Hp), where P > 0
  OperandGradients<Cell, S> gradients_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

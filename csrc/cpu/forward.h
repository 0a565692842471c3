// One direction of one layer, forward: per band of sequences and chunk of steps the input product,
// then the time loop.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Cell, class S>
class ForwardScan {
  using T = typename ComputeType<S>::type;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  static constexpr bool kConverted = !std::is_same<S, T>::value;

 public:
  ForwardScan(const ForwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        bands_(cut_into_bands(a, steps_, band_limit(a, s_.widest()))),
        band_rows_(band_rows(bands_)),
        members_(members),
        capacity_(std::min(steps_.total(), std::max(band_rows_, kForwardChunkRows))),
        w_ih_(choose_input_weights(steps_.total(), steps_.T, kConverted), s_.slices * G, s_.I,
              gate_width(capacity_), capacity_, !a.training),
        w_hh_(choose_weights(steps_.total(), steps_.T, kConverted), s_.slices * G, s_.R,
              gate_width(band_rows_), band_rows_),
        bias_(s_.slices * kPre * kW),
        gates_x_(s_.slices * capacity_ * G * kW),
        state_(kHasState ? band_rows_ * s_.Hp : 0) {
    for (Buffer<T>& h : h_) {
      h = Buffer<T>(band_rows_ * s_.Rp);
    }
    if (s_.P > 0) {
      const std::int64_t vectors = ceil_div(s_.P, kW);
      w_hr_ = Packed<T>(vectors, s_.H, balanced_width<T>(vectors, band_rows_, members));
      unprojected_ = Buffer<T>(band_rows_ * s_.Hp);
    }
    if (!std::is_same<S, T>::value) {
      x_ = Buffer<T>(capacity_ * s_.I);
    }
  }

  void member(Team::Member& m) {
    m.run(w_ih_.groups() + w_hh_.groups(), [&](std::int64_t item) { prepare_weights(item); });
    for (const Band& band : bands_) {
      m.run(ceil_div(band.N, kRowsPerItem), [&](std::int64_t i) { prepare_rows(band, i); });
      for (std::int64_t k = 0; k < band.T;) {
        const Chunk chunk = chunk_of(band, k, chunk_end(band, k, capacity_));
        project_input(m, chunk);
        for (; k < chunk.end; ++k) {
          step(m, band, k, chunk.row);
        }
      }
    }
  }

 private:
  static constexpr std::int64_t kRowsPerItem = 16;

  // Where a band's first sequence stands in a step, and where its h goes.
  struct Here {
    std::int64_t first;      // sequence of the scan
    std::int64_t row;        // of the scan
    std::int64_t chunk_row;  // of the chunk
    std::int64_t going_on;   // sequences that have a next step
    T* h;                    // (n, Rp)
  };

  // An LSTM's or GRU's tile is one slice with all its gates; the RNN has room for several slices.
  int gate_width(std::int64_t rows) const {
    return G > 1 ? G : balanced_width<T>(s_.slices, rows, members_);
  }

  RowBlock<S> w_ih_rows(std::int64_t q) const { return s_.gate_rows(a_.w_ih, s_.I, q, 0); }
  RowBlock<S> w_hh_rows(std::int64_t q) const {
    return s_.gate_rows(a_.w_hh, s_.R, q, Cell::kRecurrent);
  }

  // A group of either product's, which need not be as wide.
  void prepare_weights(std::int64_t item) {
    const std::int64_t group = item - w_hh_.groups();
    if (group < 0) {
      w_hh_.prepare(item, [&](std::int64_t q) { return w_hh_rows(q); });
      return;
    }
    w_ih_.prepare(group, [&](std::int64_t q) { return w_ih_rows(q); });
    const std::int64_t first = group * w_ih_.width() / G, last = first + w_ih_.width_of(group) / G;
    for (std::int64_t slice = first; slice < last; ++slice) {
      for (int p = 0; p < kPre; ++p) {
        store<T>(bias_.get() + (slice * kPre + p) * kW, gate_bias<Cell, S>(a_, s_, slice, p));
      }
    }
    if (s_.P > 0 && group == 0) {
      for (std::int64_t g = 0; g < w_hr_.groups(); ++g) {
        pack_rows<S>(w_hr_, s_.H, g, [&](std::int64_t q) {
          return RowBlock<S>{static_cast<const S*>(a_.w_hr) + q * kW * s_.H,
                             std::min(kW, s_.P - q * kW)};
        });
      }
    }
  }

  // h in both buffers: a sequence that joins later (reverse) finds its initial state in either.
  void prepare_rows(const Band& band, std::int64_t item) {
    const std::int64_t last = std::min(band.N, (item + 1) * kRowsPerItem);
    for (std::int64_t n = item * kRowsPerItem; n < last; ++n) {
      const S* const h0 = static_cast<const S*>(a_.h0) + (band.first + n) * s_.R;
      for (std::int64_t j = 0; j < s_.Rp; j += kW) {
        const V h = load(h0 + j, std::min(kW, s_.R - j));
        store<T>(h_[0].get() + n * s_.Rp + j, h);
        store<T>(h_[1].get() + n * s_.Rp + j, h);
        if (Cell::kStateIsHidden) {
          store<T>(state_.get() + n * s_.Hp + j, h);
        }
      }
      if (Cell::kHasCell) {
        const S* const c0 = static_cast<const S*>(a_.c0) + (band.first + n) * s_.H;
        for (std::int64_t j = 0; j < s_.Hp; j += kW) {
          store<T>(state_.get() + n * s_.Hp + j, load(c0 + j, std::min(kW, s_.H - j)));
        }
      }
    }
  }

  void project_input(Team::Member& m, const Chunk& chunk) {
    const std::int64_t rows = chunk.rows;
    const S* x = static_cast<const S*>(a_.x) + chunk.row * s_.I;
    Rows<T> in{x_.get(), s_.I, s_.I};
    if constexpr (std::is_same<S, T>::value) {
      in.data = x;
    } else {
      m.run(ceil_div(rows, kRowsPerItem), [&](std::int64_t i) {
        const std::int64_t to = std::min(rows, (i + 1) * kRowsPerItem) * s_.I;
        for (std::int64_t j = i * kRowsPerItem * s_.I; j < to; j += kW) {
          const std::int64_t valid = std::min(kW, to - j);
          store<T>(x_.get() + j, load(x + j, valid), valid);
        }
      });
    }
    const Grid grid = w_ih_.grid(m, in, rows);
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t r0, std::int64_t r1) {
        const auto take = [&](std::int64_t row, int height, const V* sums, std::int64_t q,
                              int width) {
          for (int v = 0; v < width; ++v) {
            const std::int64_t slice = (q + v) / G, gate = (q + v) % G;
            const V bias = load(bias_.get() + (slice * kPre + gate) * kW);
            T* out = gates_x(slice, row) + gate * kW;
            for (int j = 0; j < height; ++j) {
              store<T>(out + j * G * kW, sums[j * width + v] + bias);
            }
          }
        };
        w_ih_.multiply(
            in, rows, r0, r1, g0, g1, [&](std::int64_t q) { return w_ih_rows(q); }, take);
      });
    });
  }

  T* gates_x(std::int64_t slice, std::int64_t chunk_row) const {
    return gates_x_.get() + (slice * capacity_ + chunk_row) * G * kW;
  }

  void step(Team::Member& m, const Band& band, std::int64_t k, std::int64_t chunk) {
    const Rows<T> h{h_[k % 2].get(), s_.Rp, s_.R};
    const Here here{band.first, band.begin(k), band.begin(k) - chunk, band.batch(k + 1),
                    h_[(k + 1) % 2].get()};
    const std::int64_t batch = band.batch(k);
    const Grid grid = w_hh_.grid(m, h, batch);
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        const auto take = [&](std::int64_t n, int height, const V* sums, std::int64_t q,
                              int width) {
          for (int j = 0; j < height; ++j) {
            for (int v = 0; v < width; v += G) {
              unit_step(here, (q + v) / G, n + j, sums + j * width + v);
            }
          }
        };
        w_hh_.multiply(
            h, batch, n0, n1, g0, g1, [&](std::int64_t q) { return w_hh_rows(q); }, take);
      });
    });
    if (s_.P > 0) {
      project_hidden(m, here, batch);
    }
  }

  // All gates of one slice of hidden units of sequence n, from the recurrent sums.
  FUSED_RNN_INLINE void unit_step(const Here& here, std::int64_t slice, std::int64_t n,
                                  const V* sums) {
    const std::int64_t row = here.row + n, unit = slice * kW;
    const T* gx = gates_x(slice, here.chunk_row + n);
    V pre[kPre];
    for (int p = 0; p < kPre; ++p) {
      pre[p] = p < G ? load(gx + p * kW) : load(bias_.get() + (slice * kPre + p) * kW);
      if (p >= Cell::kRecurrent) {
        pre[p] += sums[p - Cell::kRecurrent];
      }
    }
    T* const state = kHasState ? state_.get() + n * s_.Hp + unit : nullptr;
    V saved[Cell::kSaved];
    V h = Cell::forward(pre, kHasState ? load(state) : V{}, saved);
    if (s_.P > 0) {
      store<T>(unprojected_.get() + n * s_.Hp + unit, h);
    } else {
      h = rounded<S>(h);
      store_hidden(here, n, unit, h);
    }
    if (Cell::kStateIsHidden) {
      saved[Cell::kSaved - 1] = h;
    }
    if (kHasState) {
      store<T>(state, saved[Cell::kSaved - 1]);
    }
    if (Cell::kHasCell && a_.c != nullptr) {
      store<S>(static_cast<S*>(a_.c) + row * s_.H + unit, saved[Cell::kSaved - 1], s_.valid(slice));
    }
    if (Cell::kHasCell && n >= here.going_on) {
      store<S>(static_cast<S*>(a_.c_n) + (here.first + n) * s_.H + unit, saved[Cell::kSaved - 1],
               s_.valid(slice));
    }
    if (a_.training) {
      T* out = static_cast<T*>(a_.saved) + (slice * steps_.total() + row) * s_.kKept * kW;
      for (int i = 0; i < s_.kKept; ++i) {
        store<T>(out + i * kW, saved[i]);
      }
    }
  }

  // h, already rounded to S: for the next step, for the user, and as the final state.
  FUSED_RNN_INLINE void store_hidden(const Here& here, std::int64_t n, std::int64_t unit, V h) {
    const std::int64_t valid = std::min(kW, s_.R - unit);
    store<T>(here.h + n * s_.Rp + unit, h);
    store<S>(static_cast<S*>(a_.y) + (here.row + n) * s_.R + unit, h, valid);
    if (n >= here.going_on) {
      store<S>(static_cast<S*>(a_.h_n) + (here.first + n) * s_.R + unit, h, valid);
    }
  }

  void project_hidden(Team::Member& m, const Here& here, std::int64_t batch) {
    const Rows<T> in{unprojected_.get(), s_.Hp, s_.H};
    const Grid grid(w_hr_.groups(), batch, m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        w_hr_.multiply(in, n0, n1, g0, g1,
                       [&](std::int64_t n, int height, const V* sums, std::int64_t q, int width) {
                         for (int j = 0; j < height; ++j) {
                           for (int v = 0; v < width; ++v) {
                             store_hidden(here, n + j, (q + v) * kW,
                                          rounded<S>(sums[j * width + v]));
                           }
                         }
                       });
      });
    });
  }

  const ForwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::vector<Band> bands_;
  const std::int64_t band_rows_;
  const int members_;
  const std::int64_t capacity_;  // rows of a chunk
  GateProduct<S> w_ih_, w_hh_;
  Packed<T> w_hr_;
  Buffer<T> bias_;         // [slice][kPre][lane]
  Buffer<T> gates_x_;      // [slice][row of the chunk][kGates][lane]
  Buffer<T> state_;        // (n, Hp)
  Buffer<T> h_[2];         // (n, Rp), one read while the other is written
  Buffer<T> unprojected_;  // (n, Hp), where P > 0
  Buffer<T> x_;            // the chunk's x in T, where that is not S
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// One direction of one layer, forward: per band of sequences and chunk of steps the input product,
// then the time loop.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Cell, class S, bool kTraining>
class ForwardScan {
  using T = typename ComputeType<S>::type;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;

 public:
  ForwardScan(const ForwardArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        bands_(cut_into_bands(steps_, band_limit(a, s_.widest()))),
        band_rows_(band_rows(bands_)),
        members_(members),
        capacity_(std::min(steps_.total(), std::max(band_rows_, kForwardChunkRows))),
        product_(choose_product()),
        w_ih_(s_.slices * G, product_ == Product::kPacked ? s_.I : 0, gate_width(), !kTraining),
        w_hh_(s_.slices * G, product_ == Product::kPacked ? s_.R : 0, gate_width()),
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
    if (product_ == Product::kTurned) {
      x_turned_ = turned(capacity_, s_.I);
      h_turned_ = turned(band_rows_, s_.R);
    }
    if (!std::is_same<S, T>::value) {
      x_ = Buffer<T>(capacity_ * s_.I);
    }
  }

  void member(Team::Member& m) {
    m.run(w_ih_.groups(), [&](std::int64_t group) { prepare_weights(group); });
    for (const Band& band : bands_) {
      m.run(ceil_div(band.N, kRowsPerItem), [&](std::int64_t i) { prepare_rows(band, i); });
      for (std::int64_t k = band.from; k < band.T;) {
        const std::int64_t end = chunk_end(band, k, capacity_);
        project_input(m, band, k, end);
        const std::int64_t chunk = band.first_row(k, end);
        for (; k < end; ++k) {
          step(m, band, k, chunk);
        }
      }
    }
  }

 private:
  static constexpr std::int64_t kRowsPerItem = 16;

  // Where a band's first sequence stands in a scan step, and where its h goes.
  struct Here {
    std::int64_t first;      // sequence of the scan
    std::int64_t row;        // of the scan
    std::int64_t chunk_row;  // of the chunk
    std::int64_t going_on;   // sequences that have a next step
    T* h;                    // (n, Rp)
  };

  static Packed<T> turned(std::int64_t rows, std::int64_t columns) {
    const std::int64_t vectors = ceil_div(rows, kW);
    return Packed<T>(vectors, columns,
                     static_cast<int>(std::min<std::int64_t>(vectors, kMaxWidth)));
  }

  // Packing the weights costs about as much as the products of some tens of rows with them.
  enum class Product { kPacked, kDots, kTurned };
  Product choose_product() const {
    constexpr std::int64_t kFew = 8, kSome = 96;
    if (steps_.total() <= kFew) {
      return Product::kDots;
    }
    return std::is_same<S, T>::value && steps_.T == 1 && a_.N <= kSome ? Product::kTurned
                                                                       : Product::kPacked;
  }

  // An LSTM's or GRU's tile is one slice with all its gates; the RNN has room for several slices.
  int gate_width() const { return G > 1 ? G : balanced_width<T>(s_.slices, band_rows_, members_); }

  RowBlock<S> w_ih_rows(std::int64_t q) const { return s_.gate_rows(a_.w_ih, s_.I, q, 0); }
  RowBlock<S> w_hh_rows(std::int64_t q) const {
    return s_.gate_rows(a_.w_hh, s_.R, q, Cell::kRecurrent);
  }

  void prepare_weights(std::int64_t group) {
    if (product_ == Product::kPacked) {
      pack_rows<S>(w_ih_, s_.I, group, [&](std::int64_t q) { return w_ih_rows(q); });
      pack_rows<S>(w_hh_, s_.R, group, [&](std::int64_t q) { return w_hh_rows(q); });
    }
    const std::int64_t first = group * w_ih_.width / G, last = first + w_ih_.width_of(group) / G;
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

  void project_input(Team::Member& m, const Band& band, std::int64_t k, std::int64_t end) {
    const std::int64_t first_row = band.first_row(k, end), rows = band.rows(k, end);
    const S* x = static_cast<const S*>(a_.x) + first_row * s_.I;
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
    const Grid grid = make_grid(m, in, rows, x_turned_);
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
        multiply(
            in, w_ih_, s_.I, x_turned_, rows, r0, r1, g0, g1,
            [&](std::int64_t q) { return w_ih_rows(q); }, take);
      });
    });
  }

  // The cut of a product's work; where A is to be turned, that comes first.
  Grid make_grid(Team::Member& m, const Rows<T>& a, std::int64_t rows, Packed<T>& turned) const {
    if (product_ != Product::kTurned) {
      return Grid(w_ih_.groups(), rows, m.members());
    }
    m.run(ceil_div(rows, turned.width * kW), [&](std::int64_t group) {
      pack_rows<T>(turned, a.row, group, [&](std::int64_t q) {
        return RowBlock<T>{a.data + q * kW * a.row, std::clamp<std::int64_t>(rows - q * kW, 0, kW)};
      });
    });
    return Grid(w_ih_.groups(), 1, m.members());
  }

  // A times one of the gate matrices, in the way chosen for this call.
  template <class R, class F>
  FUSED_RNN_INLINE void multiply(const Rows<T>& a, const Packed<T>& w, std::int64_t w_row,
                                 const Packed<T>& turned, std::int64_t rows_of_a, std::int64_t r0,
                                 std::int64_t r1, std::int64_t g0, std::int64_t g1, R&& rows,
                                 F&& f) {
    if (product_ == Product::kPacked) {
      w.multiply(a, r0, r1, g0, g1, f);
    } else if (product_ == Product::kDots) {
      multiply_unpacked<S>(a, w_row, w.width, w.vectors, r0, r1, g0, g1, rows, f);
    } else if constexpr (std::is_same<S, T>::value) {
      multiply_turned(turned, w_row, w.width, w.vectors, rows_of_a, g0, g1, rows, f);
    }
  }

  T* gates_x(std::int64_t slice, std::int64_t chunk_row) const {
    return gates_x_.get() + (slice * capacity_ + chunk_row) * G * kW;
  }

  void step(Team::Member& m, const Band& band, std::int64_t k, std::int64_t chunk) {
    const Rows<T> h{h_[k % 2].get(), s_.Rp, s_.R};
    const Here here{band.first, band.begin(k), band.begin(k) - chunk, band.batch(k + 1),
                    h_[(k + 1) % 2].get()};
    const std::int64_t batch = band.batch(k);
    const Grid grid = make_grid(m, h, batch, h_turned_);
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
        multiply(
            h, w_hh_, s_.R, h_turned_, batch, n0, n1, g0, g1,
            [&](std::int64_t q) { return w_hh_rows(q); }, take);
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
    if (kTraining) {
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
  const Product product_;
  Packed<T> w_ih_, w_hh_, w_hr_;
  Packed<T> x_turned_, h_turned_;
  Buffer<T> bias_;         // [slice][kPre][lane]
  Buffer<T> gates_x_;      // [slice][row of the chunk][kGates][lane]
  Buffer<T> state_;        // (n, Hp)
  Buffer<T> h_[2];         // (n, Rp), one read while the other is written
  Buffer<T> unprojected_;  // (n, Hp), where P > 0
  Buffer<T> x_;            // the chunk's x in T, where that is not S
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

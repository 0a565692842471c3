// One direction of one layer, forward: per chunk of steps the input product, then the time loop.
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
        members_(members),
        capacity_(std::min(steps_.total(), std::max(a.N, kForwardChunkRows))),
        product_(choose_product()),
        w_ih_(s_.slices * G, product_ == Product::kPacked ? s_.I : 0, gate_width(), !kTraining),
        w_hh_(s_.slices * G, product_ == Product::kPacked ? s_.R : 0, gate_width()),
        bias_(s_.slices * kPre * kW),
        gates_x_(s_.slices * capacity_ * G * kW),
        state_(kHasState ? s_.N * s_.Hp : 0) {
    for (Buffer<T>& h : h_) {
      h = Buffer<T>(s_.N * s_.Rp);
    }
    if (s_.P > 0) {
      const std::int64_t vectors = ceil_div(s_.P, kW);
      w_hr_ = Packed<T>(vectors, s_.H, balanced_width<T>(vectors, s_.N, members));
      unprojected_ = Buffer<T>(s_.N * s_.Hp);
    }
    if (product_ == Product::kTurned) {
      const std::int64_t vectors = ceil_div(s_.N, kW);
      const int width = static_cast<int>(std::min<std::int64_t>(vectors, kMaxWidth));
      x_turned_ = Packed<T>(vectors, s_.I, width);
      h_turned_ = Packed<T>(vectors, s_.R, width);
    }
    if (!std::is_same<S, T>::value) {
      x_ = Buffer<T>(capacity_ * s_.I);
    }
  }

  void member(Team::Member& m) {
    m.run(w_ih_.groups(), [&](std::int64_t group) { prepare_weights(group); });
    m.run(ceil_div(s_.N, kRowsPerItem), [&](std::int64_t i) { prepare_rows(i); });
    for (std::int64_t k = 0; k < steps_.T;) {
      const std::int64_t end = chunk_end(steps_, k, capacity_);
      project_input(m, k, end);
      const std::int64_t chunk = steps_.first_row(k, end);
      for (; k < end; ++k) {
        step(m, k, chunk);
      }
    }
  }

 private:
  static constexpr std::int64_t kRowsPerItem = 16;

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
  int gate_width() const { return G > 1 ? G : balanced_width<T>(s_.slices, s_.N, members_); }

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
  void prepare_rows(std::int64_t item) {
    const std::int64_t last = std::min(s_.N, (item + 1) * kRowsPerItem);
    for (std::int64_t n = item * kRowsPerItem; n < last; ++n) {
      for (std::int64_t j = 0; j < s_.Rp; j += kW) {
        const V h = load(static_cast<const S*>(a_.h0) + n * s_.R + j, std::min(kW, s_.R - j));
        store<T>(h_[0].get() + n * s_.Rp + j, h);
        store<T>(h_[1].get() + n * s_.Rp + j, h);
        if (Cell::kStateIsHidden) {
          store<T>(state_.get() + n * s_.Hp + j, h);
        }
      }
      if (Cell::kHasCell) {
        for (std::int64_t j = 0; j < s_.Hp; j += kW) {
          store<T>(state_.get() + n * s_.Hp + j,
                   load(static_cast<const S*>(a_.c0) + n * s_.H + j, std::min(kW, s_.H - j)));
        }
      }
    }
  }

  void project_input(Team::Member& m, std::int64_t k, std::int64_t end) {
    const std::int64_t first_row = steps_.first_row(k, end), rows = steps_.rows(k, end);
    const S* x = static_cast<const S*>(a_.x) + first_row * s_.I;
    Rows<T> in{x_.get(), s_.I, s_.I};
    if constexpr (std::is_same<S, T>::value) {
      in.data = x;
    } else {
      m.run(ceil_div(rows, kRowsPerItem), [&](std::int64_t i) {
        const std::int64_t to = std::min(rows, (i + 1) * kRowsPerItem) * s_.I;
        for (std::int64_t j = i * kRowsPerItem * s_.I; j < to; ++j) {
          x_.get()[j] = widen(x[j]);
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
            in, w_ih_, s_.I, x_turned_, r0, r1, g0, g1,
            [&](std::int64_t q) { return w_ih_rows(q); }, take);
      });
    });
  }

  // The cut of a product's work; where A is to be turned, that comes first.
  Grid make_grid(Team::Member& m, const Rows<T>& a, std::int64_t rows, Packed<T>& turned) const {
    if (product_ != Product::kTurned) {
      return Grid(w_ih_.groups(), rows, m.members());
    }
    m.run(turned.groups(), [&](std::int64_t group) {
      pack_rows<T>(turned, a.row, group, [&](std::int64_t q) {
        return RowBlock<T>{a.data + q * kW * a.row, std::clamp<std::int64_t>(rows - q * kW, 0, kW)};
      });
    });
    return Grid(w_ih_.groups(), 1, m.members());
  }

  // A times one of the gate matrices, in the way chosen for this call.
  template <class R, class F>
  FUSED_RNN_INLINE void multiply(const Rows<T>& a, const Packed<T>& w, std::int64_t w_row,
                                 const Packed<T>& turned, std::int64_t r0, std::int64_t r1,
                                 std::int64_t g0, std::int64_t g1, R&& rows, F&& f) {
    if (product_ == Product::kPacked) {
      w.multiply(a, r0, r1, g0, g1, f);
    } else if (product_ == Product::kDots) {
      multiply_unpacked<S>(a, w_row, w.width, w.vectors, r0, r1, g0, g1, rows, f);
    } else if constexpr (std::is_same<S, T>::value) {
      multiply_turned(turned, w_row, w.width, w.vectors, a_.N, g0, g1, rows, f);
    }
  }

  T* gates_x(std::int64_t slice, std::int64_t chunk_row) const {
    return gates_x_.get() + (slice * capacity_ + chunk_row) * G * kW;
  }

  void step(Team::Member& m, std::int64_t k, std::int64_t chunk) {
    const Rows<T> h{h_[k % 2].get(), s_.Rp, s_.R};
    const Grid grid = make_grid(m, h, steps_.batch(k), h_turned_);
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        const auto take = [&](std::int64_t n, int height, const V* sums, std::int64_t q,
                              int width) {
          for (int j = 0; j < height; ++j) {
            for (int v = 0; v < width; v += G) {
              unit_step(k, chunk, (q + v) / G, n + j, sums + j * width + v);
            }
          }
        };
        multiply(
            h, w_hh_, s_.R, h_turned_, n0, n1, g0, g1, [&](std::int64_t q) { return w_hh_rows(q); },
            take);
      });
    });
    if (s_.P > 0) {
      project_hidden(m, k);
    }
  }

  // All gates of one slice of hidden units of sequence n, from the recurrent sums.
  FUSED_RNN_INLINE void unit_step(std::int64_t k, std::int64_t chunk, std::int64_t slice,
                                  std::int64_t n, const V* sums) {
    const std::int64_t row = steps_.begin(k) + n, unit = slice * kW;
    const T* gx = gates_x(slice, row - chunk);
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
      store_hidden(k, n, row, unit, h);
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
    if (Cell::kHasCell && ends(k, n)) {
      store<S>(static_cast<S*>(a_.c_n) + n * s_.H + unit, saved[Cell::kSaved - 1], s_.valid(slice));
    }
    if (kTraining) {
      T* out = static_cast<T*>(a_.saved) + (slice * steps_.total() + row) * s_.kKept * kW;
      for (int i = 0; i < s_.kKept; ++i) {
        store<T>(out + i * kW, saved[i]);
      }
    }
  }

  bool ends(std::int64_t k, std::int64_t n) const { return n >= steps_.batch(k + 1); }

  // h, already rounded to S: for the next step, for the user, and as the final state.
  FUSED_RNN_INLINE void store_hidden(std::int64_t k, std::int64_t n, std::int64_t row,
                                     std::int64_t unit, V h) {
    const std::int64_t valid = std::min(kW, s_.R - unit);
    store<T>(h_[(k + 1) % 2].get() + n * s_.Rp + unit, h);
    store<S>(static_cast<S*>(a_.y) + row * s_.R + unit, h, valid);
    if (ends(k, n)) {
      store<S>(static_cast<S*>(a_.h_n) + n * s_.R + unit, h, valid);
    }
  }

  void project_hidden(Team::Member& m, std::int64_t k) {
    const Rows<T> in{unprojected_.get(), s_.Hp, s_.H};
    const Grid grid(w_hr_.groups(), steps_.batch(k), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        w_hr_.multiply(in, n0, n1, g0, g1,
                       [&](std::int64_t n, int height, const V* sums, std::int64_t q, int width) {
                         for (int j = 0; j < height; ++j) {
                           for (int v = 0; v < width; ++v) {
                             store_hidden(k, n + j, steps_.begin(k) + n + j, (q + v) * kW,
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
  const int members_;
  const std::int64_t capacity_;  // rows of a chunk
  const Product product_;
  Packed<T> w_ih_, w_hh_, w_hr_;
  Packed<T> x_turned_, h_turned_;
  Buffer<T> bias_;         // [slice][kPre][lane]
  Buffer<T> gates_x_;      // [slice][row of the chunk][kGates][lane]
  Buffer<T> state_;        // (N, Hp)
  Buffer<T> h_[2];         // (N, Rp), one read while the other is written
  Buffer<T> unprojected_;  // (N, Hp), where P > 0
  Buffer<T> x_;            // the chunk's x in T, where that is not S
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

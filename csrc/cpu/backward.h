// One direction of one layer, backward: the time loop gives the gradients of the pre-activations of
// a chunk of steps; from those, while they are in the cache, come the shares of dW, db and dx.
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
        capacity_(std::min(steps_.total(), std::max(a.N, kBackwardChunkRows))),
        panel_slices_(choose_panel_slices()),
        w_hh_(vectors(s_.R), s_.slices * G * kW, balanced_width<T>(vectors(s_.R), s_.N, members)),
        w_ih_(a.dx != nullptr ? vectors(s_.I) : 0, panel_slices_ > 0 ? 0 : s_.slices * G * kW,
              kMaxWidth),
        panels_(a.dx != nullptr ? members * panel_slices_ * G * kW * kMaxWidth * kW : 0),
        dgates_(s_.slices * capacity_ * kPre * kW),
        edge_(s_.slices * s_.N * kPre * kW),
        carry_(kHasState ? s_.N * s_.Hp : 0),
        dbias_(s_.slices * kPre * kW),
        x_(a.dw_ih != nullptr && !x_fits() ? capacity_ * padded(s_.I) : 0),
        h_(a.dw_hh != nullptr ? capacity_ * s_.Rp : 0),
        dw_ih_(a.dw_ih, Cell::kGates * s_.H * s_.I),
        dw_hh_(a.dw_hh, Cell::kGates * s_.H * s_.R),
        dw_hr_(a.dw_hr, s_.P * s_.H) {
    if (s_.P > 0) {
      w_hr_ = Packed<T>(s_.slices, s_.P, balanced_width<T>(s_.slices, s_.N, members));
      dh_ = Buffer<T>(capacity_ * s_.Rp);
      unprojected_ = Buffer<T>(capacity_ * s_.Hp);
    }
  }

  void member(Team::Member& m) {
    const std::int64_t inputs = panel_slices_ > 0 ? 0 : w_ih_.groups();
    const std::int64_t total = w_hh_.groups() + inputs + w_hr_.groups();
    m.run(total, [&](std::int64_t i) { prepare_weights(i, inputs); });
    m.run(s_.N, [&](std::int64_t n) { prepare_row(n); });
    Chunk now{steps_.T, steps_.T, 0};
    while (now.begin > 0) {
      const std::int64_t begin = chunk_begin(steps_, now.begin, capacity_);
      now = {begin, now.begin, steps_.first_row(begin, now.begin)};
      for (std::int64_t k = now.end - 1; k >= now.begin; --k) {
        step(m, k, now);
      }
      stage(m, now);
      accumulate(m, now);
    }
    step(m, -1, now);
    finish(m);
  }

 private:
  struct Chunk {
    std::int64_t begin, end;  // scan steps
    std::int64_t row;         // the first of its rows
  };

  // A weight gradient in T: the user's tensor itself where that is T's, scratch elsewhere.
  struct Gradient {
    Gradient(void* user_, std::int64_t n_)
        : user(static_cast<S*>(user_)), n(n_), scratch(user != nullptr && !kDirect ? n : 0) {}
    static constexpr bool kDirect = std::is_same<S, T>::value;
    T* data() const {
      if constexpr (kDirect) {
        return user;
      } else {
        return scratch.get();
      }
    }
    S* user;
    std::int64_t n;
    Buffer<T> scratch;
  };

  static std::int64_t vectors(std::int64_t columns) { return ceil_div(columns, kW); }
  static std::int64_t padded(std::int64_t columns) { return vectors(columns) * kW; }

  auto w_ih_row() const {
    return [this](std::int64_t k) { return s_.gate_row(a_.w_ih, s_.I, k, 0); };
  }

  // A large W_ih is not packed as a whole, which would double it, but for every chunk in panels
  // that stay in a core's cache. Sums in T cannot be added up in a narrower dx: one panel deep.
  std::int64_t choose_panel_slices() const {
    constexpr std::int64_t kLarge = 1 << 20, kTerms = 1024;
    if (s_.slices * G * kW * s_.I * static_cast<std::int64_t>(sizeof(T)) < kLarge) {
      return 0;
    }
    return std::is_same<S, T>::value ? std::min(s_.slices, kTerms / (G * kW)) : s_.slices;
  }

  void prepare_weights(std::int64_t i, std::int64_t inputs) {
    if (i < w_hh_.groups()) {
      pack_columns<S>(w_hh_, s_.R, i,
                      [&](std::int64_t k) { return s_.gate_row(a_.w_hh, s_.R, k, kRecurrent); });
      return;
    }
    i -= w_hh_.groups();
    if (i < inputs) {
      pack_columns<S>(w_ih_, s_.I, i, w_ih_row());
      return;
    }
    pack_columns<S>(w_hr_, s_.H, i - inputs,
                    [&](std::int64_t k) { return static_cast<const S*>(a_.w_hr) + k * s_.H; });
  }

  void prepare_row(std::int64_t n) {
    if (kHasState) {
      for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
        const bool given = Cell::kHasCell && a_.dc_n != nullptr;
        const V dc =
            given ? load(static_cast<const S*>(a_.dc_n) + n * s_.H + slice * kW, s_.valid(slice))
                  : V{};
        store<T>(carry_.get() + n * s_.Hp + slice * kW, dc);
      }
    }
  }

  // Sequences of scan step k from the dgates of step k + 1. Those that ended at k have no later
  // step; those that began at k + 1 (all of them at k = -1) give the initial state's gradient
  // instead.
  void step(Team::Member& m, std::int64_t k, const Chunk& to) {
    const std::int64_t inner = steps_.batch(k + 1), here = steps_.batch(k);
    const bool inside = k >= to.begin && k + 1 < to.end;
    const Rows<T> dgates =
        inside ? gate_rows(dgates_.get(), capacity_, steps_.begin(k + 1) - to.row, kRecurrent)
               : gate_rows(edge_.get(), s_.N, 0, kRecurrent);
    const Grid grid(w_hh_.groups(), std::max(inner, here), m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        const auto take = [&](std::int64_t n, int height, const V* sums, std::int64_t q,
                              int width) {
          for (int j = 0; j < height; ++j) {
            for (int v = 0; v < width; ++v) {
              hidden_gradient(k, to, n + j, q + v, sums[j * width + v]);
            }
          }
        };
        w_hh_.multiply(dgates, n0, std::min(n1, inner), g0, g1, take);
        const V none[kMaxWidth] = {};
        for (std::int64_t n = std::max(n0, inner); n < n1; ++n) {
          for (std::int64_t g = g0; g < g1; ++g) {
            take(n, 1, none, g * w_hh_.width, w_hh_.width_of(g));
          }
        }
      });
    });
    if (s_.P > 0 && here > 0) {
      unproject(m, k, to, here);
    }
  }

  // Gradients of kGates pre-activations from first_pre on, all slices of them along K.
  Rows<T> gate_rows(const T* dgates, std::int64_t rows, std::int64_t row, int first_pre) const {
    Rows<T> r{dgates + row * kPre * kW + first_pre * kW, kPre * kW, G * kW};
    r.blocks = s_.slices;
    r.block = rows * kPre * kW;
    return r;
  }

  // `recurrent`: what the later step passes back to vector q of h at step k.
  FUSED_RNN_INLINE void hidden_gradient(std::int64_t k, const Chunk& to, std::int64_t n,
                                        std::int64_t q, V recurrent) {
    const std::int64_t unit = q * kW, valid = std::min(kW, s_.R - unit);
    if (n >= steps_.batch(k)) {
      if (Cell::kStateIsHidden) {
        recurrent += load(carry_.get() + n * s_.Hp + unit);
      }
      if (a_.dh0 != nullptr) {
        store<S>(static_cast<S*>(a_.dh0) + n * s_.R + unit, recurrent, valid);
      }
      return;
    }
    const std::int64_t row = steps_.begin(k) + n;
    V dh = recurrent;
    if (a_.dy != nullptr) {
      dh += load(static_cast<const S*>(a_.dy) + row * s_.R + unit, valid);
    }
    if (a_.dh_n != nullptr && n >= steps_.batch(k + 1)) {
      dh += load(static_cast<const S*>(a_.dh_n) + n * s_.R + unit, valid);
    }
    if (s_.P > 0) {
      store<T>(dh_.get() + (row - to.row) * s_.Rp + unit, dh);
    } else {
      unit_gradient(k, to, n, q, dh);
    }
  }

  // All gates of one slice of hidden units of sequence n.
  FUSED_RNN_INLINE void unit_gradient(std::int64_t k, const Chunk& to, std::int64_t n,
                                      std::int64_t slice, V dh) {
    const std::int64_t row = steps_.begin(k) + n, unit = slice * kW;
    const T* base = static_cast<const T*>(a_.saved) + slice * steps_.total() * Cell::kSaved * kW;
    V saved[Cell::kSaved];
    for (int i = 0; i < Cell::kSaved; ++i) {
      saved[i] = load(base + (row * Cell::kSaved + i) * kW);
    }
    V prev{}, carry{}, dpre[kPre];
    T* const carried = kHasState ? carry_.get() + n * s_.Hp + unit : nullptr;
    if (kHasState) {
      carry = load(carried);
      prev = n < steps_.batch(k - 1)
                 ? load(base + ((steps_.begin(k - 1) + n) * Cell::kSaved + Cell::kSaved - 1) * kW)
                 : load(static_cast<const S*>(Cell::kHasCell ? a_.c0 : a_.h0) + n * s_.H + unit,
                        s_.valid(slice));
    }
    Cell::backward(saved, prev, dh, carry, dpre);
    if (kHasState) {
      store<T>(carried, carry);
    }
    T* out = dgates_.get() + (slice * capacity_ + row - to.row) * kPre * kW;
    for (int p = 0; p < kPre; ++p) {
      // Lanes past H may hold 0 * inf, and meet zero weights in the products to come: 0 * NaN.
      store<T>(out + p * kW, dpre[p]);
      if (s_.valid(slice) < kW) {
        store<T>(out + p * kW, load(out + p * kW, s_.valid(slice)));
      }
    }
    if constexpr (Cell::kHasCell) {
      if (s_.P > 0) {
        store<T>(unprojected_.get() + (row - to.row) * s_.Hp + unit, saved[3] * tanh(saved[4]));
      }
    }
  }

  // Through W_hr: the gradient of o tanh(c), and from it the gates'.
  void unproject(Team::Member& m, std::int64_t k, const Chunk& to, std::int64_t here) {
    const Rows<T> dh{dh_.get() + (steps_.begin(k) - to.row) * s_.Rp, s_.Rp, s_.P};
    const Grid grid(w_hr_.groups(), here, m.members());
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t g0, std::int64_t g1, std::int64_t n0, std::int64_t n1) {
        w_hr_.multiply(dh, n0, n1, g0, g1,
                       [&](std::int64_t n, int height, const V* sums, std::int64_t q, int width) {
                         for (int j = 0; j < height; ++j) {
                           for (int v = 0; v < width; ++v) {
                             unit_gradient(k, to, n + j, q + v, sums[j * width + v]);
                           }
                         }
                       });
      });
    });
  }

  // The chunk's x and h of the step before, in T and padded to whole vectors.
  void stage(Team::Member& m, const Chunk& c) {
    const bool x_wanted = a_.dw_ih != nullptr && !x_fits();
    if (!x_wanted && a_.dw_hh == nullptr) {
      return;
    }
    m.run(c.end - c.begin, [&](std::int64_t i) {
      const std::int64_t k = c.begin + i, first = steps_.begin(k);
      for (std::int64_t n = 0; n < steps_.batch(k); ++n) {
        const std::int64_t row = first + n;
        if (x_wanted) {
          copy_row(static_cast<const S*>(a_.x) + row * s_.I, s_.I,
                   x_.get() + (row - c.row) * padded(s_.I));
        }
        if (a_.dw_hh != nullptr) {
          const S* h = n < steps_.batch(k - 1)
                           ? static_cast<const S*>(a_.y) + (steps_.begin(k - 1) + n) * s_.R
                           : static_cast<const S*>(a_.h0) + n * s_.R;
          copy_row(h, s_.R, h_.get() + (row - c.row) * s_.Rp);
        }
      }
    });
  }

  // x serves as it lies where it has the arithmetic's type and whole vectors.
  bool x_fits() const { return std::is_same<S, T>::value && s_.I % kW == 0; }
  const T* chunk_x(const Chunk& c) const {
    if constexpr (std::is_same<S, T>::value) {
      if (x_fits()) {
        return static_cast<const S*>(a_.x) + c.row * s_.I;
      }
    }
    return x_.get();
  }

  static void copy_row(const S* from, std::int64_t columns, T* to) {
    for (std::int64_t j = 0; j < columns; j += kW) {
      store<T>(to + j, load(from + j, std::min(kW, columns - j)));
    }
  }

  void accumulate(Team::Member& m, const Chunk& c) {
    const std::int64_t rows = steps_.rows(c.begin, c.end);
    const Grid dx(w_ih_.groups(), rows, m.members());
    const std::int64_t dx_items = a_.dx != nullptr ? dx.items() : 0;
    const std::int64_t projections = s_.P > 0 && a_.dw_hr != nullptr ? ceil_div(s_.P, kW) : 0;
    m.run(s_.slices + projections + dx_items, [&](std::int64_t i) {
      if (i < s_.slices) {
        slice_weights(c, rows, i);
      } else if (i < s_.slices + projections) {
        projection_weights(c, rows, i - s_.slices);
      } else {
        input_gradient(m, c, dx, i - s_.slices - projections);
      }
    });
  }

  void slice_weights(const Chunk& c, std::int64_t rows, std::int64_t slice) {
    const T* d = dgates_.get() + slice * capacity_ * kPre * kW;
    for (int p = 0; p < kPre; ++p) {
      const V sum = sum_rows(d + p * kW, rows);
      T* total = dbias_.get() + (slice * kPre + p) * kW;
      store<T>(total, c.end == steps_.T ? sum : load(total) + sum);
    }
    for (int g = 0; g < G; ++g) {
      const std::int64_t unit = slice * kW, valid = s_.valid(slice);
      if (a_.dw_ih != nullptr) {
        outer(c, rows, d + g * kW, kPre * kW, valid, chunk_x(c), s_.I,
              dw_ih_.data() + (Cell::kOrder[g] * s_.H + unit) * s_.I);
      }
      if (a_.dw_hh != nullptr) {
        outer(c, rows, d + (g + kRecurrent) * kW, kPre * kW, valid, h_.get(), s_.R,
              dw_hh_.data() + (Cell::kOrder[g + kRecurrent] * s_.H + unit) * s_.R);
      }
    }
    const std::int64_t edge = (steps_.begin(c.begin) - c.row) * kPre * kW;
    std::copy_n(d + edge, steps_.batch(c.begin) * kPre * kW,
                edge_.get() + slice * s_.N * kPre * kW);
  }

  // Pairwise above kTermsPerFold rows: the rounding error must not grow with the batch.
  static V sum_rows(const T* d, std::int64_t rows) {
    if (rows > kTermsPerFold) {
      const std::int64_t half = rows / 2;
      return sum_rows(d, half) + sum_rows(d + half * kPre * kW, rows - half);
    }
    V sum{};
    for (std::int64_t r = 0; r < rows; ++r) {
      sum += load(d + r * kPre * kW);
    }
    return sum;
  }

  void projection_weights(const Chunk& c, std::int64_t rows, std::int64_t q) {
    outer(c, rows, dh_.get() + q * kW, s_.Rp, std::min(kW, s_.P - q * kW), unprojected_.get(), s_.H,
          dw_hr_.data() + q * kW * s_.H);
  }

  // out[u][j] += sum over the chunk's rows r of d[r * d_step + u] * in[r][j]; u < units, j < columns.
  void outer(const Chunk& c, std::int64_t rows, const T* d, std::int64_t d_step, std::int64_t units,
             const T* in, std::int64_t columns, T* out) {
    const bool first = c.end == steps_.T;
    Rows<T> a{d, 1, rows};
    a.step = d_step;
    const std::int64_t count = vectors(columns);
    for (std::int64_t q = 0; q < count; q += kMaxWidth) {
      const int width = static_cast<int>(std::min<std::int64_t>(kMaxWidth, count - q));
      for_tiles(
          a, 0, units, in + q * kW, padded(columns), width,
          [&](std::int64_t u, int height, const V* sums) {
            for (int j = 0; j < height; ++j) {
              for (int v = 0; v < width; ++v) {
                const std::int64_t column = (q + v) * kW, valid = std::min(kW, columns - column);
                T* p = out + (u + j) * columns + column;
                store<T>(p, first ? sums[j * width + v] : load(p, valid) + sums[j * width + v],
                         valid);
              }
            }
          });
    }
  }

  void input_gradient(Team::Member& m, const Chunk& c, const Grid& grid, std::int64_t item) {
    const Rows<T> dgates = gate_rows(dgates_.get(), capacity_, 0, 0);
    grid.item(item, [&](std::int64_t g0, std::int64_t g1, std::int64_t r0, std::int64_t r1) {
      if (panel_slices_ == 0) {
        w_ih_.multiply(dgates, r0, r1, g0, g1,
                       [&](std::int64_t row, int height, const V* sums, std::int64_t q, int width) {
                         store_dx(c, row, height, sums, q, width, false);
                       });
        return;
      }
      T* const panel = panels_.get() + m.id() * panel_slices_ * G * kW * kMaxWidth * kW;
      for (std::int64_t g = g0; g < g1; ++g) {
        const std::int64_t q = g * w_ih_.width;
        const int width = w_ih_.width_of(g);
        for (std::int64_t slice = 0; slice < s_.slices; slice += panel_slices_) {
          const Rows<T> part = dgates.blocks_from(slice, panel_slices_);
          const std::int64_t k = slice * G * kW;
          pack_columns<S>(panel, s_.I, q, width, k, k + part.blocks * G * kW, w_ih_row());
          for_tiles(part, r0, r1, panel, width * kW, width,
                    [&](std::int64_t row, int height, const V* sums) {
                      store_dx(c, row, height, sums, q, width, slice > 0);
                    });
        }
      }
    });
  }

  FUSED_RNN_INLINE void store_dx(const Chunk& c, std::int64_t row, int height, const V* sums,
                                 std::int64_t q, int width, bool add) const {
    for (int j = 0; j < height; ++j) {
      for (int v = 0; v < width; ++v) {
        const std::int64_t column = (q + v) * kW, valid = std::min(kW, s_.I - column);
        S* const p = static_cast<S*>(a_.dx) + (c.row + row + j) * s_.I + column;
        const V sum = sums[j * width + v];
        store<S>(p, add ? load(p, valid) + sum : sum, valid);
      }
    }
  }

  void finish(Team::Member& m) {
    m.run(1, [&](std::int64_t) {
      for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
        for (int p = 0; p < kPre; ++p) {
          const std::int64_t unit = Cell::kOrder[p] * s_.H + slice * kW;
          const V db = load(dbias_.get() + (slice * kPre + p) * kW);
          if (a_.db_ih != nullptr && p < G) {
            store<S>(static_cast<S*>(a_.db_ih) + unit, db, s_.valid(slice));
          }
          if (a_.db_hh != nullptr && p >= kRecurrent) {
            store<S>(static_cast<S*>(a_.db_hh) + unit, db, s_.valid(slice));
          }
        }
      }
      if (Cell::kHasCell && a_.dc0 != nullptr) {
        for (std::int64_t n = 0; n < s_.N; ++n) {
          for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
            store<S>(static_cast<S*>(a_.dc0) + n * s_.H + slice * kW,
                     load(carry_.get() + n * s_.Hp + slice * kW), s_.valid(slice));
          }
        }
      }
      for (const Gradient* g : {&dw_ih_, &dw_hh_, &dw_hr_}) {
        if (!Gradient::kDirect && g->user != nullptr) {
          for (std::int64_t i = 0; i < g->n; ++i) {
            g->user[i] = narrow<S>(g->data()[i]);
          }
        }
      }
    });
  }

  const BackwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::int64_t capacity_;      // rows of a chunk
  const std::int64_t panel_slices_;  // of a panel of W_ih; 0 where it is packed as a whole
  Packed<T> w_hh_, w_ih_, w_hr_;
  Buffer<T> panels_;       // [member][depth of a panel][kMaxWidth][lane]
  Buffer<T> dgates_;       // [slice][row of the chunk][kPre][lane]
  Buffer<T> edge_;         // [slice][n][kPre][lane]: the first scan step of the later chunk
  Buffer<T> carry_;        // (N, Hp), the gradient of the elementwise state
  Buffer<T> dbias_;        // [slice][kPre][lane]
  Buffer<T> x_, h_;        // (row of the chunk, columns padded)
  Buffer<T> dh_;           // (row of the chunk, Rp), where P > 0
  Buffer<T> unprojected_;  // (row of the chunk, Hp), where P > 0
  Gradient dw_ih_, dw_hh_, dw_hr_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

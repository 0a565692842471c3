// One direction of one layer, backward: the time loop, which gives the gradients of the
// pre-activations of a chunk of steps. What comes of those is in gradients.h.
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
        w_hh_(ceil_div(s_.R, kW), s_.slices * G * kW,
              balanced_width<T>(ceil_div(s_.R, kW), s_.N, members)),
        dgates_(s_.slices * capacity_ * kPre * kW),
        edge_(s_.slices * s_.N * kPre * kW),
        carry_(kHasState ? s_.N * s_.Hp : 0),
        gradients_(a, s_, steps_, capacity_, members) {
    if (s_.P > 0) {
      w_hr_ = Packed<T>(s_.slices, s_.P, balanced_width<T>(s_.slices, s_.N, members));
      dh_ = Buffer<T>(capacity_ * s_.Rp);
      unprojected_ = Buffer<T>(capacity_ * s_.Hp);
    }
  }

  void member(Team::Member& m) {
    const std::int64_t inputs = gradients_.groups();
    m.run(w_hh_.groups() + inputs + w_hr_.groups(),
          [&](std::int64_t i) { prepare_weights(i, inputs); });
    m.run(s_.N, [&](std::int64_t n) { prepare_row(n); });
    const typename OperandGradients<Cell, S>::Source source{dgates_.get(), edge_.get(), dh_.get(),
                                                            unprojected_.get()};
    Chunk now{steps_.T, steps_.T, 0};
    while (now.begin > 0) {
      const std::int64_t begin = chunk_begin(steps_, now.begin, capacity_);
      now = {begin, now.begin, steps_.first_row(begin, now.begin)};
      for (std::int64_t k = now.end - 1; k >= now.begin; --k) {
        step(m, k, now);
      }
      gradients_.accumulate(m, now, source);
    }
    step(m, -1, now);
    finish(m);
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
    const Rows<T> dgates = inside ? gate_rows<Cell>(dgates_.get(), s_.slices, capacity_,
                                                    steps_.begin(k + 1) - to.row, kRecurrent)
                                  : gate_rows<Cell>(edge_.get(), s_.slices, s_.N, 0, kRecurrent);
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
      const std::int64_t before = steps_.begin(k - 1) + n;
      if (n >= steps_.batch(k - 1)) {
        prev = load(static_cast<const S*>(Cell::kHasCell ? a_.c0 : a_.h0) + n * s_.H + unit,
                    s_.valid(slice));
      } else {
        prev =
            s_.kHiddenInY ? hidden(before) : load(base + (before * s_.kKept + s_.kKept - 1) * kW);
      }
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
        store<T>(unprojected_.get() + (row - to.row) * s_.Hp + unit, Cell::hidden(saved));
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

  void finish(Team::Member& m) {
    if (Cell::kHasCell && a_.dc0 != nullptr) {
      m.run(s_.N, [&](std::int64_t n) {
        for (std::int64_t slice = 0; slice < s_.slices; ++slice) {
          store<S>(static_cast<S*>(a_.dc0) + n * s_.H + slice * kW,
                   load(carry_.get() + n * s_.Hp + slice * kW), s_.valid(slice));
        }
      });
    }
  }

  const BackwardArgs& a_;
  const Shape<Cell, S> s_;
  const Steps steps_;
  const std::int64_t capacity_;  // rows of a chunk
  Packed<T> w_hh_, w_hr_;
  Buffer<T> dgates_;       // [slice][row of the chunk][kPre][lane]
  Buffer<T> edge_;         // [slice][n][kPre][lane]: the first scan step of the later chunk
  Buffer<T> carry_;        // (N, Hp), the gradient of the elementwise state
  Buffer<T> dh_;           // (row of the chunk, Rp), where P > 0
  Buffer<T> unprojected_;  // (row of the chunk, Hp), where P > 0
  OperandGradients<Cell, S> gradients_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

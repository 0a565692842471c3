// The gradients of a scan's operands but its states: a chunk's shares of dW, db and dx, from the
// gradients of its pre-activations while they are in the cache.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Gradients of kGates pre-activations from first_pre on, all slices of them along K.
template <class Cell, class T>
Rows<T> gate_rows(const T* dgates, std::int64_t slices, std::int64_t rows, std::int64_t row,
                  int first_pre) {
  constexpr std::int64_t kW = kLanes<T>;
  constexpr int G = Cell::kGates, kPre = Cell::kPre;
  Rows<T> r{dgates + row * kPre * kW + first_pre * kW, kPre * kW, G * kW};
  r.blocks = slices;
  r.block = rows * kPre * kW;
  return r;
}

// A row of B of such a product, in its place.
template <class E, class T>
void put_row(const E* from, std::int64_t columns, std::int64_t row, const Packed<T>& to) {
  constexpr std::int64_t kW = kLanes<T>;
  for (std::int64_t g = 0; g < to.groups(); ++g) {
    T* out = to.group(g) + row * to.step_of(g);
    for (int v = 0; v < to.width_of(g); ++v, out += kW) {
      const std::int64_t j = (g * to.width + v) * kW;
      store<T>(out, load(from + j, std::min(kW, columns - j)));
    }
  }
}

template <class Cell, class S>
class OperandGradients {
  using T = typename ComputeType<S>::type;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kRecurrent = Cell::kRecurrent;

 public:
  // What the time loop leaves.
  struct Source {
    const T* dgates;       // [slice][row of the chunk][kPre][lane]
    T* edge;               // [slice][n][kPre][lane]: gets the chunk's first scan step
    const T* dh;           // (row of the chunk, Rp), where P > 0
    const T* unprojected;  // (row of the chunk, Hp), where P > 0
  };

  // `rows` of the scan, in `chunks`.
  OperandGradients(const BackwardArgs& a, const Shape<Cell, S>& s, std::int64_t capacity,
                   std::int64_t band_rows, std::int64_t rows, std::int64_t chunks, int members)
      : a_(a),
        s_(s),
        capacity_(capacity),
        band_rows_(band_rows),
        w_ih_streamed_(a.dx != nullptr && streams(chunks, rows)
                           ? StreamedWeights<Cell, S>(s.I, members)
                           : StreamedWeights<Cell, S>()),
        panel_slices_(w_ih_streamed_.used() ? 0 : choose_panel_slices(rows)),
        w_ih_(a.dx != nullptr && !w_ih_streamed_.used() ? vectors(s.I) : 0,
              panel_slices_ > 0 ? 0 : s.slices * G * kW, kBestWidth),
        panels_(a.dx != nullptr ? members * panel_slices_ * G * kW * kBestWidth * kW : 0),
        dbias_(s.slices * kPre * kW),
        units_(kGatesTogether ? 0 : members * capacity * kW),
        x_(a.dw_ih != nullptr ? vectors(s.I) : 0, capacity, kBestWidth),
        h_(a.dw_hh != nullptr ? vectors(s.R) : 0, capacity, kBestWidth),
        hidden_(a.dw_hr != nullptr ? vectors(s.H) : 0, capacity, kBestWidth),
        dw_ih_(a.dw_ih, G * s.H * s.I),
        dw_hh_(a.dw_hh, G * s.H * s.R),
        dw_hr_(a.dw_hr, s.P * s.H) {}

  // Pieces of W_ih to be packed before the first chunk.
  std::int64_t groups() const { return panel_slices_ > 0 ? 0 : w_ih_.groups(); }
  void pack(std::int64_t group) { pack_columns<S>(w_ih_, s_.I, group, w_ih_row()); }

  // Adds what a chunk's steps contribute.
  void accumulate(Team::Member& m, const Band& band, const Chunk& c, const Source& from) {
    stage(m, band, c, from);
    const bool add = band.first > 0 || c.end < band.T;  // not the first chunk
    const Grid dx = w_ih_streamed_.used() ? w_ih_streamed_.grid(c.rows, m.members())
                                          : Grid(w_ih_.groups(), c.rows, m.members());
    const std::int64_t dx_items = a_.dx != nullptr ? dx.items() : 0;
    const std::int64_t projections = s_.P > 0 && a_.dw_hr != nullptr ? ceil_div(s_.P, kW) : 0;
    m.run(s_.slices + projections + dx_items, [&](std::int64_t i) {
      if (i < s_.slices) {
        slice_weights(m, band, c, from, i, add);
      } else if (i < s_.slices + projections) {
        projection_weights(from, c.rows, i - s_.slices, add);
      } else {
        input_gradient(m, c, from, dx, i - s_.slices - projections);
      }
    });
  }

  void finish(Team::Member& m) {
    finish_gradients<Cell, S>(m, a_, s_, dbias_.get(), {&dw_ih_, &dw_hh_, &dw_hr_});
  }

 private:
  static std::int64_t vectors(std::int64_t columns) { return ceil_div(columns, kW); }
  static constexpr std::int64_t kRowsPerItem = 16;
  static constexpr bool kGatesTogether = kCutsDepth;

  auto w_ih_row() const {
    return [this](std::int64_t k) { return s_.gate_row(a_.w_ih, s_.I, k, 0); };
  }

  // A large W_ih is not packed as a whole, which would double it, but for every chunk in panels, one
  // for each member. Sums in T cannot be added up in a narrower dx: there a panel has full depth.
  // Where the saved values are no less than W_ih is, the copy is not what memory is short of.
  std::int64_t choose_panel_slices(std::int64_t rows) const {
    constexpr std::int64_t kLarge = 1 << 20, kTerms = 1024;
    constexpr std::int64_t kMembers = 8;  // not the team's: how sums are cut must not depend on it
    const std::int64_t slice_bytes = G * kW * kW * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t all = s_.slices * vectors(s_.I) * slice_bytes;
    const std::int64_t deep =
        std::is_same<S, T>::value ? std::min(s_.slices, kTerms / (G * kW)) : s_.slices;
    const bool small = kCutsDepth && rows * s_.kKept >= G * s_.I;
    return all < kLarge || small || kMembers * deep * kMaxWidth * slice_bytes >= all ? 0 : deep;
  }

  // What the gradients of a chunk meet, as B of the products: x, and h of the step before.
  void stage(Team::Member& m, const Band& band, const Chunk& c, const Source& from) {
    m.run(ceil_div(c.rows, kRowsPerItem), [&](std::int64_t i) {
      const std::int64_t r0 = i * kRowsPerItem, r1 = std::min(r0 + kRowsPerItem, c.rows);
      for (std::int64_t k = c.begin; k < c.end; ++k) {
        const std::int64_t first = band.begin(k) - c.row, begun = band.batch(k - 1);
        const std::int64_t last = std::min(first + band.batch(k), r1);
        for (std::int64_t row = std::max(first, r0); row < last; ++row) {
          const std::int64_t n = row - first;
          put_row(static_cast<const S*>(a_.x) + (c.row + row) * s_.I, s_.I, row, x_);
          put_row(n < begun ? static_cast<const S*>(a_.y) + (band.begin(k - 1) + n) * s_.R
                            : static_cast<const S*>(a_.h0) + (band.first + n) * s_.R,
                  s_.R, row, h_);
          if (s_.P > 0) {
            put_row(from.unprojected + row * s_.Hp, s_.H, row, hidden_);
          }
        }
      }
    });
  }

  // Of 16 registers the units of all gates of a slice meet a piece of x or h together. Of 32 those of one gate
  // are enough, and are copied: where they lie, all of a chunk would share a few sets of the first-level cache.
  void slice_weights(Team::Member& m, const Band& band, const Chunk& c, const Source& from,
                     std::int64_t slice, bool add) {
    constexpr std::int64_t kStep = kPre * kW;
    const T* const d = from.dgates + slice * capacity_ * kStep;
    T* const units = kGatesTogether ? nullptr : units_.get() + m.id() * capacity_ * kW;
    const auto of_x = [&](const T* gates, std::int64_t step, int first, int count) {
      gate_weights(gates, step, first, count, slice, c.rows, x_, s_.I, dw_ih_.data(), add);
    };
    const auto of_h = [&](const T* gates, std::int64_t step, int first, int count) {
      gate_weights(gates, step, first, count, slice, c.rows, h_, s_.R, dw_hh_.data(), add);
    };
    for (int p = 0; p < kPre; ++p) {
      const V sum = sum_rows(d + p * kW, kStep, c.rows);
      T* total = dbias_.get() + (slice * kPre + p) * kW;
      store<T>(total, add ? load(total) + sum : sum);
      for (std::int64_t row = 0; !kGatesTogether && row < c.rows; ++row) {
        store<T>(units + row * kW, load(d + row * kStep + p * kW));
      }
      if (!kGatesTogether && p < G) {
        of_x(units, kW, p, 1);
      }
      if (!kGatesTogether && p >= kRecurrent) {
        of_h(units, kW, p, 1);
      }
    }
    if (kGatesTogether) {
      of_x(d, kStep, 0, G);
      of_h(d + kRecurrent * kW, kStep, kRecurrent, G);
    }
    const std::int64_t edge = (band.begin(c.begin) - c.row) * kStep;
    std::copy_n(d + edge, band.batch(c.begin) * kStep, from.edge + slice * band_rows_ * kStep);
  }

  // From the gradients of `count` pre-activations of a slice, from `first` on, `step` apart in each row.
  void gate_weights(const T* gates, std::int64_t step, int first, int count, std::int64_t slice,
                    std::int64_t rows, const Packed<T>& in, std::int64_t columns, T* dw, bool add) {
    if (dw == nullptr) {
      return;
    }
    outer<T>(
        rows, gates, step, count * kW, in, columns,
        [&](std::int64_t u) -> T* {
          const int gate = Cell::order(first + static_cast<int>(u / kW));
          const std::int64_t lane = u % kW;
          return lane < s_.valid(slice) ? dw + (gate * s_.H + slice * kW + lane) * columns
                                        : nullptr;
        },
        add);
  }

  void projection_weights(const Source& from, std::int64_t rows, std::int64_t q, bool add) {
    outer<T>(
        rows, from.dh + q * kW, s_.Rp, std::min(kW, s_.P - q * kW), hidden_, s_.H,
        [&](std::int64_t u) { return dw_hr_.data() + (q * kW + u) * s_.H; }, add);
  }

  void input_gradient(Team::Member& m, const Chunk& c, const Source& from, const Grid& grid,
                      std::int64_t item) {
    const Rows<T> dgates = gate_rows<Cell>(from.dgates, s_.slices, capacity_, 0, 0);
    grid.item(item, [&](std::int64_t g0, std::int64_t g1, std::int64_t r0, std::int64_t r1) {
      const auto whole = [&](std::int64_t row, int height, const V* sums, std::int64_t q,
                             int width) { store_dx(c, row, height, sums, q, width, false); };
      if (w_ih_streamed_.used()) {
        w_ih_streamed_.multiply(m, s_, from.dgates, capacity_ * kPre * kW, 0, a_.w_ih, r0, r1, g0,
                                g1, whole);
        return;
      }
      if (panel_slices_ == 0) {
        w_ih_.multiply(dgates, r0, r1, g0, g1, whole);
        return;
      }
      T* const panel = panels_.get() + m.id() * panel_slices_ * G * kW * kBestWidth * kW;
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

  const BackwardArgs& a_;
  const Shape<Cell, S>& s_;
  const std::int64_t capacity_;  // rows of a chunk
  const std::int64_t band_rows_;
  StreamedWeights<Cell, S> w_ih_streamed_;
  const std::int64_t panel_slices_;  // of a panel of W_ih; 0 where it is packed as a whole
  Packed<T> w_ih_;
  Buffer<T> panels_;          // [member][depth of a panel][kBestWidth][lane]
  Buffer<T> dbias_;           // [slice][kPre][lane]
  Buffer<T> units_;           // [member][row of the chunk][lane]: of one slice and pre-activation
  Packed<T> x_, h_, hidden_;  // at depth k: row k of the chunk
  Gradient<S> dw_ih_, dw_hh_, dw_hr_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

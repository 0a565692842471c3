// One direction of one layer with int8 or bfloat16 weights, at inference: as cpu/forward.h, with other
// products. Before a product its rows are prepared, which for int8 means rounded to integers.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// XRows and HRows: as what x is multiplied with w_ih, and h with the other weights.
template <class Cell, class XRows, class HRows>
class QuantizedScan {
  using V = Vec<float>;
  using W = typename HRows::Weight;
  static constexpr std::int64_t kW = kLanes<float>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;

 public:
  QuantizedScan(const QuantizedArgs& a, int members)
      : a_(a),
        s_(a),
        steps_(a),
        bands_(cut_into_bands(a, steps_, band_limit(a, s_.widest()))),
        members_(members),
        capacity_(std::min(steps_.total(), std::max(band_rows(bands_), kForwardChunkRows))),
        x_rows_(capacity_, s_.I, is_far()),
        h_rows_(band_rows(bands_), s_.R, is_far()),
        gates_x_(s_.slices * capacity_ * G * kW),
        state_(kHasState ? band_rows(bands_) * s_.Hp : 0) {
    for (Buffer<float>& h : h_) {
      h = Buffer<float>(band_rows(bands_) * s_.Rp);
    }
    if (s_.P > 0) {
      unprojected_ = Buffer<float>(band_rows(bands_) * s_.Hp);
      unprojected_rows_ = HRows(band_rows(bands_), s_.H, is_far());
    }
  }

  void member(Team::Member& m) {
    for (const Band& band : bands_) {
      for (std::int64_t k = 0; k < band.T;) {
        const Chunk chunk = chunk_of(band, k, chunk_end(band, k, capacity_));
        prepare(m, band, chunk);
        const bool single = chunk.end - chunk.begin == 1;
        if (!single) {
          run(m, s_.slices, chunk.rows, [&](std::int64_t slice, std::int64_t r0, std::int64_t r1) {
            project_input(slice, r0, r1);
          });
        }
        for (; k < chunk.end; ++k) {
          if (k > chunk.begin) {
            by_rows(m, band.batch(k), [&](std::int64_t n) { prepare_hidden(k, n); });
          }
          step(m, band, k, chunk.row, single);
        }
      }
    }
  }

 private:
  static constexpr std::int64_t kRowsPerItem = 16;

  bool is_far() const {
    constexpr std::int64_t kCached = std::int64_t{3} << 20;
    return G * s_.H * (s_.I + s_.R) * static_cast<std::int64_t>(sizeof(W)) > kCached;
  }

  // Where a band's first sequence stands in a step, and where its h goes.
  struct Here {
    std::int64_t first;      // sequence of the scan
    std::int64_t row;        // of the scan
    std::int64_t chunk_row;  // of the chunk
    std::int64_t going_on;   // sequences that have a next step
    float* h;                // (n, Rp)
  };

  template <class F>
  void by_rows(Team::Member& m, std::int64_t rows, F&& f) {
    m.run(ceil_div(rows, kRowsPerItem), [&](std::int64_t i) {
      for (std::int64_t n = i * kRowsPerItem; n < std::min(rows, (i + 1) * kRowsPerItem); ++n) {
        f(n);
      }
    });
  }

  // f(slice, first row, last row + 1)
  template <class F>
  void run(Team::Member& m, std::int64_t slices, std::int64_t rows, F&& f) {
    const Grid grid(slices, rows, members_);
    m.run(grid.items(), [&](std::int64_t i) {
      grid.item(i, [&](std::int64_t q0, std::int64_t q1, std::int64_t r0, std::int64_t r1) {
        for (std::int64_t q = q0; q < q1; ++q) {
          f(q, r0, r1);
        }
      });
    });
  }

  // What a chunk's first products wait for: its x, its first h, and at the beginning all states.
  void prepare(Team::Member& m, const Band& band, const Chunk& chunk) {
    const bool begins = chunk.begin == 0;
    const std::int64_t batch = band.batch(chunk.begin), states = begins ? band.N : batch;
    by_rows(m, chunk.rows + states, [&](std::int64_t i) {
      if (i < chunk.rows) {
        x_rows_.prepare(i, static_cast<const float*>(a_.x) + (chunk.row + i) * s_.I);
        return;
      }
      const std::int64_t n = i - chunk.rows;
      if (begins) {
        begin_state(band, n);
      }
      if (n < batch) {
        prepare_hidden(chunk.begin, n);
      }
    });
  }

  void prepare_hidden(std::int64_t k, std::int64_t n) {
    h_rows_.prepare(n, h_[k % 2].get() + n * s_.Rp);
  }

  // h in both buffers: a sequence that joins later (reverse) finds its initial state in either.
  void begin_state(const Band& band, std::int64_t n) {
    const float* const h0 = static_cast<const float*>(a_.h0) + (band.first + n) * s_.R;
    for (std::int64_t j = 0; j < s_.Rp; j += kW) {
      const V h = load(h0 + j, std::min(kW, s_.R - j));
      store<float>(h_[0].get() + n * s_.Rp + j, h);
      store<float>(h_[1].get() + n * s_.Rp + j, h);
      if (Cell::kStateIsHidden) {
        store<float>(state_.get() + n * s_.Hp + j, h);
      }
    }
    if (Cell::kHasCell) {
      const float* const c0 = static_cast<const float*>(a_.c0) + (band.first + n) * s_.H;
      for (std::int64_t j = 0; j < s_.Hp; j += kW) {
        store<float>(state_.get() + n * s_.Hp + j, load(c0 + j, std::min(kW, s_.H - j)));
      }
    }
  }

  // The rows of a gate matrix that give a slice of pre-activation p.
  template <class Weight>
  WeightRows<Weight> gate_rows(const void* w, std::int64_t columns, const float* scales,
                               std::int64_t slice, int p) const {
    const auto* const first = static_cast<const Weight*>(w);
    const std::int64_t row = Cell::order(p) * s_.H + slice * kW;
    return {first + row * columns, s_.valid(slice), columns, first + Cell::kGates * s_.H * columns,
            scales == nullptr ? nullptr : scales + row};
  }

  float* gates_x(std::int64_t slice, std::int64_t chunk_row) const {
    return gates_x_.get() + (slice * capacity_ + chunk_row) * G * kW;
  }

  void project_input(std::int64_t slice, std::int64_t r0, std::int64_t r1) {
    for (int p = 0; p < G; ++p) {
      const V bias = gate_bias<Cell, float>(a_, s_, slice, p);
      x_rows_.multiply(r0, r1, gate_rows<typename XRows::Weight>(a_.w_ih, s_.I, a_.s_ih, slice, p),
                       [&](std::int64_t row, V products) {
                         store<float>(gates_x(slice, row) + p * kW, products + bias);
                       });
    }
  }

  // `with_input`: the input's products too, of a chunk that is this one step.
  void step(Team::Member& m, const Band& band, std::int64_t k, std::int64_t chunk,
            bool with_input) {
    const Here here{band.first, band.begin(k), band.begin(k) - chunk, band.batch(k + 1),
                    h_[(k + 1) % 2].get()};
    run(m, s_.slices, band.batch(k), [&](std::int64_t slice, std::int64_t n0, std::int64_t n1) {
      if (with_input) {
        project_input(slice, n0, n1);
      }
      for (std::int64_t n = n0; n < n1; n += kRowsPerItem) {
        slice_step(here, slice, n, std::min(n1, n + kRowsPerItem));
      }
    });
    if (s_.P > 0) {
      project_hidden(m, here, band.batch(k));
    }
  }

  void slice_step(const Here& here, std::int64_t slice, std::int64_t n0, std::int64_t n1) {
    V products[G][kRowsPerItem];
    for (int g = 0; g < G; ++g) {
      h_rows_.multiply(n0, n1, gate_rows<W>(a_.w_hh, s_.R, a_.s_hh, slice, Cell::kRecurrent + g),
                       [&](std::int64_t n, V product) { products[g][n - n0] = product; });
    }
    V bias[kPre];
    for (int p = G; p < kPre; ++p) {
      bias[p] = gate_bias<Cell, float>(a_, s_, slice, p);
    }
    for (std::int64_t n = n0; n < n1; ++n) {
      V pre[kPre];
      for (int p = 0; p < kPre; ++p) {
        pre[p] = p < G ? load(gates_x(slice, here.chunk_row + n) + p * kW) : bias[p];
        if (p >= Cell::kRecurrent) {
          pre[p] += products[p - Cell::kRecurrent][n - n0];
        }
      }
      unit_step(here, slice, n, pre);
    }
  }

  FUSED_RNN_INLINE void unit_step(const Here& here, std::int64_t slice, std::int64_t n,
                                  const V* pre) {
    const std::int64_t unit = slice * kW;
    float* const state = kHasState ? state_.get() + n * s_.Hp + unit : nullptr;
    V saved[Cell::kSaved];
    const V h = Cell::forward(pre, kHasState ? load(state) : V{}, saved);
    const V after = saved[Cell::kSaved - 1];
    if (s_.P > 0) {
      store<float>(unprojected_.get() + n * s_.Hp + unit, h);
    } else {
      store_hidden(here, n, unit, h);
    }
    if (kHasState) {
      store<float>(state, after);
    }
    if (Cell::kHasCell && a_.c != nullptr) {
      store<float>(static_cast<float*>(a_.c) + (here.row + n) * s_.H + unit, after,
                   s_.valid(slice));
    }
    if (Cell::kHasCell && n >= here.going_on) {
      store<float>(static_cast<float*>(a_.c_n) + (here.first + n) * s_.H + unit, after,
                   s_.valid(slice));
    }
  }

  // For the next step, for the user, and as the final state.
  FUSED_RNN_INLINE void store_hidden(const Here& here, std::int64_t n, std::int64_t unit, V h) {
    const std::int64_t valid = std::min(kW, s_.R - unit);
    store<float>(here.h + n * s_.Rp + unit, h);
    store<float>(static_cast<float*>(a_.y) + (here.row + n) * s_.R + unit, h, valid);
    if (n >= here.going_on) {
      store<float>(static_cast<float*>(a_.h_n) + (here.first + n) * s_.R + unit, h, valid);
    }
  }

  void project_hidden(Team::Member& m, const Here& here, std::int64_t batch) {
    by_rows(m, batch,
            [&](std::int64_t n) { unprojected_rows_.prepare(n, unprojected_.get() + n * s_.Hp); });
    const auto* const first = static_cast<const W*>(a_.w_hr);
    run(m, ceil_div(s_.P, kW), batch, [&](std::int64_t q, std::int64_t n0, std::int64_t n1) {
      const std::int64_t row = q * kW;
      const WeightRows<W> rows{first + row * s_.H, std::min(kW, s_.P - row), s_.H,
                               first + s_.P * s_.H, a_.s_hr == nullptr ? nullptr : a_.s_hr + row};
      unprojected_rows_.multiply(n0, n1, rows,
                                 [&](std::int64_t n, V h) { store_hidden(here, n, row, h); });
    });
  }

  const QuantizedArgs& a_;
  const Shape<Cell, float> s_;
  const Steps steps_;
  const std::vector<Band> bands_;
  const int members_;
  const std::int64_t capacity_;  // rows of a chunk
  XRows x_rows_;
  HRows h_rows_, unprojected_rows_;
  Buffer<float> gates_x_;      // [slice][row of the chunk][kGates][lane]
  Buffer<float> state_;        // (n, Hp)
  Buffer<float> h_[2];         // (n, Rp), one read while the other is written
  Buffer<float> unprojected_;  // (n, Hp), where P > 0
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

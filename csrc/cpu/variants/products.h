// Products with a matrix of k heads, each (G*u, R/k): W_hh, and W_hr as one head of one gate.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Of the gates from `first` to `last` - 1. Forward it takes rows (R,) and gives rows (G*H,); `back` the
// other way round.
template <class T>
class HeadProduct {
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;

 public:
  HeadProduct() = default;
  HeadProduct(const void* w, int heads, int gates, int first, int last, std::int64_t units,
              std::int64_t width, bool back, std::int64_t rows, int members)
      : w_(static_cast<const T*>(w)),
        gates_(gates),
        first_(first),
        last_(last),
        units_(units),
        width_(width),
        slices_(ceil_div(units, kW)),
        back_(back) {
    const std::int64_t vectors = back ? ceil_div(width, kW) : (last - first) * slices_;
    const std::int64_t depth = back ? (last - first) * units : width;
    for (int head = 0; head < heads; ++head) {
      packed_.emplace_back(vectors, depth, balanced_width<T>(vectors * heads, rows, members));
    }
  }

  std::int64_t groups() const { return packed_.empty() ? 0 : heads() * packed_.front().groups(); }

  void pack(std::int64_t item) {
    const std::int64_t head = item / packed_.front().groups(),
                       group = item % packed_.front().groups();
    Packed<T>& to = packed_[static_cast<std::size_t>(head)];
    if (back_) {
      pack_columns<T>(to, width_, group,
                      [&](std::int64_t k) { return row(head, first_ + k / units_, k % units_); });
    } else {
      pack_rows<T>(to, width_, group, [&](std::int64_t q) {
        const std::int64_t unit = q % slices_ * kW;
        return RowBlock<T>{row(head, first_ + q / slices_, unit), std::min(kW, units_ - unit)};
      });
    }
  }

  // f(row, column, sums, how many of them) for the rows [0, rows) of `in`, `step` values apart.
  template <class F>
  void multiply(Team::Member& m, const T* in, std::int64_t step, std::int64_t rows, F&& f) const {
    const Packed<T>& any = packed_.front();
    const Grid grid(any.groups(), rows, m.members());
    m.run(heads() * grid.items(), [&](std::int64_t i) {
      const std::int64_t head = i / grid.items();
      const Packed<T>& w = packed_[static_cast<std::size_t>(head)];
      Rows<T> a{in + head * (back_ ? units_ : width_), step, back_ ? units_ : width_};
      if (back_) {
        a.data += first_ * heads() * units_;
        a.blocks = last_ - first_;
        a.block = heads() * units_;
      }
      grid.item(i % grid.items(), [&](std::int64_t g0, std::int64_t g1, std::int64_t n0,
                                      std::int64_t n1) {
        w.multiply(a, n0, n1, g0, g1,
                   [&](std::int64_t n, int height, const V* sums, std::int64_t q, int width) {
                     for (int v = 0; v < width; ++v) {
                       const Place to = place(head, q + v);
                       for (int j = 0; j < height; ++j) {
                         f(n + j, to.column, sums[j * width + v], to.valid);
                       }
                     }
                   });
      });
    });
  }

 private:
  struct Place {
    std::int64_t column, valid;
  };

  std::int64_t heads() const { return static_cast<std::int64_t>(packed_.size()); }

  const T* row(std::int64_t head, std::int64_t gate, std::int64_t unit) const {
    return w_ + ((head * gates_ + gate) * units_ + unit) * width_;
  }

  Place place(std::int64_t head, std::int64_t q) const {
    if (back_) {
      return {head * width_ + q * kW, std::min(kW, width_ - q * kW)};
    }
    const std::int64_t gate = first_ + q / slices_, unit = q % slices_ * kW;
    return {(gate * heads() + head) * units_ + unit, std::min(kW, units_ - unit)};
  }

  const T* w_ = nullptr;
  std::int64_t gates_ = 1, first_ = 0, last_ = 1, units_ = 0, width_ = 0, slices_ = 0;
  bool back_ = false;
  std::vector<Packed<T>> packed_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

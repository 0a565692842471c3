// Backward's products with weights as torch stores them, for calls that use them once or twice: packing
// writes and reads them again, which costs a single step more than its products with few rows.
//
// A slice of a gate gives the gradients of as many rows of W as a vector has lanes. Of these rows a
// vector of columns stays in registers while all rows of A meet it; so W is read once and in order,
// and what is read again, the gradients and the sums, lies in the caches next to the core.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Adds the terms of kDepth rows of W to the sums [vector][row of A][lane], or starts these with them.
template <class S, class T, int kDepth>
void add_terms(const T* a, std::int64_t a_row, std::int64_t rows, const S* w, std::int64_t w_row,
               std::int64_t columns, T* sums, bool start) {
  constexpr std::int64_t kW = kLanes<T>;
  for (std::int64_t column = 0; column < columns; column += kW) {
    Vec<T> b[kDepth];
#pragma GCC unroll 16
    for (int i = 0; i < kDepth; ++i) {
      b[i] = load(w + i * w_row + column, std::min(kW, columns - column));
    }
    const T* p = a;
    for (std::int64_t m = 0; m < rows; ++m, p += a_row, sums += kW) {
      Vec<T> even = p[0] * b[0], odd{};
#pragma GCC unroll 16
      for (int i = 1; i < kDepth; ++i) {
        (i % 2 == 0 ? even : odd) += p[i] * b[i];
      }
      const Vec<T> sum = even + odd;
      store<T>(sums, start ? sum : load(sums) + sum);
    }
  }
}

// Whether not to pack weights that are used so often, with so many rows in all. Of 16 registers a vector of
// W has few others beside it, for which a row's sums are fetched and put back.
inline bool streams(std::int64_t uses, std::int64_t rows) {
  constexpr std::int64_t kMost = kCutsDepth ? 256 : std::numeric_limits<std::int64_t>::max();
  return uses <= 2 && rows <= kMost;
}

template <class Cell, class S>
class StreamedWeights {
  using T = typename ComputeType<S>::type;
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int G = Cell::kGates, kPre = Cell::kPre;
  static constexpr std::int64_t kMostRows = 128;  // at a time

 public:
  StreamedWeights() = default;
  // W is of `columns` columns.
  StreamedWeights(std::int64_t columns, int members)
      : columns_(columns),
        vectors_(ceil_div(columns, kW)),
        stretch_(std::clamp<std::int64_t>(
            ceil_div(vectors_, 2 * static_cast<std::int64_t>(members)), 4, 16)),
        sums_(members * stretch_ * kMostRows * kW) {}

  bool used() const { return columns_ > 0; }
  std::int64_t width() const { return stretch_; }  // of a group of columns

  Grid grid(std::int64_t rows, int members) const {
    Grid grid(ceil_div(vectors_, stretch_), rows, members);
    grid.column_parts = grid.groups;
    grid.row_parts = ceil_div(std::max<std::int64_t>(rows, 1), kMostRows);
    return grid;
  }

  // f(row, 1, sum, vector, 1) for an item of such a grid. `dgates` [slice][row][kPre][lane], slices
  // `slice_step` apart; W's first gate belongs to pre-activation `first_pre`.
  void multiply(const Team::Member& m, const Shape<Cell, S>& s, const T* dgates,
                std::int64_t slice_step, int first_pre, const void* w, std::int64_t r0,
                std::int64_t r1, std::int64_t g0, std::int64_t g1, TakeTile<T> f) const {
    T* const sums = sums_.get() + m.id() * stretch_ * kMostRows * kW;
    for (std::int64_t g = g0; g < g1 && r0 < r1; ++g) {
      const std::int64_t q0 = g * stretch_, q1 = std::min(q0 + stretch_, vectors_);
      sum_up(s, dgates + r0 * kPre * kW, slice_step, first_pre, w, r1 - r0, q0, q1, sums);
      const T* sum = sums;
      for (std::int64_t q = q0; q < q1; ++q) {
        for (std::int64_t row = r0; row < r1; ++row, sum += kW) {
          const V v = load(sum);
          f(row, 1, &v, q, 1);
        }
      }
    }
  }

 private:
  void sum_up(const Shape<Cell, S>& s, const T* dgates, std::int64_t slice_step, int first_pre,
              const void* w, std::int64_t rows, std::int64_t q0, std::int64_t q1, T* sums) const {
    const std::int64_t first = q0 * kW, columns = std::min(q1 * kW, columns_) - first;
    for (int gate = 0; gate < G; ++gate) {
      for (std::int64_t slice = 0; slice < s.slices; ++slice) {
        const RowBlock<S> block = s.gate_rows(w, columns_, slice * G + gate, first_pre);
        const T* const d = dgates + slice * slice_step + (first_pre + gate) * kW;
        const bool start = gate == 0 && slice == 0;
        if (block.count == kW) {
          add_terms<S, T, kW>(d, kPre * kW, rows, block.first + first, columns_, columns, sums,
                              start);
          continue;
        }
        for (std::int64_t i = 0; i < block.count; ++i) {
          add_terms<S, T, 1>(d + i, kPre * kW, rows, block.first + first + i * columns_, columns_,
                             columns, sums, start && i == 0);
        }
      }
    }
  }

  std::int64_t columns_ = 0, vectors_ = 0, stretch_ = 0;
  Buffer<T> sums_;  // [member][vector of a stretch][row][lane]
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

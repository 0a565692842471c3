// The products with a gate matrix in forward, in the way that pays for a call: packed first, or with the
// weights as they lie.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

enum class Weights {
  kPacked,
  kDots,    // as they lie, row by row
  kTurned,  // as they lie, as A of the product; the other operand is packed
};

// For the rows of W's products, which `steps` make together, a step at a time. Packing W costs about as much
// as its products with some tens of rows; a single row reads W as fast as it lies. What is only there with 16
// registers was measured with them alone.
inline Weights choose_weights(std::int64_t rows, std::int64_t steps, bool converted) {
  constexpr std::int64_t kFew = 8, kSome = 96, kShort = kCutsDepth ? 16 : 0;
  if (rows <= kFew || (rows == steps && steps <= kShort)) {
    return Weights::kDots;
  }
  return !converted && steps == 1 && rows <= kSome ? Weights::kTurned : Weights::kPacked;
}

// The input's product is made of all rows at once, where they are so few.
inline Weights choose_input_weights(std::int64_t rows, std::int64_t steps, bool converted) {
  constexpr std::int64_t kSome = kCutsDepth ? 32 : 0;
  return choose_weights(rows, rows <= kSome ? 1 : steps, converted);
}

// A times the transpose of one gate matrix W, which has `depth` columns. Wherever rows of W are asked
// for, rows(q) gives those of vector q of the result.
template <class S>
class GateProduct {
  using T = typename ComputeType<S>::type;
  static constexpr std::int64_t kW = kLanes<T>;

 public:
  // `width`: vectors of a group; `rows`: the most that A has. `keep`: see scratch_free.
  GateProduct(Weights weights, std::int64_t vectors, std::int64_t depth, int width,
              std::int64_t rows, bool keep = true)
      : weights_(weights),
        depth_(depth),
        width_(width),
        strips_(vectors % width == 0 && width % kBestWidth == 0 && rows > max_rows(width)
                    ? width / kBestWidth
                    : 1),
        w_(vectors, weights == Weights::kPacked ? depth : 0, width / strips_, keep) {
    if (weights == Weights::kTurned) {
      const std::int64_t of_rows = ceil_div(rows, kW);
      turned_ =
          Packed<T>(of_rows, depth, static_cast<int>(std::min<std::int64_t>(of_rows, kBestWidth)));
    }
  }

  std::int64_t groups() const { return ceil_div<std::int64_t>(w_.vectors, width_); }
  int width() const { return width_; }
  int width_of(std::int64_t group) const {
    return static_cast<int>(std::min<std::int64_t>(width_, w_.vectors - group * width_));
  }

  void prepare(std::int64_t group, RowsOf<S> rows) {
    for (int i = 0; weights_ == Weights::kPacked && i < strips_; ++i) {
      pack_rows<S>(w_, depth_, group * strips_ + i, rows);
    }
  }

  // The cut of a product's work; where A is to be turned, that comes first.
  Grid grid(Team::Member& m, const Rows<T>& a, std::int64_t rows) {
    if (weights_ != Weights::kTurned) {
      return Grid(groups(), rows, m.members());
    }
    m.run(ceil_div(rows, turned_.width * kW), [&](std::int64_t group) {
      pack_rows<T>(turned_, a.row, group, [&](std::int64_t q) {
        return RowBlock<T>{a.data + q * kW * a.row, std::clamp<std::int64_t>(rows - q * kW, 0, kW)};
      });
    });
    return Grid(groups(), 1, m.members());
  }

  // An item of such a grid: f as in Packed::multiply.
  void multiply(const Rows<T>& a, std::int64_t rows_of_a, std::int64_t r0, std::int64_t r1,
                std::int64_t g0, std::int64_t g1, RowsOf<S> rows, TakeTile<T> f) const {
    if constexpr (kBestWidth < kMaxWidth) {
      if (weights_ == Weights::kPacked && strips_ > 1) {
        multiply_strips(a, r0, r1, g0, g1, f);
        return;
      }
    }
    if (weights_ == Weights::kPacked) {
      w_.multiply(a, r0, r1, g0, g1, f);
    } else if (weights_ == Weights::kDots) {
      multiply_unpacked<S>(a, depth_, width_, w_.vectors, r0, r1, g0, g1, rows, f);
    } else if constexpr (std::is_same<S, T>::value) {
      multiply_turned(turned_, depth_, width_, w_.vectors, rows_of_a, g0, g1, rows, f);
    }
  }

 private:
  // All gates of a slice are wanted together, and are too many for the registers.
  void multiply_strips(const Rows<T>& a, std::int64_t r0, std::int64_t r1, std::int64_t g0,
                       std::int64_t g1, TakeTile<T> f) const {
    constexpr std::int64_t kRows = 24;  // of some tiles: the strip is in the cache for them
    Vec<T> sums[kRows * kMaxWidth];
    for (std::int64_t g = g0; g < g1; ++g) {
      for (std::int64_t r = r0; r < r1; r += kRows) {
        const std::int64_t end = std::min(r + kRows, r1);
        for (int i = 0; i < strips_; ++i) {
          const std::int64_t strip = g * strips_ + i;
          sum_tiles(a, r, end, w_.group(strip), w_.step_of(strip), w_.width, sums + i * w_.width,
                    width_);
        }
        f(r, static_cast<int>(end - r), sums, g * width_, width_);
      }
    }
  }

  const Weights weights_;
  const std::int64_t depth_;
  const int width_, strips_;  // of a group, as many strips of w_
  Packed<T> w_;
  Packed<T> turned_;  // A
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

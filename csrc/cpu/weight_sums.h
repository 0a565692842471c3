// What the sums of weights' and biases' gradients are made in and of, on vectors and on tiles, and how
// they come to the user.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// A weight gradient in T: the user's tensor itself where that is T's, scratch elsewhere.
template <class S>
struct Gradient {
  using T = typename ComputeType<S>::type;
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

// Rows of vectors `step` apart, added up. Pairwise above kTermsPerFold rows: the rounding error must
// not grow with the batch.
template <class T>
Vec<T> sum_rows(const T* d, std::int64_t step, std::int64_t rows) {
  if (rows > kTermsPerFold) {
    const std::int64_t half = rows / 2;
    return sum_rows(d, step, half) + sum_rows(d + half * step, step, rows - half);
  }
  Vec<T> sum{};
  for (std::int64_t r = 0; r < rows; ++r) {
    sum += load(d + r * step);
  }
  return sum;
}

// Hands the sums over to the user: biases' from `dbias` [slice][kPre][lane].
template <class Cell, class S, class T>
void finish_gradients(Team::Member& m, const BackwardArgs& a, const Shape<Cell, S>& s,
                      const T* dbias, std::initializer_list<const Gradient<S>*> weights) {
  constexpr std::int64_t kW = kLanes<T>;
  constexpr int kPre = Cell::kPre;
  m.run(s.slices, [&](std::int64_t slice) {
    for (int p = 0; p < kPre; ++p) {
      const std::int64_t unit = Cell::order(p) * s.H + slice * kW;
      const Vec<T> db = load(dbias + (slice * kPre + p) * kW);
      if (a.db_ih != nullptr && p < Cell::kGates) {
        store<S>(static_cast<S*>(a.db_ih) + unit, db, s.valid(slice));
      }
      if (a.db_hh != nullptr && p >= Cell::kRecurrent) {
        store<S>(static_cast<S*>(a.db_hh) + unit, db, s.valid(slice));
      }
    }
  });
  if constexpr (!Gradient<S>::kDirect) {
    constexpr std::int64_t kPiece = 16384;
    for (const Gradient<S>* g : weights) {
      m.run(g->user != nullptr ? ceil_div(g->n, kPiece) : 0, [&](std::int64_t i) {
        const std::int64_t end = std::min(g->n, (i + 1) * kPiece);
        for (std::int64_t j = i * kPiece; j < end; ++j) {
          g->user[j] = narrow<S>(g->data()[j]);
        }
      });
    }
  }
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// How a matrix comes into the order in which the tiles of a product read it.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// (a0 b0 a1 b1 ..) of the two vectors' first or second halves.
template <bool kSecond, class V, int... kI>
FUSED_RNN_INLINE V interleave(V a, V b, std::integer_sequence<int, kI...>) {
  constexpr int n = sizeof...(kI), first = kSecond ? n / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + kI / 2 + (kI % 2) * n)...);
#else
  using Indices = typename Lanes<V>::Bits;
  return __builtin_shuffle(a, b, Indices{(first + kI / 2 + (kI % 2) * n)...});
#endif
}

// A block of kLanes x kLanes, transposed by log2(kLanes) rounds of perfect shuffles, all in
// registers.
template <class T, int kRound = 1>
FUSED_RNN_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int n = static_cast<int>(kLanes<T>);
  if constexpr (kRound < n) {
    constexpr std::make_integer_sequence<int, n> lanes{};
    Vec<T> w[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      w[2 * i] = interleave<false>(v[i], v[i + n / 2], lanes);
      w[2 * i + 1] = interleave<true>(v[i], v[i + n / 2], lanes);
    }
    transpose<T, kRound * 2>(w);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      v[i] = w[i];
    }
  }
}

// Vector q of B holds, at depth k, element k of kLanes rows of w; rows(q) points to the first of
// them and says how many there are (the other lanes are zero).
template <class S>
struct RowBlock {
  const S* first;
  std::int64_t count;
};
template <class S>
using RowsOf = FunctionRef<RowBlock<S>(std::int64_t)>;

// One such vector, at all depths.
template <class S, class T>
void pack_block(RowBlock<S> block, std::int64_t stride, std::int64_t depth, T* out,
                std::int64_t step) {
  constexpr std::int64_t kW = kLanes<T>;
  std::int64_t k = 0;
  Vec<T> square[kW];
  if (block.count == kW) {
    for (; k + kW <= depth; k += kW) {
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kW; ++i) {
        square[i] = load<S>(block.first + i * stride + k);
      }
      transpose<T>(square);
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kW; ++i) {
        store<T>(out + (k + i) * step, square[i]);
      }
    }
  }
  for (; k < depth; k += kW) {
    const std::int64_t deep = std::min(kW, depth - k);
    for (std::int64_t i = 0; i < kW; ++i) {
      square[i] = i < block.count ? load<S>(block.first + i * stride + k, deep) : Vec<T>{};
    }
    transpose<T>(square);
    for (std::int64_t i = 0; i < deep; ++i) {
      store<T>(out + (k + i) * step, square[i]);
    }
  }
}

template <class S, class T>
void pack_rows(Packed<T>& b, std::int64_t stride, std::int64_t group, RowsOf<S> rows) {
  for (int v = 0; v < b.width_of(group); ++v) {
    pack_block<S, T>(rows(group * b.width + v), stride, b.depth, b.group(group) + v * kLanes<T>,
                     b.step_of(group));
  }
}

// Vector q of B holds, at depth k, elements q * kLanes .. of row(k) of w (null: zeros); here the
// `width` vectors from `first` on, at depths [begin, end).
template <class S, class T, class F>
void pack_columns(T* out, std::int64_t columns, std::int64_t first, int width, std::int64_t begin,
                  std::int64_t end, F&& row) {
  constexpr std::int64_t kW = kLanes<T>;
  for (std::int64_t k = begin; k < end; ++k) {
    const S* p = row(k);
    for (int v = 0; v < width; ++v, out += kW) {
      const std::int64_t column = (first + v) * kW;
      store<T>(out, p != nullptr ? load<S>(p + column, std::min(kW, columns - column)) : Vec<T>{});
    }
  }
}

template <class S, class T, class F>
void pack_columns(Packed<T>& b, std::int64_t columns, std::int64_t group, F&& row) {
  pack_columns<S>(b.group(group), columns, group * b.width, b.width_of(group), 0, b.depth, row);
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

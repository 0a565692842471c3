// The product with weights as torch stores them, for calls too short to pay for packing (a cell, a
// generated token). A handful of rows of A: dot products along K, the lanes added up at the end.
// Some tens: A is packed instead, so that lanes are rows of A, and the result turned over.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Sums the lanes of kLanes vectors: lane i of the result is the sum of v[i]. Perfect shuffles
// again, with an addition in every round, so that each halves the number of vectors.
template <class T, int kCount>
FUSED_RNN_INLINE Vec<T> sum_lanes(Vec<T> (&v)[kCount]) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    constexpr std::make_integer_sequence<int, static_cast<int>(kLanes<T>)> lanes{};
    Vec<T> w[kCount / 2];
#pragma GCC unroll 16
    for (int i = 0; i < kCount / 2; ++i) {
      w[i] = interleave<false>(v[i], v[i + kCount / 2], lanes) +
             interleave<true>(v[i], v[i + kCount / 2], lanes);
    }
    return sum_lanes<T>(w);
  }
}

// kHeight rows of A times kLanes rows of W, kLanes / kStrips of them at a time, as many sums as
// registers hold. out[m * out_step] is row m's vector.
template <class S, class T, int kHeight>
void dot_kernel(const T* a, std::int64_t a_row, std::int64_t depth, RowBlock<S> w,
                std::int64_t w_row, Vec<T>* out, std::int64_t out_step) {
  constexpr std::int64_t kW = kLanes<T>;
  constexpr int kStrip = static_cast<int>(kHeight == 1 ? kW : kW / 2);
  Vec<T> sums[kHeight][kW];
  for (int first = 0; first < kW; first += kStrip) {
    Vec<T> strip[kHeight][kStrip] = {};
    const S* rows[kStrip];
    for (int i = 0; i < kStrip; ++i) {
      // Rows past the last repeat it: their lanes belong to no hidden unit.
      rows[i] = w.first + std::min<std::int64_t>(first + i, w.count - 1) * w_row;
    }
    const auto add = [&](std::int64_t k, std::int64_t deep) {
      Vec<T> av[kHeight];
#pragma GCC unroll 4
      for (int m = 0; m < kHeight; ++m) {
        av[m] = load(a + m * a_row + k, deep);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kStrip; ++i) {
        const Vec<T> wv = load<S>(rows[i] + k, deep);
#pragma GCC unroll 4
        for (int m = 0; m < kHeight; ++m) {
          strip[m][i] += av[m] * wv;
        }
      }
    };
    std::int64_t k = 0;
    for (; k + kW <= depth; k += kW) {
      add(k, kW);
    }
    if (k < depth) {
      add(k, depth - k);
    }
    for (int m = 0; m < kHeight; ++m) {
      for (int i = 0; i < kStrip; ++i) {
        sums[m][first + i] = strip[m][i];
      }
    }
  }
  for (int m = 0; m < kHeight; ++m) {
    out[m * out_step] = sum_lanes<T>(sums[m]);
  }
}

// As Packed::multiply, for `width` vectors a group: rows(q) are the rows of W behind vector q.
template <class S, class T>
void multiply_unpacked(const Rows<T>& a, std::int64_t w_row, int width, std::int64_t vectors,
                       std::int64_t begin, std::int64_t end, std::int64_t first_group,
                       std::int64_t last_group, RowsOf<S> rows, TakeTile<T> f) {
  constexpr int kHeight = FUSED_RNN_VECTOR_REGISTERS >= 32 ? 3 : 2;
  for (std::int64_t g = first_group; g < last_group; ++g) {
    const std::int64_t q = g * width;
    const int w = static_cast<int>(std::min<std::int64_t>(width, vectors - q));
    for (std::int64_t m = begin; m < end;) {
      const int height = end - m >= kHeight ? kHeight : 1;
      Vec<T> sums[kHeight * kMaxWidth];
      for (int v = 0; v < w; ++v) {
        const T* p = a.data + m * a.row;
        if (height == 1) {
          dot_kernel<S, T, 1>(p, a.row, a.length, rows(q + v), w_row, sums + v, w);
        } else {
          dot_kernel<S, T, kHeight>(p, a.row, a.length, rows(q + v), w_row, sums + v, w);
        }
      }
      f(m, height, sums, q, w);
      m += height;
    }
  }
}

// As multiply_unpacked, with `rows_of_a` rows of A, packed row by row (pack_rows).
template <class T>
void multiply_turned(const Packed<T>& a, std::int64_t w_row, int width, std::int64_t vectors,
                     std::int64_t rows_of_a, std::int64_t first_group, std::int64_t last_group,
                     RowsOf<T> rows, TakeTile<T> f) {
  constexpr std::int64_t kW = kLanes<T>;
  Vec<T> turned[kMaxWidth * kW * kMaxWidth];  // [row of A][vector of the group]
  for (std::int64_t g = first_group; g < last_group; ++g) {
    const std::int64_t q = g * width;
    const int w = static_cast<int>(std::min<std::int64_t>(width, vectors - q));
    for (std::int64_t ag = 0; ag * a.width * kW < rows_of_a; ++ag) {
      const int a_width = a.width_of(ag);
      for (int v = 0; v < w; ++v) {
        const RowBlock<T> block = rows(q + v);
        Vec<T> square[kMaxWidth][kW] = {};
        for_tiles(Rows<T>{block.first, w_row, a.depth}, 0, block.count, a.group(ag), a.step_of(ag),
                  a_width, [&](std::int64_t unit, int height, const Vec<T>* sums) {
                    for (int j = 0; j < height; ++j) {
                      for (int av = 0; av < a_width; ++av) {
                        square[av][unit + j] = sums[j * a_width + av];
                      }
                    }
                  });
        for (int av = 0; av < a_width; ++av) {
          transpose<T>(square[av]);
          for (std::int64_t j = 0; j < kW; ++j) {
            turned[(av * kW + j) * w + v] = square[av][j];
          }
        }
      }
      const std::int64_t first = ag * a.width * kW,
                         count = std::min(a_width * kW, rows_of_a - first);
      f(first, static_cast<int>(count), turned, q, w);
    }
  }
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

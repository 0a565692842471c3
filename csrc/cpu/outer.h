// The products whose terms are a chunk's rows: gradients of weights.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// p[j] (+)= sum over rows r of d[r * d_step] * b[r * b_step + j], for kWidth vectors of `valid` values.
template <int kWidth, class T>
FUSED_RNN_INLINE void few_terms(std::int64_t rows, const T* d, std::int64_t d_step, const T* b,
                                std::int64_t b_step, T* p, std::int64_t valid, bool add) {
  constexpr std::int64_t kW = kLanes<T>;
  RowSums<T, kWidth> sums{};
  for (std::int64_t r = 0; r < rows; ++r, d += d_step, b += b_step) {
    Vec<T> bv[kWidth];
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) {
      bv[v] = load(b + v * kW);
    }
    sums.add(*d, bv);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kWidth; ++v, p += kW) {
    store<T>(p, add ? load(p, valid) + sums.v[v] : sums.v[v], valid);
  }
}

// As outer below, a unit after the other: a tile of so few terms takes longer to be begun and handed over
// than to be summed up.
template <class T>
void outer_of_few(std::int64_t rows, const T* d, std::int64_t d_step, std::int64_t units,
                  const Packed<T>& in, std::int64_t columns, FunctionRef<T*(std::int64_t)> out_row,
                  bool add) {
  constexpr std::int64_t kW = kLanes<T>;
  for (std::int64_t u = 0; u < units; ++u, ++d) {
    T* const out = out_row(u);
    for (std::int64_t g = 0; g < in.groups() && out != nullptr; ++g) {
      const std::int64_t first = g * in.width * kW, width = in.width_of(g);
      const std::int64_t step = in.step_of(g);
      if (width == kBestWidth && first + width * kW <= columns) {
        few_terms<kBestWidth>(rows, d, d_step, in.group(g), step, out + first, kW, add);
        continue;
      }
      for (std::int64_t v = 0; v < width; ++v) {
        const std::int64_t column = first + v * kW;
        few_terms<1>(rows, d, d_step, in.group(g) + v * kW, step, out + column,
                     std::min(kW, columns - column), add);
      }
    }
  }
}

// out_row(u)[j] (+)= sum over rows r of d[r * d_step + u] * in[r][j]; u < units, j < columns. Units whose
// row is null are padding.
template <class T>
void outer(std::int64_t rows, const T* d, std::int64_t d_step, std::int64_t units,
           const Packed<T>& in, std::int64_t columns, FunctionRef<T*(std::int64_t)> out_row,
           bool add) {
  constexpr std::int64_t kW = kLanes<T>;
  constexpr std::int64_t kFew = 8;
  if (rows <= kFew) {
    outer_of_few(rows, d, d_step, units, in, columns, out_row, add);
    return;
  }
  Rows<T> a{d, 1, rows};
  a.step = d_step;
  in.multiply(
      a, 0, units, 0, in.groups(),
      [&](std::int64_t u, int height, const Vec<T>* sums, std::int64_t q, int width) {
        for (int j = 0; j < height; ++j) {
          T* const out = out_row(u + j);
          for (int v = 0; v < width && out != nullptr; ++v) {
            const std::int64_t column = (q + v) * kW, valid = std::min(kW, columns - column);
            T* p = out + column;
            store<T>(p, add ? load(p, valid) + sums[j * width + v] : sums[j * width + v], valid);
          }
        }
      });
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// The matrix products, with packed weights.
//
// Every product here has the form out[m][q] += sum_k A[m][k] * B[k][q], q a vector of output columns, and is
// made a tile (tile.h) after the other.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Cuts `rows` into tiles of nearly equal height and calls f(first row, rows, the tile's sums).
template <class T>
void for_tiles(const Rows<T>& a, std::int64_t begin, std::int64_t end, const T* b,
               std::int64_t b_step, int width,
               FunctionRef<void(std::int64_t, int, const Vec<T>*)> f) {
  const std::int64_t rows = end - begin;
  const std::int64_t tiles = ceil_div<std::int64_t>(rows, max_rows(width));
  Vec<T> sums[8 * kMaxWidth];
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t first = begin + rows * i / tiles, last = begin + rows * (i + 1) / tiles;
    const int height = static_cast<int>(last - first);
    tile_for<T>(height, width)(a.from(first), b, b_step, sums, width, true);
    f(first, height, sums);
  }
}

// The same, into `sums` for all of the rows, or added to them.
template <class T>
void sum_tiles(const Rows<T>& a, std::int64_t begin, std::int64_t end, const T* b,
               std::int64_t b_step, int width, Vec<T>* sums, std::int64_t out_step,
               bool start = true) {
  const std::int64_t rows = end - begin, tiles = ceil_div<std::int64_t>(rows, max_rows(width));
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t first = rows * i / tiles, last = rows * (i + 1) / tiles;
    tile_for<T>(static_cast<int>(last - first), width)(a.from(begin + first), b, b_step,
                                                       sums + first * out_step, out_step, start);
  }
}

// What takes a tile of a product: (first row, rows, sums, first vector, vectors).
template <class T>
using TakeTile = FunctionRef<void(std::int64_t, int, const Vec<T>*, std::int64_t, int)>;

// B, cut into groups of `width` vectors that a tile takes together: [group][k][vector of the
// group].
template <class T>
struct Packed {
  Buffer<T> data;
  std::int64_t vectors = 0, depth = 0;
  int width = 1;

  Packed() = default;
  Packed(std::int64_t vectors_, std::int64_t depth_, int width_, bool keep = true)
      : data(vectors_ * depth_ * kLanes<T>, keep),
        vectors(vectors_),
        depth(depth_),
        width(width_) {}

  std::int64_t groups() const { return ceil_div<std::int64_t>(vectors, width); }
  int width_of(std::int64_t group) const {
    return static_cast<int>(std::min<std::int64_t>(width, vectors - group * width));
  }
  std::int64_t step_of(std::int64_t group) const { return width_of(group) * kLanes<T>; }
  T* group(std::int64_t g) const { return data.get() + g * width * depth * kLanes<T>; }

  // f for the groups' tiles over rows [begin, end).
  void multiply(const Rows<T>& a, std::int64_t begin, std::int64_t end, std::int64_t first_group,
                std::int64_t last_group, TakeTile<T> f) const {
    if constexpr (kCutsDepth) {
      if (end - begin > max_rows(width)) {
        multiply_pieces(a, begin, end, first_group, last_group, f);
        return;
      }
    }
    for (std::int64_t g = first_group; g < last_group; ++g) {
      const int w = width_of(g);
      for_tiles(a, begin, end, group(g), step_of(g), w,
                [&](std::int64_t first, int height, const Vec<T>* sums) {
                  f(first, height, sums, g * width, w);
                });
    }
  }

 private:
  // A piece of A, of some tiles' rows, is in the second-level cache for some groups, and a group's piece of
  // B in the first for these tiles.
  void multiply_pieces(const Rows<T>& a, std::int64_t begin, std::int64_t end,
                       std::int64_t first_group, std::int64_t last_group, TakeTile<T> f) const {
    constexpr std::int64_t kRows = 48, kGroups = 4;
    Vec<T> sums[kGroups * kRows * kMaxWidth];
    const std::int64_t of_group = kRows * width;
    const std::int64_t parts = ceil_div(end - begin, kRows);
    for (std::int64_t g0 = first_group; g0 < last_group; g0 += kGroups) {
      const std::int64_t g1 = std::min(g0 + kGroups, last_group);
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t first = begin + (end - begin) * part / parts;
        const std::int64_t last = begin + (end - begin) * (part + 1) / parts;
        a.for_pieces([&](const Rows<T>& piece, std::int64_t k) {
          for (std::int64_t g = g0; g < g1; ++g) {
            sum_tiles(piece, first, last, group(g) + k * step_of(g), step_of(g), width_of(g),
                      sums + (g - g0) * of_group, width_of(g), k == 0);
          }
        });
        for (std::int64_t g = g0; g < g1; ++g) {
          f(first, static_cast<int>(last - first), sums + (g - g0) * of_group, g * width,
            width_of(g));
        }
      }
    }
  }
};

// A width at which every member has a group, if narrow tiles can give it that.
template <class T>
int balanced_width(std::int64_t vectors, std::int64_t rows, int members) {
  // Of a row or two the sums of a wide tile are not too many, and those of a narrow one too few.
  int width = rows <= max_rows(kMaxWidth) ? kMaxWidth : kBestWidth;
  while (width > 1 && vectors < static_cast<std::int64_t>(width) * members && rows < 4 * members) {
    width /= 2;
  }
  return width;
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

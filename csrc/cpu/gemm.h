// The matrix products: packed weights, and one register tile of rows x vectors.
//
// Every product here has the form out[m][q] += sum_k A[m][k] * B[k][q], q a vector of output
// columns. A tile is up to kMaxRows rows by 1..4 vectors; its sums stay in registers over the whole
// of K and pass once through a tile-sized buffer in L1 to the caller's arithmetic (the sums fill
// the register file: the gates' temporaries would push them there anyway).
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

constexpr int kMaxWidth = 4;

// Vectors of a group where any number will do. Of 16 registers four leave room for two rows: B comes from
// the second-level cache for each two, which then is the limit, and the sums are too few to hide what an
// addition takes. Two leave room for six.
constexpr int kBestWidth = FUSED_RNN_VECTOR_REGISTERS >= 32 ? 4 : 2;

// Rows of A for a tile of `width` vectors: as many sums as registers hold beside B and one of A.
constexpr int max_rows(int width) {
  const int rows = (FUSED_RNN_VECTOR_REGISTERS - width - 1) / width;
  return rows < 8 ? rows : 8;
}

// A[m][k] at data + m * row + (k / length) * block + (k % length) * step, k < length * blocks.
template <class T>
struct Rows {
  const T* data;
  std::int64_t row, length;
  std::int64_t step = 1, blocks = 1, block = 0;

  Rows from(std::int64_t m) const {
    Rows r = *this;
    r.data += m * row;
    return r;
  }
  // The terms of at most `n` blocks from block `first` on.
  Rows blocks_from(std::int64_t first, std::int64_t n) const {
    Rows r = *this;
    r.data += first * block;
    r.blocks = std::min(n, blocks - first);
    return r;
  }
};

// Unrolled by hand: left to loops over an array, GCC keeps a copy of the sums on the stack.
template <class T, int kWidth>
struct RowSums {
  Vec<T> v[kWidth];

  FUSED_RNN_INLINE void add(T a, const Vec<T> (&b)[kWidth]) {
    const Vec<T> av = a - Vec<T>{};
    v[0] += av * b[0];
    if constexpr (kWidth > 1) v[1] += av * b[1];
    if constexpr (kWidth > 2) v[2] += av * b[2];
    if constexpr (kWidth > 3) v[3] += av * b[3];
  }

  // Adds the sums to `out`, or starts it with them, and begins again at zero.
  FUSED_RNN_INLINE void fold(Vec<T>* out, bool start) {
    out[0] = start ? v[0] : out[0] + v[0];
    if constexpr (kWidth > 1) out[1] = start ? v[1] : out[1] + v[1];
    if constexpr (kWidth > 2) out[2] = start ? v[2] : out[2] + v[2];
    if constexpr (kWidth > 3) out[3] = start ? v[3] : out[3] + v[3];
    *this = {};
  }
};

// The rounding error of a running sum grows with its length; sums of pieces of about this many
// terms, added up, keep it near that of a blocked product, and cost a tile's worth of additions
// each.
constexpr std::int64_t kTermsPerFold = 128;

// The sums of a row of A stand out_step vectors after those of the one before.
template <class T, int kRows, int kWidth>
void tile_kernel(const Rows<T>& a, const T* b, std::int64_t b_step, Vec<T>* out,
                 std::int64_t out_step) {
  RowSums<T, kWidth> s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
  const std::int64_t row = a.row, step = a.step;
  bool start = true;
  std::int64_t terms = 0;
  for (std::int64_t i = 0; i < a.blocks; ++i) {
    const T* p = a.data + i * a.block;
    for (std::int64_t k = 0; k < a.length;) {
      const std::int64_t piece = std::min(a.length - k, kTermsPerFold);
      for (const T* const end = p + piece * step; p != end; p += step, b += b_step) {
        Vec<T> bv[kWidth];
        std::memcpy(&bv[0], b, sizeof(Vec<T>));
        if constexpr (kWidth > 1) std::memcpy(&bv[1], b + kLanes<T>, sizeof(Vec<T>));
        if constexpr (kWidth > 2) std::memcpy(&bv[2], b + 2 * kLanes<T>, sizeof(Vec<T>));
        if constexpr (kWidth > 3) std::memcpy(&bv[3], b + 3 * kLanes<T>, sizeof(Vec<T>));
        s0.add(p[0], bv);
        if constexpr (kRows > 1) s1.add(p[row], bv);
        if constexpr (kRows > 2) s2.add(p[2 * row], bv);
        if constexpr (kRows > 3) s3.add(p[3 * row], bv);
        if constexpr (kRows > 4) s4.add(p[4 * row], bv);
        if constexpr (kRows > 5) s5.add(p[5 * row], bv);
        if constexpr (kRows > 6) s6.add(p[6 * row], bv);
        if constexpr (kRows > 7) s7.add(p[7 * row], bv);
      }
      k += piece;
      terms += piece;
      const bool last = i + 1 == a.blocks && k == a.length;
      if (last || terms >= kTermsPerFold) {
        s0.fold(out, start);
        if constexpr (kRows > 1) s1.fold(out + out_step, start);
        if constexpr (kRows > 2) s2.fold(out + 2 * out_step, start);
        if constexpr (kRows > 3) s3.fold(out + 3 * out_step, start);
        if constexpr (kRows > 4) s4.fold(out + 4 * out_step, start);
        if constexpr (kRows > 5) s5.fold(out + 5 * out_step, start);
        if constexpr (kRows > 6) s6.fold(out + 6 * out_step, start);
        if constexpr (kRows > 7) s7.fold(out + 7 * out_step, start);
        start = false;
        terms = 0;
      }
    }
  }
}

template <class T>
using TileKernel = void (*)(const Rows<T>&, const T*, std::int64_t, Vec<T>*, std::int64_t);

template <class T, int kWidth, int... kRows>
constexpr TileKernel<T> pick(int rows, std::integer_sequence<int, kRows...>) {
  constexpr TileKernel<T> kTable[] = {tile_kernel<T, kRows + 1, kWidth>...};
  return kTable[rows - 1];
}

template <class T>
FUSED_RNN_INLINE TileKernel<T> tile_for(int rows, int width) {
  switch (width) {
    case 1:
      return pick<T, 1>(rows, std::make_integer_sequence<int, max_rows(1)>());
    case 2:
      return pick<T, 2>(rows, std::make_integer_sequence<int, max_rows(2)>());
    case 3:
      return pick<T, 3>(rows, std::make_integer_sequence<int, max_rows(3)>());
    default:
      return pick<T, 4>(rows, std::make_integer_sequence<int, max_rows(4)>());
  }
}

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
    tile_for<T>(height, width)(a.from(first), b, b_step, sums, width);
    f(first, height, sums);
  }
}

// The same, into `sums` for all of the rows.
template <class T>
void sum_tiles(const Rows<T>& a, std::int64_t begin, std::int64_t end, const T* b,
               std::int64_t b_step, int width, Vec<T>* sums, std::int64_t out_step) {
  const std::int64_t rows = end - begin, tiles = ceil_div<std::int64_t>(rows, max_rows(width));
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t first = rows * i / tiles, last = rows * (i + 1) / tiles;
    tile_for<T>(static_cast<int>(last - first), width)(a.from(begin + first), b, b_step,
                                                       sums + first * out_step, out_step);
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
    for (std::int64_t g = first_group; g < last_group; ++g) {
      const int w = width_of(g);
      for_tiles(a, begin, end, group(g), step_of(g), w,
                [&](std::int64_t first, int height, const Vec<T>* sums) {
                  f(first, height, sums, g * width, w);
                });
    }
  }
};

// A width at which every member has a group, if narrow tiles can give it that.
template <class T>
int balanced_width(std::int64_t vectors, std::int64_t rows, int members) {
  int width = kBestWidth;
  while (width > 1 && vectors < static_cast<std::int64_t>(width) * members && rows < 4 * members) {
    width /= 2;
  }
  return width;
}

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

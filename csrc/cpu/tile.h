// One register tile of a product, rows x vectors: out[m][q] += sum_k A[m][k] * B[k][q].
//
// A tile is up to 8 rows by 1..4 vectors; its sums stay in registers over the whole of K and pass once through
// a tile-sized buffer in L1 to the caller's arithmetic (the sums fill the register file: the gates'
// temporaries would push them there anyway).
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

// The rounding error of a running sum grows with its length; sums of pieces of about this many
// terms, added up, keep it near that of a blocked product, and cost a tile's worth of additions
// each.
constexpr std::int64_t kTermsPerFold = 128;

// Of 16 registers the rows of several tiles are summed up together, a piece of K after the other: what a tile
// reads of A and B in a cycle is more than a cache far from the core gives. Of 32 it asks for less.
constexpr bool kCutsDepth = FUSED_RNN_VECTOR_REGISTERS < 32;
constexpr std::int64_t kFoldsPerPiece = 3;

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
  // f(these terms, first one) for pieces of K. They end where a tile would add up its sums anyway, for blocks
  // of no more terms than it adds up at once: so rows have the same bits however a team cuts them.
  template <class F>
  FUSED_RNN_INLINE void for_pieces(F&& f) const {
    if (blocks > 1) {
      const std::int64_t n = kFoldsPerPiece * ceil_div(kTermsPerFold, length);
      for (std::int64_t i = 0; i < blocks; i += n) {
        f(blocks_from(i, n), i * length);
      }
      return;
    }
    Rows r = *this;
    for (std::int64_t k = 0; k < length; k += r.length, r.data += r.length * step) {
      r.length = std::min(kFoldsPerPiece * kTermsPerFold, length - k);
      f(r, k);
    }
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

// Adds to the sums in `out`, or starts them; those of a row of A stand out_step vectors after those of the
// one before.
template <class T, int kRows, int kWidth>
void tile_kernel(const Rows<T>& a, const T* b, std::int64_t b_step, Vec<T>* out,
                 std::int64_t out_step, bool start) {
  RowSums<T, kWidth> s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
  const std::int64_t row = a.row, step = a.step;
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
using TileKernel = void (*)(const Rows<T>&, const T*, std::int64_t, Vec<T>*, std::int64_t, bool);

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

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// Matrices as tiles of bfloat16.
//
// A float is the exact sum of three bfloat16 pieces, each what truncation leaves of it (rounding
// would overflow near the largest floats). The six products of pieces whose weights reach 2^-16
// make a float's product as exact as fused multiplications do. A bfloat16 is its own only piece.
//
// As A, a tile is 16 rows by 32 elements of depth; as B, 16 pairs of depths by 16 columns, the pair
// side by side. A block of 32 depths is the pieces' tiles one after the other.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

using Piece = std::uint16_t;

constexpr std::int64_t kTileRows = 16, kTileDepth = 32, kTileSize = kTileRows * kTileDepth;
static_assert(kLanes<float> == kTileRows, "a register is a row of a tile of sums");

template <class S>
constexpr int kPieces = std::is_same<S, float>::value ? 3 : 1;

constexpr std::int64_t depth_blocks(std::int64_t depth) { return ceil_div(depth, kTileDepth); }

// Takes the upper half off v and returns it, in place.
FUSED_RNN_INLINE FloatBits take_piece(Vec<float>& v) {
  const FloatBits bits = same_bits<FloatBits>(v) & 0xffff0000u;
  v -= same_bits<Vec<float>>(bits);
  return bits;
}

// Whether the products of pieces are those of the numbers, for every lane's numbers together. Not
// where an infinity is among them (its pieces are inf, NaN, NaN; a NaN's are NaN, which is right), nor
// where all are so small that products of pieces with others' of that size would vanish: tiles count
// denormal numbers as zeros.
template <class S>
class Carried {
 public:
  FUSED_RNN_INLINE void add(Vec<float> v) {
    const FloatBits bits = same_bits<FloatBits>(v) & 0x7fffffffu;
    largest_ = bits > largest_ ? bits : largest_;
    if constexpr (kPieces<S> > 1) {
      infinite_ |= same_bits<FloatBits>(bits == kInfinity);
    }
  }
  bool each_lane() const {
    bool all = true;
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      all = all && infinite_[i] == 0 && (largest_[i] == 0 || largest_[i] >= kSmallest);
    }
    return all;
  }
  bool all_lanes() const { return finite() && (largest() == 0 || largest() >= kSmallest); }

  // Of bfloat16, infinities are carried too.
  bool finite() const {
    bool all = true;
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      all = all && infinite_[i] == 0;
    }
    return all;
  }

  std::uint32_t largest() const {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      largest = std::max<std::uint32_t>(largest, largest_[i]);
    }
    return largest;
  }

 private:
  static constexpr std::uint32_t kInfinity = 0x7f800000u, kSmallest = 0x28000000u;  // 2^-47
  FloatBits largest_{}, infinite_{};
};

// 16 elements of one row of A: a row's part of each piece's tile.
template <class S>
FUSED_RNN_INLINE void put_row(Vec<float> v, Piece* out) {
  for (int p = 0; p < kPieces<S>; ++p) {
    const Halves h = upper_halves(take_piece(v));
    std::memcpy(out + p * kTileSize, &h, sizeof(h));
  }
}

// A row of A, whose first block's part is at `out`, zeros after its end.
template <class S>
bool pack_row(const S* row, std::int64_t depth, Piece* out) {
  constexpr std::int64_t kW = kTileRows, kBlock = kPieces<S> * kTileSize;
  Carried<S> carried;
  for (std::int64_t k = 0; k < depth_blocks(depth) * kTileDepth; k += kW) {
    const std::int64_t valid = std::clamp<std::int64_t>(depth - k, 0, kW);
    const Vec<float> v = load(row + k, valid);
    carried.add(v);
    put_row<S>(v, out + k / kTileDepth * kBlock + k % kTileDepth);
  }
  return carried.all_lanes();
}

// Two depths of 16 columns: a row of each piece's tile of B. Or 16 pairs of depths of a row of A.
template <class S>
FUSED_RNN_INLINE void put_pair(Vec<float> first, Vec<float> second, Piece* out,
                               std::int64_t piece = kTileSize) {
  for (int p = 0; p < kPieces<S>; ++p) {
    const FloatBits pair = (take_piece(first) >> 16) | take_piece(second);
    std::memcpy(out + p * piece, &pair, sizeof(pair));
  }
}

// The same as floats, to be cut into pieces later (cut.h).
FUSED_RNN_INLINE void put_floats(Vec<float> first, Vec<float> second, Piece* out) {
  std::memcpy(out, &first, sizeof(first));
  std::memcpy(out + kTileDepth, &second, sizeof(second));
}

// Up to 16 rows of w as the columns of B: block k at tile(k), as pieces or as floats.
template <class S, class F>
bool pack_columns_of_b(RowBlock<S> w, std::int64_t stride, std::int64_t depth, bool floats,
                       F&& tile) {
  constexpr std::int64_t kW = kTileRows;
  Carried<S> carried;
  for (std::int64_t block = 0; block < depth_blocks(depth); ++block) {
    Piece* const out = tile(block);
    for (std::int64_t half = 0; half < 2; ++half) {
      const std::int64_t k = block * kTileDepth + half * kW;
      const std::int64_t deep = std::clamp<std::int64_t>(depth - k, 0, kW);
      Vec<float> square[kW];
      for (std::int64_t i = 0; i < kW; ++i) {
        square[i] = i < w.count && deep > 0 ? load(w.first + i * stride + k, deep) : Vec<float>{};
      }
      transpose<float>(square);
      for (std::int64_t i = 0; i < kW; i += 2) {
        carried.add(square[i]);
        carried.add(square[i + 1]);
        const std::int64_t pair = (half * kW + i) / 2;
        if (floats) {
          put_floats(square[i], square[i + 1], out + pair * 2 * kTileDepth);
        } else {
          put_pair<S>(square[i], square[i + 1], out + pair * kTileDepth);
        }
      }
    }
  }
  return carried.each_lane();
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

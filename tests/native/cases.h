// The problems that the sanitized program solves: sizes, and operands drawn for them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "naive.h"

namespace fused_rnn::bench {

struct Sizes {
  std::int64_t T, N, I, H;
  bool bias = true;
  std::vector<std::int64_t> batch_sizes = {};  // empty: N at every step
};

inline std::vector<std::int64_t> falling(std::int64_t from, std::int64_t by) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t n = from; n > 0; n -= by) {
    sizes.push_back(n);
  }
  return sizes;
}

// Odd on purpose; what each is to reach stands beside it.
inline std::vector<Sizes> all_sizes() {
  return {
      {1, 1, 1, 1},
      {1, 4, 3, 8},  // few rows: dot products
      {2, 4, 19, 9, false},
      {1, 9, 5, 18},  // one step: the turned product
      {1, 90, 21, 37, false},
      {5, 3, 7, 17},  // packed weights
      {3, 13, 4, 24, false},
      {4, 6, 16, 32},  // whole vectors only
      {2, 6, 150, 5},  // long sums
      {2, 5, 3, 133},
      {40, 1, 5, 100},  // few rows in a step, many in a chunk
      {20, 2, 5, 44},
      {40, 10, 3, 5},     // more than one chunk
      {2, 400, 2, 3},     // a step larger than a chunk
      {2, 260, 1030, 3},  // bands
      {3, 1030, 1030, 3, false, {1030, 530, 30}},
      {1, 140, 5, 18},  // weights as they lie, in blocks of rows
      {5, 5, 7, 17, true, {5, 3, 3, 1, 1}},
      {2, 4, 2, 9, false, {4, 4}},
      {30, 3, 2, 3, true, {3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                           1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
      {33, 33, 3, 20, true, falling(33, 1)},  // chunks of different batches
  };
}

// With work for several threads.
inline std::vector<Sizes> team_sizes() {
  return {
      {3, 60, 5, 33}, {3, 9, 7, 90, false}, {8, 40, 9, 40, true, falling(40, 5)}, {2, 5, 700, 395}};
}

// Takes more time than all others together, for one more way to cut a product: it is run once.
inline bool is_large(const Sizes& sizes) { return sizes.I * sizes.H > 100000; }
// Takes most of the rest, to be cut into chunks, which knows no element type.
inline bool is_cut(const Sizes& sizes) { return sizes.T * sizes.N > 300; }
// Takes most of what is left then, to be cut into bands: with a state beside h, and with none.
inline bool is_banded(const Sizes& sizes) { return sizes.N > 256 && sizes.I > 1000; }

struct Variant {
  const char* name;
  CellKind cell;
  bool projected;
};

constexpr Variant kVariants[] = {{"lstm", CellKind::kLstm, false},
                                 {"lstm-projected", CellKind::kLstm, true},
                                 {"gru", CellKind::kGru, false},
                                 {"rnn_tanh", CellKind::kRnnTanh, false},
                                 {"rnn_relu", CellKind::kRnnRelu, false}};

// A ReLU lets h grow from step to step, past what float16 holds.
inline bool outgrows_half(const Variant& variant, const Sizes& sizes) {
  return variant.cell == CellKind::kRnnRelu && sizes.T * sizes.H > 700;
}

class Draw {
 public:
  explicit Draw(double (*round)(double)) : round_(round) {}

  // n numbers in [low, high), as the type under test holds them.
  Numbers operator()(std::int64_t n, double low, double high) {
    Numbers v(static_cast<std::size_t>(n));
    for (double& d : v) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      d = round_(low + (high - low) * static_cast<double>(state_ >> 11) / 9007199254740992.0);
    }
    return v;
  }

 private:
  double (*round_)(double);
  std::uint64_t state_ = 1;
};

inline Operands draw_operands(const Variant& variant, const Sizes& s, bool reverse,
                              double (*round)(double)) {
  Operands o{};
  o.cell = variant.cell, o.reverse = reverse;
  o.T = s.T, o.N = s.N, o.I = s.I, o.H = s.H, o.P = variant.projected ? (s.H + 1) / 2 : 0;
  o.ragged = !s.batch_sizes.empty();
  o.batch_sizes =
      o.ragged ? s.batch_sizes : std::vector<std::int64_t>(static_cast<std::size_t>(s.T), s.N);
  std::int64_t rows = 0;
  for (const std::int64_t b : o.batch_sizes) {
    rows += b;
  }
  // A ReLU's gradient jumps at zero, where rounding decides: keep off it.
  const bool relu = o.cell == CellKind::kRnnRelu;
  const double scale = 1 / std::sqrt(static_cast<double>(s.H)), low = relu ? 0 : -scale;
  const std::int64_t GH = o.G() * o.H, R = o.R();
  Draw draw(round);
  o.x = draw(rows * s.I, relu ? 0.1 : -1.5, 1.5);
  o.h0 = draw(s.N * R, relu ? 0 : -1, 1);
  if (o.cell == CellKind::kLstm) {
    o.c0 = draw(s.N * s.H, -1, 1);
    o.dc_n = draw(s.N * s.H, -1, 1);
  }
  // Of wide inputs too the pre-activations stay near one, with which float32's rounding grows.
  const double of_x = s.I > 1000 ? 1 / std::sqrt(static_cast<double>(s.I)) : scale;
  o.w_ih = draw(GH * s.I, relu ? 0 : -of_x, of_x),
  o.w_hh = draw(GH * R, low, scale / (relu ? 2 : 1));
  if (s.bias) {
    o.b_ih = draw(GH, low, scale), o.b_hh = draw(GH, low, scale);
  }
  o.w_hr = draw(o.P * s.H, -scale, scale);
  o.dy = draw(rows * R, -1, 1), o.dh_n = draw(s.N * R, -1, 1);
  return o;
}

}  // namespace fused_rnn::bench

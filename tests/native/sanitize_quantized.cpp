// The kernels of int8 and bfloat16 weights without Python and PyTorch, for a build with sanitizers: arrays of
// exactly the sizes that quantized.h names, steps against plain loops, a sequence against its steps, and
// threads against one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "../../csrc/quantized.h"
#include "parallels.h"
#include "plain_arrays.h"
#include "switched_scratch.h"

namespace fused_rnn {

#define FUSED_RNN_DECLARE(level)                                      \
  namespace quantized_##level {                                       \
    extern const cpu::QuantizedLevel kInt8;                           \
    extern const cpu::QuantizedLevel kBFloat16 __attribute__((weak)); \
  }
FUSED_RNN_BENCH_LEVELS(FUSED_RNN_DECLARE)
#undef FUSED_RNN_DECLARE

namespace bench {
namespace {

struct Named {
  const char* name;
  const cpu::QuantizedLevel *int8, *bfloat16;  // null: it is another level's
};
const Named kLevels[] = {
#define FUSED_RNN_ROW(level) {#level, &quantized_##level::kInt8, &quantized_##level::kBFloat16},
    FUSED_RNN_BENCH_LEVELS(FUSED_RNN_ROW)
#undef FUSED_RNN_ROW
};

enum class Scheme { kInt8, kNarrow, kBFloat16 };  // kNarrow: w_ih bfloat16 beside int8
constexpr const char* kSchemes[] = {"int8", "int8 with a narrow input", "bfloat16"};

// A weight (rows, columns) in one of the types, and what it stands for.
struct Matrix {
  Array<std::int8_t> integers;
  Array<BFloat16> halves;
  Array<float> scales;
  Array<double> means;

  Matrix() = default;
  Matrix(bool int8, std::int64_t rows, std::int64_t columns, std::uint32_t& seed) {
    const Array<float> values = numbers<float>(rows * columns, seed);
    scales = int8 ? numbers<float>(rows, seed, 0.01) : Array<float>();
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (int8) {
        integers.push_back(static_cast<std::int8_t>(std::lround(values[i] * 127.4f)));
        means.push_back(integers[i] * static_cast<double>(scales[i / columns]));
      } else {
        halves.push_back(narrow<BFloat16>(values[i]));
        means.push_back(widen(halves[i]));
      }
    }
  }

  const void* data() const {
    return integers.empty() ? static_cast<const void*>(read(halves)) : integers.data();
  }
};

struct Problem {
  CellKind cell;
  Scheme scheme;
  std::int64_t T, N, I, H, P, G, R, rows;
  bool reverse, ragged;
  Array<std::int64_t> sizes;
  Array<float> x, h0, c0, b_ih, b_hh;
  Matrix w_ih, w_hh, w_hr;

  Problem(CellKind kind, Scheme of, const std::int64_t (&s)[4], std::int64_t projected,
          bool reversed, bool cut)
      : cell(kind),
        scheme(of),
        T(s[0]),
        N(s[1]),
        I(s[2]),
        H(s[3]),
        P(projected),
        reverse(reversed),
        ragged(cut) {
    std::uint32_t seed = 1;
    G = cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1;
    R = P > 0 ? P : H, rows = 0;
    for (std::int64_t t = 0; t < T; ++t) {
      sizes.push_back(ragged ? std::max<std::int64_t>(N - t, 1) : N);
      rows += sizes.back();
    }
    x = numbers<float>(rows * I, seed), h0 = numbers<float>(N * R, seed);
    c0 = numbers<float>(cell == CellKind::kLstm ? N * H : 0, seed);
    b_ih = numbers<float>(G * H, seed), b_hh = numbers<float>(G * H, seed);
    w_ih = Matrix(of == Scheme::kInt8, G * H, I, seed);
    w_hh = Matrix(of != Scheme::kBFloat16, G * H, R, seed);
    w_hr = P > 0 ? Matrix(of != Scheme::kBFloat16, P, H, seed) : Matrix();
  }
};

struct Results {
  Array<float> y, h_n, c_n, c;
  bool operator==(const Results& o) const {
    return y == o.y && h_n == o.h_n && c_n == o.c_n && c == o.c;
  }
};

Results run(const cpu::QuantizedLevel& level, const Problem& p, int threads_, bool every_c = true) {
  const bool has_c = !p.c0.empty();
  Results r{unset<float>(p.rows * p.R), unset<float>(p.N * p.R),
            unset<float>(has_c ? p.N * p.H : 0), unset<float>(has_c && every_c ? p.rows * p.H : 0)};
  QuantizedArgs a{};
  a.cell = p.cell, a.dtype = Dtype::kFloat;
  a.T = p.T, a.N = p.N, a.I = p.I, a.H = p.H, a.P = p.P;
  a.batch_sizes = p.ragged ? p.sizes.data() : nullptr, a.reverse = p.reverse;
  a.stored = p.scheme == Scheme::kBFloat16 ? Stored::kBFloat16 : Stored::kInt8;
  a.x = p.x.data(), a.h0 = p.h0.data(), a.c0 = read(p.c0);
  a.w_ih = p.w_ih.data(), a.w_hh = p.w_hh.data(), a.w_hr = p.w_hr.data();
  a.s_ih = read(p.w_ih.scales), a.s_hh = read(p.w_hh.scales), a.s_hr = read(p.w_hr.scales);
  a.b_ih = read(p.b_ih), a.b_hh = read(p.b_hh);
  a.threads = threads_, a.parallel = bench::threads;
  a.y = r.y.data(), a.h_n = r.h_n.data();
  a.c_n = r.c_n.empty() ? nullptr : r.c_n.data(), a.c = r.c.empty() ? nullptr : r.c.data();
  level.forward(a);
  return r;
}

// A row as the product with a matrix has it.
Array<double> rounded(const float* row, std::int64_t columns, bool int8) {
  Array<double> found(row, row + columns);
  float largest = 0;
  for (std::int64_t k = 0; k < columns; ++k) {
    largest = std::max(largest, std::fabs(row[k]));
  }
  const float scale = std::max(largest / 127, std::numeric_limits<float>::min());
  for (std::int64_t k = 0; int8 && k < columns; ++k) {
    found[k] = std::nearbyint(row[k] / scale) * static_cast<double>(scale);
  }
  return found;
}

double dot(const Array<double>& row, const Array<double>& matrix, std::int64_t of) {
  double sum = 0;
  for (std::size_t k = 0; k < row.size(); ++k) {
    sum += row[k] * matrix[of * row.size() + k];
  }
  return sum;
}

// One step of the plain cell with ReLU, whose results are the products.
void against_loops(const cpu::QuantizedLevel& level, Scheme scheme, const std::string& where) {
  const std::int64_t shapes[][4] = {{1, 1, 1, 1}, {1, 3, 5, 19}, {1, 7, 33, 64}, {1, 2, 130, 40}};
  for (const auto& s : shapes) {
    const Problem p(CellKind::kRnnRelu, scheme, s, 0, false, false);
    const Results found = run(level, p, 1);
    double error = 0;
    for (std::int64_t n = 0; n < p.N; ++n) {
      const Array<double> x = rounded(&p.x[n * p.I], p.I, !p.w_ih.integers.empty()),
                          h = rounded(&p.h0[n * p.H], p.H, !p.w_hh.integers.empty());
      for (std::int64_t j = 0; j < p.H; ++j) {
        const double sum = dot(x, p.w_ih.means, j) + dot(h, p.w_hh.means, j) +
                           static_cast<double>(p.b_ih[j]) + static_cast<double>(p.b_hh[j]);
        const double off =
            std::fabs(static_cast<double>(found.y[n * p.H + j]) - std::max(sum, 0.0));
        error = off <= error ? error : off;  // a NaN too
      }
    }
    check(error < 1e-5, where, "a step is not its products");
    check(found.h_n == found.y, where, "the state is not the last output");
  }
}

// Of a sequence without reverse: each step alone, from the state before it.
void against_steps(const cpu::QuantizedLevel& level, const Problem& p, const Results& whole,
                   const std::string& where) {
  Problem one = p;
  one.T = 1, one.ragged = false;
  const float *x = p.x.data(), *y = whole.y.data();
  for (const std::int64_t size : p.sizes) {
    one.N = one.rows = size;
    one.x.assign(x, x + size * p.I), x += size * p.I;
    one.h0.resize(static_cast<std::size_t>(size * p.R));
    one.c0.resize(static_cast<std::size_t>(p.c0.empty() ? 0 : size * p.H));
    const Results step = run(level, one, 1, false);
    check(std::equal(step.y.begin(), step.y.end(), y), where, "a sequence is not its steps");
    y += size * p.R;
    one.h0 = step.h_n, one.c0 = step.c_n;
  }
}

void solve(const cpu::QuantizedLevel& level, Scheme scheme, const std::string& where) {
  against_loops(level, scheme, where);
  const std::int64_t shapes[][4] = {{3, 5, 3, 20}, {4, 1, 37, 9}};
  for (const CellKind cell : {CellKind::kLstm, CellKind::kGru, CellKind::kRnnTanh}) {
    for (const auto& s : shapes) {
      for (int way = 0; way < 4; ++way) {
        const std::int64_t projected = cell == CellKind::kLstm && way == 1 ? 6 : 0;
        const Problem p(cell, scheme, s, projected, way % 2 == 1, way / 2 == 1);
        const std::string at = where + " cell " + std::to_string(static_cast<int>(cell)) +
                               " H=" + std::to_string(s[3]) + " way " + std::to_string(way);
        const Results alone = run(level, p, 1);
        check(run(level, p, 3) == alone, at, "threads make a difference");
        check(alone == alone, at, "something was not written, or is NaN");
        if (!p.reverse) {
          against_steps(level, p, alone, at);
        }
      }
    }
  }
}

}  // namespace
}  // namespace bench
}  // namespace fused_rnn

int main() {
  using namespace fused_rnn::bench;
  scratch = Scratch::kStrict;
  for (const Named& level : kLevels) {
    for (const Scheme scheme : {Scheme::kInt8, Scheme::kNarrow, Scheme::kBFloat16}) {
      const auto* const of = scheme == Scheme::kBFloat16 ? level.bfloat16 : level.int8;
      if (of != nullptr) {
        solve(*of, scheme, std::string(level.name) + " " + kSchemes[static_cast<int>(scheme)]);
      }
    }
  }
  std::printf("quantized: %d comparisons, %d wrong\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}

// The kernels of variants without Python and PyTorch, for a build with sanitizers: arrays of exactly the
// sizes that args.h names, gradients against differences, and threads against one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "../../csrc/cpu/variants/args.h"
#include "parallels.h"
#include "plain_arrays.h"

namespace fused_rnn {

#define FUSED_RNN_DECLARE(level)              \
  namespace level {                           \
  extern const cpu::VariantKernels kVariants; \
  }
FUSED_RNN_BENCH_LEVELS(FUSED_RNN_DECLARE)
#undef FUSED_RNN_DECLARE

namespace bench {
namespace {

struct Named {
  const char* name;
  const cpu::VariantKernels* kernels;
};
const Named kLevels[] = {
#define FUSED_RNN_ROW(level) {#level, &level::kVariants},
    FUSED_RNN_BENCH_LEVELS(FUSED_RNN_ROW)
#undef FUSED_RNN_ROW
};

template <class T>
double dot(const Array<T>& a, const Array<T>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return sum;
}

template <class T>
struct Problem {
  VariantOptions o;
  std::int64_t T_, N, H, P;
  bool reverse, ragged;
  Array<std::int64_t> sizes, draws;
  std::int64_t rows, R, GH, E;
  Array<T> gates_x, h0, c0, w_hh, b_ih, b_hh, w_hr, own, mask;
  // Of the loss, which is the sum of these times the results.
  Array<T> dy, dh_n, dc_n, dc;

  Problem(const VariantOptions& options, std::int64_t steps, std::int64_t n, std::int64_t h,
          bool reversed, bool cut)
      : o(options),
        T_(steps),
        N(n),
        H(h),
        P(options.proj_clip > 0 ? 6 : 0),
        reverse(reversed),
        ragged(cut) {
    std::uint32_t seed = 1;
    rows = 0;
    for (std::int64_t t = 0; t < T_; ++t) {
      sizes.push_back(ragged ? std::max<std::int64_t>(N - t, 1) : N);
      rows += sizes.back();
    }
    R = P > 0 ? P : H, GH = o.gates * H;
    E = (o.norm ? 2 * GH + (o.lstm() ? 2 * H : 0) : 0) +
        (o.peepholes ? (o.coupled ? 2 : 3) * H : 0);
    gates_x = numbers<T>(rows * GH, seed), h0 = numbers<T>(N * R, seed);
    c0 = numbers<T>(o.lstm() ? N * H : 0, seed);
    w_hh = numbers<T>(GH * R / o.heads, seed, 0.7);
    b_ih = numbers<T>(GH, seed), b_hh = numbers<T>(GH, seed);
    w_hr = numbers<T>(P * H, seed), own = numbers<T>(E, seed);
    for (std::int64_t i = 0; i < (o.dropout > 0 ? N * R : 0); ++i) {
      mask.push_back(i % 3 == 0 ? T{0} : T{1});
    }
    for (std::int64_t i = 0; i < (o.zoneout_h > 0 ? N : 0); ++i) {
      draws.insert(draws.end(), {987654321987, 0, i});
    }
    dy = numbers<T>(rows * R, seed), dh_n = numbers<T>(N * R, seed);
    dc_n = numbers<T>(c0.empty() ? 0 : N * H, seed),
    dc = numbers<T>(c0.empty() ? 0 : rows * H, seed);
  }

  void fill(VariantArgs& a, int threads) const {
    a.options = o, a.wide = sizeof(T) == 8;
    a.T = T_, a.N = N, a.H = H, a.P = P;
    a.batch_sizes = ragged ? sizes.data() : nullptr;
    a.reverse = reverse;
    a.gates_x = gates_x.data(), a.h0 = h0.data(), a.c0 = read(c0), a.w_hh = w_hh.data();
    a.b_ih = b_ih.data(), a.b_hh = b_hh.data(), a.w_hr = read(w_hr);
    const T* next = own.data();
    const auto take = [&](std::int64_t count) { return (next += count) - count; };
    if (o.norm) {
      a.ln_ih = take(GH), a.ln_hh = take(GH);
      if (o.lstm()) {
        a.ln_c = take(H), a.ln_c_bias = take(H);
      }
    }
    a.peephole = o.peepholes ? next : nullptr;
    a.mask = read(mask), a.draws = read(draws);
    a.threads = threads, a.parallel = bench::threads;
  }
};

template <class T>
struct Results {
  Array<T> y, h_n, c_n, c, saved, dgates, dsums, dproj, dh0, dc0, dextra, dbias;
};

template <class T>
Results<T> forward(const cpu::VariantKernels& k, const Problem<T>& p, int threads, bool training) {
  const VariantKept kept(p.o, p.H, p.P);
  Results<T> r;
  r.y = unset<T>(p.rows * p.R), r.h_n = unset<T>(p.N * p.R);
  r.c_n = unset<T>(p.o.lstm() ? p.N * p.H : 0), r.c = unset<T>(p.o.lstm() ? p.rows * p.H : 0);
  r.saved = unset<T>(training ? p.rows * kept.total : 0);
  VariantForwardArgs a{};
  p.fill(a, threads);
  a.y = r.y.data(), a.h_n = r.h_n.data();
  a.c_n = r.c_n.empty() ? nullptr : r.c_n.data(), a.c = r.c.empty() ? nullptr : r.c.data();
  a.saved = training ? r.saved.data() : nullptr;
  k.forward(a);
  return r;
}

template <class T>
void backward(const cpu::VariantKernels& k, const Problem<T>& p, int threads, Results<T>& r) {
  r.dgates = unset<T>(p.rows * p.GH), r.dsums = unset<T>(p.o.split() ? p.rows * p.GH : 0);
  r.dproj = unset<T>(p.rows * p.P), r.dh0 = unset<T>(p.N * p.R);
  r.dc0 = unset<T>(p.o.lstm() ? p.N * p.H : 0), r.dextra = unset<T>(p.E);
  r.dbias = unset<T>(p.GH + (p.o.own_bias() ? p.H : 0));
  VariantBackwardArgs a{};
  p.fill(a, threads);
  a.saved = r.saved.data(), a.dy = p.dy.data(), a.dh_n = p.dh_n.data();
  a.dc_n = read(p.dc_n), a.dc = read(p.dc);
  a.dgates = r.dgates.data(), a.dsums = r.dsums.data(), a.dproj = r.dproj.data();
  a.dh0 = r.dh0.data(), a.dc0 = r.dc0.data(), a.dextra = r.dextra.data(), a.dbias = r.dbias.data();
  k.backward(a);
}

template <class T>
double loss(const cpu::VariantKernels& k, const Problem<T>& p) {
  const Results<T> r = forward(k, p, 1, false);
  return dot(r.y, p.dy) + dot(r.h_n, p.dh_n) + dot(r.c_n, p.dc_n) + dot(r.c, p.dc);
}

// Of one operand: the gradient along a direction, against a difference.
void differences(const cpu::VariantKernels& k, const Problem<double>& p, const std::string& where,
                 const char* name, Array<double> Problem<double>::* operand,
                 const Array<double>& gradient) {
  std::uint32_t seed = 7;
  const Array<double> direction =
      numbers<double>(static_cast<std::int64_t>((p.*operand).size()), seed);
  constexpr double kStep = 1e-6;
  double values[2];
  for (int side = 0; side < 2; ++side) {
    Problem<double> moved = p;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      (moved.*operand)[i] += (side == 0 ? -kStep : kStep) * direction[i];
    }
    values[side] = loss(k, moved);
  }
  const double expected = (values[1] - values[0]) / (2 * kStep), found = dot(gradient, direction);
  check(std::fabs(found - expected) <= 1e-6 * (1 + std::fabs(expected)), where, name);
}

template <class T>
void solve(const Named& level, const VariantOptions& o, const std::string& name) {
  const std::int64_t shapes[][3] = {{1, 1, 4}, {3, 5, 20}, {2, 9, 68}};
  for (const auto& s : shapes) {
    for (int way = 0; way < 4; ++way) {
      const Problem<T> p(o, s[0], s[1], s[2], way % 2 == 1, way / 2 == 1);
      const std::string where = std::string(level.name) + " " + name +
                                (sizeof(T) == 8 ? " double " : " float ") + std::to_string(s[2]) +
                                " way " + std::to_string(way);
      Results<T> alone = forward(*level.kernels, p, 1, true);
      backward(*level.kernels, p, 1, alone);
      check(forward(*level.kernels, p, 1, false).y == alone.y, where, "inference is no training");
      Results<T> team = forward(*level.kernels, p, 3, true);
      backward(*level.kernels, p, 3, team);
      check(team.y == alone.y && team.c == alone.c && team.saved == alone.saved &&
                team.dgates == alone.dgates && team.dh0 == alone.dh0 &&
                team.dextra == alone.dextra && team.dbias == alone.dbias,
            where, "threads make a difference");
      if constexpr (sizeof(T) == 8) {
        differences(*level.kernels, p, where, "dgates", &Problem<double>::gates_x, alone.dgates);
        differences(*level.kernels, p, where, "dh0", &Problem<double>::h0, alone.dh0);
        differences(*level.kernels, p, where, "dc0", &Problem<double>::c0, alone.dc0);
        differences(*level.kernels, p, where, "dextra", &Problem<double>::own, alone.dextra);
        const Array<double> db_ih(alone.dbias.begin(), alone.dbias.begin() + p.GH);
        differences(*level.kernels, p, where, "db_ih", &Problem<double>::b_ih, db_ih);
      }
    }
  }
}

void every_option(const Named& level) {
  const auto both = [&](const VariantOptions& o, const std::string& name) {
    solve<float>(level, o, name);
    solve<double>(level, o, name);
  };
  for (const bool norm : {false, true}) {
    VariantOptions lstm(CellKind::kLstm, 4), gru(CellKind::kGru, 3), rnn(CellKind::kRnnTanh, 1);
    for (VariantOptions* o : {&lstm, &gru, &rnn}) {
      o->norm = norm, o->eps = 1e-3, o->heads = 2, o->dropout = 0.3, o->zoneout_h = 0.4;
    }
    const std::string more = norm ? " with norms" : "";
    both(rnn, "rnn" + more);
    both(gru, "gru" + more);
    gru.reset_before = true;
    both(gru, "gru that resets before" + more);
    lstm.zoneout_c = 0.2;
    both(lstm, "lstm" + more);
    lstm.peepholes = lstm.coupled = true, lstm.gates = 3;
    lstm.cell_clip = 2, lstm.proj_clip = 2;
    both(lstm, "lstm with peepholes" + more);
  }
}

}  // namespace
}  // namespace bench
}  // namespace fused_rnn

int main() {
  using namespace fused_rnn::bench;
  for (const Named& level : kLevels) {
    every_option(level);
  }
  std::printf("variants: %d comparisons, %d wrong\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}

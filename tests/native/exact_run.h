// One scan by the kernels of a level, in heap blocks of exactly the size that each array needs, so
// that AddressSanitizer sees the first element that is touched beside one.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "naive.h"

namespace fused_rnn::bench {

struct Team {
  int threads;
  Parallel parallel;
};

// Which of BackwardArgs' optional arrays are given.
struct Choice {
  bool training = true, fed_back = true;
  int only = -1;  // the one gradient that is wanted, counted as in BackwardArgs; -1: all
};

template <class S>
double round_to(double v) {
  return widen(narrow<S>(static_cast<typename ComputeType<S>::type>(v)));
}

template <class S>
std::vector<S> stored(const Numbers& v) {
  std::vector<S> out;
  out.reserve(v.size());
  for (const double d : v) {
    out.push_back(narrow<S>(static_cast<typename ComputeType<S>::type>(d)));
  }
  return out;
}

template <class S>
Numbers numbers(const std::vector<S>& v) {
  Numbers out;
  for (const S s : v) {
    out.push_back(widen(s));
  }
  return out;
}

// An array of an output's size, of NaN; none where it is not wanted.
template <class S>
std::vector<S> room(std::int64_t n, bool wanted = true) {
  return std::vector<S>(static_cast<std::size_t>(wanted ? n : 0),
                        narrow<S>(std::numeric_limits<typename ComputeType<S>::type>::quiet_NaN()));
}

template <class S>
class ExactRun {
 public:
  ExactRun(const Operands& o, Dtype dtype)
      : o_(o),
        dtype_(dtype),
        x_(stored<S>(o.x)),
        h0_(stored<S>(o.h0)),
        c0_(stored<S>(o.c0)),
        w_ih_(stored<S>(o.w_ih)),
        w_hh_(stored<S>(o.w_hh)),
        b_ih_(stored<S>(o.b_ih)),
        b_hh_(stored<S>(o.b_hh)),
        w_hr_(stored<S>(o.w_hr)),
        dy_(stored<S>(o.dy)),
        dh_n_(stored<S>(o.dh_n)),
        dc_n_(stored<S>(o.dc_n)) {}

  Outcome run(const cpu::Level& level, Team team, Choice choice = {}) const {
    const bool lstm = o_.cell == CellKind::kLstm;
    const std::int64_t R = o_.R(), GH = o_.G() * o_.H;
    const auto rows = static_cast<std::int64_t>(x_.size()) / o_.I;
    ForwardArgs f{};
    fill(f, team);
    std::vector<S> y = room<S>(rows * R), h_n = room<S>(o_.N * R), c_n = room<S>(o_.N * o_.H, lstm);
    f.y = y.data(), f.h_n = h_n.data(), f.c_n = c_n.data();
    using T = typename ComputeType<S>::type;
    std::vector<T> saved = room<T>(choice.training ? level.saved_elements(f) : 0);
    f.training = choice.training;
    f.saved = saved.data();
    level.forward(f);
    Outcome out;
    out.y = numbers(y), out.h_n = numbers(h_n), out.c_n = numbers(c_n);
    if (!choice.training) {
      return out;
    }
    BackwardArgs b{};
    fill(b, team);
    b.y = y.data(), b.saved = saved.data();
    if (choice.fed_back) {
      b.dy = dy_.data(), b.dh_n = dh_n_.data(), b.dc_n = dc_n_.data();
    }
    const auto wanted = [&](int i) { return choice.only < 0 || choice.only == i; };
    std::vector<S> dx = room<S>(rows * o_.I, wanted(0)), dh0 = room<S>(o_.N * R, wanted(1)),
                   dc0 = room<S>(o_.N * o_.H, lstm && wanted(2)),
                   dw_ih = room<S>(GH * o_.I, wanted(3)), dw_hh = room<S>(GH * R, wanted(4)),
                   db_ih = room<S>(GH, wanted(5)), db_hh = room<S>(GH, wanted(6)),
                   dw_hr = room<S>(o_.P * o_.H, wanted(7));
    b.dx = dx.data(), b.dh0 = dh0.data(), b.dc0 = dc0.data(), b.dw_ih = dw_ih.data();
    b.dw_hh = dw_hh.data(), b.db_ih = db_ih.data(), b.db_hh = db_hh.data(), b.dw_hr = dw_hr.data();
    level.backward(b);
    out.dx = numbers(dx), out.dh0 = numbers(dh0), out.dc0 = numbers(dc0);
    out.dw_ih = numbers(dw_ih), out.dw_hh = numbers(dw_hh), out.db_ih = numbers(db_ih);
    out.db_hh = numbers(db_hh), out.dw_hr = numbers(dw_hr);
    return out;
  }

 private:
  void fill(ScanArgs& a, Team team) const {
    a.cell = o_.cell, a.dtype = dtype_;
    a.T = o_.T, a.N = o_.N, a.I = o_.I, a.H = o_.H, a.P = o_.P;
    a.batch_sizes = o_.ragged ? o_.batch_sizes.data() : nullptr;
    a.reverse = o_.reverse;
    a.x = x_.data(), a.h0 = h0_.data(), a.c0 = c0_.data(), a.w_ih = w_ih_.data();
    a.w_hh = w_hh_.data(), a.b_ih = b_ih_.data(), a.b_hh = b_hh_.data(), a.w_hr = w_hr_.data();
    a.threads = team.threads, a.parallel = team.parallel;
  }

  const Operands& o_;
  const Dtype dtype_;
  const std::vector<S> x_, h0_, c0_, w_ih_, w_hh_, b_ih_, b_hh_, w_hr_, dy_, dh_n_, dc_n_;
};

}  // namespace fused_rnn::bench

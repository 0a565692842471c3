// A scan and its gradients as the textbook has them: one sequence after the other, loops over single
// numbers, all in double. Only h is rounded to the type under test, where the kernels round it.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../../csrc/scan.h"

namespace fused_rnn::bench {

using Numbers = std::vector<double>;

struct Operands {
  CellKind cell;
  std::int64_t T, N, I, H, P;
  std::vector<std::int64_t> batch_sizes;  // (T,), also where dense
  bool ragged, reverse;
  Numbers x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr;  // as in ScanArgs; empty: null
  Numbers dy, dh_n, dc_n;                           // as in BackwardArgs

  std::int64_t R() const { return P > 0 ? P : H; }
  std::int64_t G() const { return cell == CellKind::kLstm ? 4 : cell == CellKind::kGru ? 3 : 1; }
};

struct Outcome {
  Numbers y, h_n, c_n, dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr;
};

class Naive {
 public:
  Naive(const Operands& operands, double (*round)(double)) : o_(operands), round_(round) {}

  Outcome run() {
    const auto n_rows = [&] {
      std::int64_t sum = 0;
      for (const std::int64_t b : o_.batch_sizes) {
        begin_.push_back(sum);
        sum += b;
      }
      return sum;
    }();
    const std::int64_t G = o_.G(), R = o_.R();
    out_.y = zeros(n_rows * R), out_.h_n = zeros(o_.N * R), out_.c_n = zeros(o_.N * o_.H);
    out_.dx = zeros(n_rows * o_.I), out_.dh0 = zeros(o_.N * R), out_.dc0 = zeros(o_.N * o_.H);
    out_.dw_ih = zeros(G * o_.H * o_.I), out_.dw_hh = zeros(G * o_.H * R);
    out_.db_ih = zeros(G * o_.H), out_.db_hh = zeros(G * o_.H), out_.dw_hr = zeros(o_.P * o_.H);
    for (std::int64_t n = 0; n < o_.N; ++n) {
      forward(n);
      backward(n);
    }
    return out_;
  }

 private:
  struct Step {
    std::int64_t row;
    Numbers h, c;           // before the step
    Numbers gate, a_nh;     // (G*H,) after the nonlinearity; (H,) the GRU's
    Numbers c_new, hidden;  // (H,); hidden before the projection
  };

  static Numbers zeros(std::int64_t n) { return Numbers(static_cast<std::size_t>(n)); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double at(const Numbers& v, std::int64_t i) {
    return v.empty() ? 0 : v[static_cast<std::size_t>(i)];
  }
  static double& at(Numbers& v, std::int64_t i) { return v[static_cast<std::size_t>(i)]; }
  static Numbers slice(const Numbers& v, std::int64_t first, std::int64_t n) {
    return v.empty() ? zeros(n) : Numbers(v.begin() + first, v.begin() + first + n);
  }

  void forward(std::int64_t n) {
    std::int64_t length = 0;
    while (length < o_.T && n < o_.batch_sizes[static_cast<std::size_t>(length)]) {
      ++length;
    }
    Numbers h = slice(o_.h0, n * o_.R(), o_.R()), c = slice(o_.c0, n * o_.H, o_.H);
    steps_.clear();
    for (std::int64_t k = 0; k < length; ++k) {
      const std::int64_t t = o_.reverse ? length - 1 - k : k;
      Step s{begin_[static_cast<std::size_t>(t)] + n, h, c, {}, {}, {}, {}};
      take_step(s);
      c = s.c_new;
      h = s.hidden;
      if (o_.P > 0) {
        h = zeros(o_.P);
        for (std::int64_t p = 0; p < o_.P; ++p) {
          for (std::int64_t u = 0; u < o_.H; ++u) {
            at(h, p) += at(o_.w_hr, p * o_.H + u) * at(s.hidden, u);
          }
        }
      }
      for (std::int64_t j = 0; j < o_.R(); ++j) {
        at(h, j) = round_(at(h, j));
        at(out_.y, s.row * o_.R() + j) = at(h, j);
      }
      steps_.push_back(s);
    }
    for (std::int64_t j = 0; j < o_.R(); ++j) {
      at(out_.h_n, n * o_.R() + j) = at(h, j);
    }
    for (std::int64_t u = 0; u < o_.H; ++u) {
      at(out_.c_n, n * o_.H + u) = at(c, u);
    }
  }

  void take_step(Step& s) const {
    const std::int64_t H = o_.H, R = o_.R();
    Numbers from_x = zeros(o_.G() * H), from_h = from_x;
    for (std::int64_t i = 0; i < o_.G() * H; ++i) {
      at(from_x, i) = at(o_.b_ih, i), at(from_h, i) = at(o_.b_hh, i);
      for (std::int64_t j = 0; j < o_.I; ++j) {
        at(from_x, i) += at(o_.w_ih, i * o_.I + j) * at(o_.x, s.row * o_.I + j);
      }
      for (std::int64_t j = 0; j < R; ++j) {
        at(from_h, i) += at(o_.w_hh, i * R + j) * at(s.h, j);
      }
    }
    const auto a = [&](std::int64_t gate, std::int64_t u) {
      return at(from_x, gate * H + u) + at(from_h, gate * H + u);
    };
    s.gate = zeros(o_.G() * H), s.a_nh = zeros(H), s.c_new = zeros(H), s.hidden = zeros(H);
    for (std::int64_t u = 0; u < H; ++u) {
      const auto gate = [&](std::int64_t g) -> double& { return at(s.gate, g * H + u); };
      switch (o_.cell) {
        case CellKind::kLstm:
          gate(0) = sigmoid(a(0, u)), gate(1) = sigmoid(a(1, u)), gate(2) = std::tanh(a(2, u)),
          gate(3) = sigmoid(a(3, u));
          at(s.c_new, u) = gate(1) * at(s.c, u) + gate(0) * gate(2);
          at(s.hidden, u) = gate(3) * std::tanh(at(s.c_new, u));
          break;
        case CellKind::kGru:
          at(s.a_nh, u) = at(from_h, 2 * H + u);
          gate(0) = sigmoid(a(0, u)), gate(1) = sigmoid(a(1, u));
          gate(2) = std::tanh(at(from_x, 2 * H + u) + gate(0) * at(s.a_nh, u));
          at(s.hidden, u) = (1 - gate(1)) * gate(2) + gate(1) * at(s.h, u);
          break;
        case CellKind::kRnnTanh:
          at(s.hidden, u) = gate(0) = std::tanh(a(0, u));
          break;
        case CellKind::kRnnRelu:
          at(s.hidden, u) = gate(0) = a(0, u) > 0 ? a(0, u) : 0;
          break;
      }
    }
  }

  void backward(std::int64_t n) {
    Numbers dh = slice(o_.dh_n, n * o_.R(), o_.R()), dc = slice(o_.dc_n, n * o_.H, o_.H);
    for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) {
      for (std::int64_t j = 0; j < o_.R(); ++j) {
        at(dh, j) += at(o_.dy, s->row * o_.R() + j);
      }
      undo_step(*s, dh, dc);
    }
    for (std::int64_t j = 0; j < o_.R(); ++j) {
      at(out_.dh0, n * o_.R() + j) = at(dh, j);
    }
    for (std::int64_t u = 0; u < o_.H; ++u) {
      at(out_.dc0, n * o_.H + u) = at(dc, u);
    }
  }

  // In: the gradients of h and c after the step; out: of those before it.
  void undo_step(const Step& s, Numbers& dh, Numbers& dc) {
    const std::int64_t H = o_.H, R = o_.R();
    Numbers hidden = dh;  // the gradient of s.hidden
    if (o_.P > 0) {
      hidden = zeros(H);
      for (std::int64_t p = 0; p < o_.P; ++p) {
        for (std::int64_t u = 0; u < H; ++u) {
          at(hidden, u) += at(o_.w_hr, p * H + u) * at(dh, p);
          at(out_.dw_hr, p * H + u) += at(dh, p) * at(s.hidden, u);
        }
      }
    }
    Numbers before = zeros(R), dx_part = zeros(o_.G() * H), dh_part = dx_part;
    for (std::int64_t u = 0; u < H; ++u) {
      const auto gate = [&](std::int64_t g) { return at(s.gate, g * H + u); };
      const auto both = [&](std::int64_t g, double d) {
        at(dx_part, g * H + u) = at(dh_part, g * H + u) = d;
      };
      const double d = at(hidden, u);
      if (o_.cell == CellKind::kLstm) {
        const double i = gate(0), f = gate(1), g = gate(2), o = gate(3),
                     tanh_c = std::tanh(at(s.c_new, u));
        const double dc_new = at(dc, u) + d * o * (1 - tanh_c * tanh_c);
        both(0, dc_new * g * i * (1 - i)), both(1, dc_new * at(s.c, u) * f * (1 - f));
        both(2, dc_new * i * (1 - g * g)), both(3, d * tanh_c * o * (1 - o));
        at(dc, u) = dc_new * f;
      } else if (o_.cell == CellKind::kGru) {
        const double r = gate(0), z = gate(1), n = gate(2), dn = d * (1 - z) * (1 - n * n);
        both(0, dn * at(s.a_nh, u) * r * (1 - r)), both(1, d * (at(s.h, u) - n) * z * (1 - z));
        at(dx_part, 2 * H + u) = dn, at(dh_part, 2 * H + u) = dn * r;
        at(before, u) = d * z;
      } else {
        const double h = gate(0);
        both(0, o_.cell == CellKind::kRnnTanh ? d * (1 - h * h) : h > 0 ? d : 0);
      }
    }
    for (std::int64_t i = 0; i < o_.G() * H; ++i) {
      at(out_.db_ih, i) += at(dx_part, i), at(out_.db_hh, i) += at(dh_part, i);
      for (std::int64_t j = 0; j < o_.I; ++j) {
        at(out_.dw_ih, i * o_.I + j) += at(dx_part, i) * at(o_.x, s.row * o_.I + j);
        at(out_.dx, s.row * o_.I + j) += at(dx_part, i) * at(o_.w_ih, i * o_.I + j);
      }
      for (std::int64_t j = 0; j < R; ++j) {
        at(out_.dw_hh, i * R + j) += at(dh_part, i) * at(s.h, j);
        at(before, j) += at(dh_part, i) * at(o_.w_hh, i * R + j);
      }
    }
    dh = before;
  }

  const Operands& o_;
  double (*round_)(double);
  std::vector<std::int64_t> begin_;
  std::vector<Step> steps_;
  Outcome out_;
};

}  // namespace fused_rnn::bench

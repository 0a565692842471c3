// A variant's scan, forward: in each step the recurrent product, then what is made of it row by row,
// as norms need all of a row; then a second product where the reset comes before it, or a projection.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class VariantForward : VariantScan<T> {
  using Base = VariantScan<T>;
  using V = typename Base::V;
  using Base::o_, Base::kept_, Base::steps_, Base::H_, Base::R_, Base::GH_, Base::of;

 public:
  VariantForward(const VariantForwardArgs& a, int members)
      : Base(a, members),
        a_(a),
        product_(this->recurrent(0, o_.reset_before ? 2 : o_.gates, false)),
        late_(o_.reset_before ? this->recurrent(2, 3, false) : HeadProduct<T>()),
        projection_(this->projection(false)),
        h_(a.N * R_),
        heard_(a.mask != nullptr ? a.N * R_ : 0),
        c_(o_.lstm() ? a.N * H_ : 0),
        sums_(a.N * GH_),
        reset_h_(o_.reset_before ? a.N * H_ : 0),
        hidden_(a.P > 0 ? a.N * H_ : 0),
        proj_(a.P > 0 ? a.N * a.P : 0),
        rows_(a.saved == nullptr ? a.N * kept_.total : 0),
        scratch_(Base::kBlocks * 2 * this->room_) {}

  void member(Team::Member& m) {
    const std::int64_t early = product_.groups(), late = late_.groups();
    m.run(early + late + projection_.groups(), [&](std::int64_t i) {
      i < early          ? product_.pack(i)
      : i < early + late ? late_.pack(i - early)
                         : projection_.pack(i - early - late);
    });
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      std::copy_n(of(a_.h0) + n * R_, R_, h_.get() + n * R_);
      hear(n);
      if (o_.lstm()) {
        std::copy_n(of(a_.c0) + n * H_, H_, c_.get() + n * H_);
      }
    });
    for (std::int64_t k = 0; k < a_.T; ++k) {
      step(m, k);
    }
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      std::copy_n(h_.get() + n * R_, R_, of(a_.h_n) + n * R_);
      if (o_.lstm()) {
        std::copy_n(c_.get() + n * H_, H_, of(a_.c_n) + n * H_);
      }
    });
  }

 private:
  // Where a sequence is in a step.
  struct Here {
    std::int64_t n, k, row, block;
  };

  void step(Team::Member& m, std::int64_t k) {
    const std::int64_t batch = steps_.batch(k), first = steps_.begin(k);
    const auto each = [&](auto&& f) {
      this->for_rows(m, batch,
                     [&](std::int64_t n, std::int64_t block) { f(Here{n, k, first + n, block}); });
    };
    const auto into = [](T* out, std::int64_t row) {
      return [=](std::int64_t n, std::int64_t column, V sums, std::int64_t valid) {
        store<T>(out + n * row + column, sums, valid);
      };
    };
    const T* const heard = a_.mask != nullptr ? heard_.get() : h_.get();
    product_.multiply(m, heard, R_, batch, into(sums_.get(), GH_));
    each([&](const Here& at) { early_row(at); });
    if (o_.reset_before) {
      late_.multiply(m, reset_h_.get(), H_, batch, into(sums_.get(), GH_));
      each([&](const Here& at) { late_row(at); });
    }
    if (a_.P > 0) {
      projection_.multiply(m, hidden_.get(), H_, batch, into(proj_.get(), a_.P));
      each([&](const Here& at) { projected_row(at); });
    }
  }

  T* kept(const Here& at) const {
    return a_.saved != nullptr ? of(a_.saved) + at.row * kept_.total
                               : rows_.get() + at.n * kept_.total;
  }
  // h of a step before zoneout, (R,).
  T* now(const Here& at) const { return scratch_.get() + at.block * 2 * this->room_; }
  T* mask(const Here& at) const { return now(at) + this->room_; }

  void hear(std::int64_t n) {
    if (a_.mask != nullptr) {
      const T* const h = h_.get() + n * R_;
      const T* const kept = of(a_.mask) + n * R_;
      const T scale = static_cast<T>(1 / (1 - o_.dropout));
      for_units<T>(R_, [&](std::int64_t j, std::int64_t valid) {
        store<T>(heard_.get() + n * R_ + j, load(h + j, valid) * load(kept + j, valid) * scale,
                 valid);
      });
    }
  }

  // The sums of gates from `first` on, normalised where they are to be, with their bias.
  void settle(const Here& at, std::int64_t first, std::int64_t gates) {
    T* const sums = sums_.get() + at.n * GH_ + first * H_;
    const T* const bias = a_.b_hh != nullptr ? of(a_.b_hh) + first * H_ : nullptr;
    if (o_.norm) {
      std::copy_n(sums, gates * H_, kept(at) + kept_.sums + first * H_);
      normalise(sums, gates * H_, o_.eps, of(a_.ln_hh) + first * H_, bias, sums);
    } else if (bias != nullptr) {
      for_units<T>(gates * H_, [&](std::int64_t j, std::int64_t valid) {
        store<T>(sums + j, load(sums + j, valid) + load(bias + j, valid), valid);
      });
    }
  }

  void early_row(const Here& at) {
    const T* const heard = (a_.mask != nullptr ? heard_.get() : h_.get()) + at.n * R_;
    std::copy_n(heard, R_, kept(at) + kept_.heard);
    if (kept_.past != kept_.heard) {
      std::copy_n(h_.get() + at.n * R_, R_, kept(at) + kept_.past);
    }
    settle(at, 0, o_.reset_before ? 2 : o_.gates);
    if (o_.lstm()) {
      lstm_row(at);
    } else if (o_.gru()) {
      o_.reset_before ? resetting_row(at, heard) : gru_row(at);
    } else {
      rnn_row(at);
    }
  }

  FUSED_RNN_INLINE V pre(const Here& at, int gate, std::int64_t j, std::int64_t valid) const {
    return load(of(a_.gates_x) + at.row * GH_ + gate * H_ + j, valid) +
           load(sums_.get() + at.n * GH_ + gate * H_ + j, valid);
  }

  void lstm_row(const Here& at) {
    T* const s = kept(at);
    T* const gates = s + kept_.gates;
    T* const c = s + kept_.c;
    T* const state = c_.get() + at.n * H_;
    const int f_at = o_.coupled ? 0 : 1;
    const T* const peep_f = o_.peepholes ? of(a_.peephole) + f_at * H_ : nullptr;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V before = load(state + j, valid);
      V a_f = pre(at, f_at, j, valid), a_o = pre(at, f_at + 2, j, valid);
      if (o_.peepholes) {
        a_f += load(peep_f + j, valid) * before;
      }
      const V f = this->gate(a_f), g = this->squash(pre(at, f_at + 1, j, valid));
      V i = T{1} - f;
      if (!o_.coupled) {
        V a_i = pre(at, 0, j, valid);
        if (o_.peepholes) {
          a_i += load(of(a_.peephole) + j, valid) * before;
        }
        i = this->gate(a_i);
      }
      V after = f * before + i * g;
      if (o_.cell_clip > 0) {
        after = this->clipped(after, o_.cell_clip);
      }
      if (o_.peepholes) {
        a_o += load(peep_f + H_ + j, valid) * after;
      }
      const V o = this->gate(a_o);
      store<T>(gates + j, i, valid);
      store<T>(gates + H_ + j, f, valid);
      store<T>(gates + 2 * H_ + j, g, valid);
      store<T>(gates + 3 * H_ + j, o, valid);
      store<T>(c + j, after, valid);
    });
    T* const out = a_.P > 0 ? hidden_.get() + at.n * H_ : now(at);
    const T* shown = c;
    if (o_.norm) {
      normalise(c, H_, o_.eps, of(a_.ln_c), of(a_.ln_c_bias), out);
      shown = out;
    }
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V h = load(gates + 3 * H_ + j, valid) * this->squash(load(shown + j, valid));
      store<T>(out + j, h, valid);
    });
    const T* after = c;
    if (o_.zoneout_c > 0) {
      std::copy_n(c, H_, s + kept_.c_kept);
      this->zone(at.n, at.k, state, s + kept_.c_kept, H_, o_.zoneout_c, Base::kKeepC, mask(at));
      after = s + kept_.c_kept;
    }
    std::copy_n(after, H_, state);
    if (a_.c != nullptr) {
      std::copy_n(after, H_, of(a_.c) + at.row * H_);
    }
    if (a_.P > 0) {
      std::copy_n(out, H_, s + kept_.hidden);
    } else {
      finish(at);
    }
  }

  void gru_row(const Here& at) {
    T* const gates = kept(at) + kept_.gates;
    const T* const h = h_.get() + at.n * R_;
    const T* const x_n = of(a_.gates_x) + at.row * GH_ + 2 * H_;
    const T* const h_n = sums_.get() + at.n * GH_ + 2 * H_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = this->gate(pre(at, 0, j, valid)), z = this->gate(pre(at, 1, j, valid));
      const V past = load(h_n + j, valid);
      const V n = this->squash(load(x_n + j, valid) + r * past);
      store<T>(gates + j, r, valid);
      store<T>(gates + H_ + j, z, valid);
      store<T>(gates + 2 * H_ + j, n, valid);
      store<T>(gates + 3 * H_ + j, past, valid);
      store<T>(now(at) + j, (T{1} - z) * n + z * load(h + j, valid), valid);
    });
    finish(at);
  }

  // Reset and update, and what the candidate hears.
  void resetting_row(const Here& at, const T* heard) {
    T* const s = kept(at);
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = this->gate(pre(at, 0, j, valid)), z = this->gate(pre(at, 1, j, valid));
      const V reset = r * load(heard + j, valid);
      store<T>(s + kept_.gates + j, r, valid);
      store<T>(s + kept_.gates + H_ + j, z, valid);
      store<T>(s + kept_.reset_h + j, reset, valid);
      store<T>(reset_h_.get() + at.n * H_ + j, reset, valid);
    });
  }

  void late_row(const Here& at) {
    settle(at, 2, 1);
    T* const gates = kept(at) + kept_.gates;
    const T* const h = h_.get() + at.n * R_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V n = this->squash(pre(at, 2, j, valid)), z = load(gates + H_ + j, valid);
      store<T>(gates + 2 * H_ + j, n, valid);
      store<T>(now(at) + j, (T{1} - z) * n + z * load(h + j, valid), valid);
    });
    finish(at);
  }

  void rnn_row(const Here& at) {
    T* const out = now(at);
    const bool rectified = o_.cell == CellKind::kRnnRelu;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V a = pre(at, 0, j, valid), h = rectified ? relu(a) : tanh(a);
      store<T>(kept(at) + kept_.gates + j, h, valid);
      store<T>(out + j, h, valid);
    });
    finish(at);
  }

  void projected_row(const Here& at) {
    const T* const from = proj_.get() + at.n * a_.P;
    for_units<T>(a_.P, [&](std::int64_t j, std::int64_t valid) {
      V h = load(from + j, valid);
      if (o_.proj_clip > 0) {
        store<T>(kept(at) + kept_.proj + j, h, valid);
        h = this->clipped(h, o_.proj_clip);
      }
      store<T>(now(at) + j, h, valid);
    });
    finish(at);
  }

  // Zoneout of h; then it is the state, the output, and what the next step hears.
  void finish(const Here& at) {
    T* const h = h_.get() + at.n * R_;
    if (o_.zoneout_h > 0) {
      this->zone(at.n, at.k, h, now(at), R_, o_.zoneout_h, Base::kKeepH, mask(at));
    }
    std::copy_n(now(at), R_, h);
    std::copy_n(h, R_, of(a_.y) + at.row * R_);
    hear(at.n);
  }

  const VariantForwardArgs& a_;
  HeadProduct<T> product_, late_, projection_;
  Buffer<T> h_, heard_, c_;                   // (N, R), (N, R), (N, H)
  Buffer<T> sums_, reset_h_, hidden_, proj_;  // (N, G*H), (N, H), (N, H), (N, P)
  Buffer<T> rows_;                            // (N, kept), where nothing is saved
  Buffer<T> scratch_;                         // [block][2][room]
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

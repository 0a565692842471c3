// A variant's scan, backward: what comes of a step's state row by row, then the recurrent product.
//
// It leaves the gradients of the pre-activations. Those of weights are products of these, made of all
// steps at once, by whoever calls.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class VariantBackward : VariantScan<T> {
  using Base = VariantScan<T>;
  using V = typename Base::V;
  using Base::o_, Base::kept_, Base::steps_, Base::H_, Base::R_, Base::GH_, Base::of;

 public:
  VariantBackward(const VariantBackwardArgs& a, int members)
      : Base(a, members),
        a_(a),
        product_(this->recurrent(0, o_.reset_before ? 2 : o_.gates, true)),
        late_(o_.reset_before ? this->recurrent(2, 3, true) : HeadProduct<T>()),
        projection_(this->projection(true)),
        ln_hh_(o_.norm ? GH_ : 0),
        ln_c_(o_.norm && o_.lstm() ? H_ : 0),
        peep_(o_.peepholes ? (o_.coupled ? 2 : 3) * H_ : 0),
        extra_(ln_hh_ + 2 * ln_c_ + peep_),
        own_(extra_ + (o_.own_bias() ? H_ : 0)),
        dh_(a.N * R_),
        pass_(a.N * R_),
        dc_(o_.lstm() ? a.N * H_ : 0),
        dhidden_(a.P > 0 ? a.N * H_ : 0),
        dreset_(o_.reset_before ? a.N * H_ : 0),
        own_sums_(Base::kBlocks * own_),
        scratch_(Base::kBlocks * 3 * this->room_) {}

  void member(Team::Member& m) {
    const std::int64_t early = product_.groups(), late = late_.groups();
    m.run(early + late + projection_.groups(), [&](std::int64_t i) {
      i < early          ? product_.pack(i)
      : i < early + late ? late_.pack(i - early)
                         : projection_.pack(i - early - late);
    });
    m.run(Base::kBlocks,
          [&](std::int64_t block) { std::fill_n(own_sums_.get() + block * own_, own_, T{}); });
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      take(a_.dh_n, n, R_, dh_.get());
      if (o_.lstm()) {
        take(a_.dc_n, n, H_, dc_.get());
      }
    });
    for (std::int64_t k = a_.T - 1; k >= 0; --k) {
      step(m, k);
    }
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      std::copy_n(dh_.get() + n * R_, R_, of(a_.dh0) + n * R_);
      if (o_.lstm()) {
        std::copy_n(dc_.get() + n * H_, H_, of(a_.dc0) + n * H_);
      }
    });
    m.run(1, [&](std::int64_t) { add_up(); });
  }

 private:
  struct Here {
    std::int64_t n, k, row, block;
  };

  static void take(const void* given, std::int64_t n, std::int64_t units, T* to) {
    if (given != nullptr) {
      std::copy_n(of(given) + n * units, units, to + n * units);
    } else {
      std::fill_n(to + n * units, units, T{});
    }
  }

  // Over the blocks, whose rows never change hands: the same sums whoever took them.
  void add_up() {
    for (std::int64_t i = 0; i < own_; ++i) {
      T sum{};
      for (std::int64_t block = 0; block < Base::kBlocks; ++block) {
        sum += own_sums_.get()[block * own_ + i];
      }
      (i < extra_ ? of(a_.dextra)[i] : of(a_.dbias)[i - extra_]) = sum;
    }
  }

  void step(Team::Member& m, std::int64_t k) {
    const std::int64_t batch = steps_.batch(k), first = steps_.begin(k);
    const auto each = [&](auto&& f) {
      this->for_rows(m, batch,
                     [&](std::int64_t n, std::int64_t block) { f(Here{n, k, first + n, block}); });
    };
    each([&](const Here& at) { hidden_row(at); });
    if (a_.P > 0) {
      projection_.multiply(m, of(a_.dproj) + first * a_.P, a_.P, batch,
                           [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                             store<T>(dhidden_.get() + n * H_ + unit, sums, valid);
                           });
      each([&](const Here& at) { gates_row(at); });
    }
    const T* const from = of(o_.split() ? a_.dsums : a_.dgates) + first * GH_;
    if (o_.reset_before) {
      late_.multiply(m, from, GH_, batch,
                     [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                       store<T>(dreset_.get() + n * H_ + unit, sums, valid);
                     });
      each([&](const Here& at) { resetting_row(at); });
    }
    const T scale = static_cast<T>(1 / (1 - o_.dropout));
    product_.multiply(m, from, GH_, batch,
                      [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                        const std::int64_t at = n * R_ + unit;
                        if (o_.reset_before) {
                          sums += load(dreset_.get() + at, valid);
                        }
                        if (a_.mask != nullptr) {
                          sums *= load(of(a_.mask) + at, valid) * scale;
                        }
                        store<T>(dh_.get() + at, sums + load(pass_.get() + at, valid), valid);
                      });
  }

  const T* kept(const Here& at) const { return of(a_.saved) + at.row * kept_.total; }
  T* scratch(const Here& at, int i) const {
    return scratch_.get() + (at.block * 3 + i) * this->room_;
  }
  T* own(const Here& at) const { return own_sums_.get() + at.block * own_; }
  T* gates_out(const Here& at) const { return of(a_.dgates) + at.row * GH_; }
  T* sums_out(const Here& at) const { return of(o_.split() ? a_.dsums : a_.dgates) + at.row * GH_; }

  // The state of the step before, one of `kept`'s values or what was given.
  const T* before(const Here& at, std::int64_t value, const void* given, std::int64_t units) const {
    if (at.n < steps_.batch(at.k - 1)) {
      return of(a_.saved) + (steps_.begin(at.k - 1) + at.n) * kept_.total + value;
    }
    return of(given) + at.n * units;
  }

  // The gradient of h before zoneout; what of it goes past the step.
  void hidden_row(const Here& at) {
    T* const d = dh_.get() + at.n * R_;
    T* const pass = pass_.get() + at.n * R_;
    if (a_.dy != nullptr) {
      const T* const dy = of(a_.dy) + at.row * R_;
      for_units<T>(R_, [&](std::int64_t j, std::int64_t valid) {
        store<T>(d + j, load(d + j, valid) + load(dy + j, valid), valid);
      });
    }
    if (o_.zoneout_h > 0) {
      this->zone_back(at.n, at.k, d, pass, R_, o_.zoneout_h, Base::kKeepH, scratch(at, 0));
    } else {
      std::fill_n(pass, R_, T{});
    }
    if (a_.P == 0) {
      gates_row(at);
      return;
    }
    for_units<T>(R_, [&](std::int64_t j, std::int64_t valid) {
      V v = load(d + j, valid);
      if (o_.proj_clip > 0) {
        const V h = load(kept(at) + kept_.proj + j, valid);
        const V limit = V{} + static_cast<T>(o_.proj_clip);
        v = h >= limit ? V{} : v;
        v = h <= -limit ? V{} : v;
      }
      store<T>(of(a_.dproj) + at.row * R_ + j, v, valid);
    });
  }

  void gates_row(const Here& at) {
    const T* const d = a_.P > 0 ? dhidden_.get() + at.n * H_ : dh_.get() + at.n * R_;
    if (o_.lstm()) {
      lstm_row(at, d);
    } else if (o_.gru()) {
      gru_row(at, d);
    } else {
      rnn_row(at, d);
    }
    if (o_.reset_before) {
      unsettle(at, 2, 1);
    } else {
      unsettle(at, 0, o_.gates);
    }
  }

  // From the gradients of gates from `first` on to those of the sums, through their norm.
  void unsettle(const Here& at, std::int64_t first, std::int64_t gates) {
    if (!o_.norm) {
      return;
    }
    // A GRU's candidate has left there what its past gets.
    const T* const d = (o_.own_bias() ? sums_out(at) : gates_out(at)) + first * H_;
    normalise_back<T>(kept(at) + kept_.sums + first * H_, d, gates * H_, o_.eps,
                      of(a_.ln_hh) + first * H_, sums_out(at) + first * H_, own(at) + first * H_,
                      nullptr);
  }

  // Through the output gate: the gradient of c into dc (H,), on top of what comes from later.
  void shown_row(const Here& at, const T* d, T* dc) {
    const T* const s = kept(at);
    const T* const o = s + kept_.gates + 3 * H_;
    const T* shown = s + kept_.c;
    T* const dshown = scratch(at, 1);
    if (o_.norm) {
      normalise(s + kept_.c, H_, o_.eps, of(a_.ln_c), of(a_.ln_c_bias), dshown);
      shown = dshown;
    }
    T* const d_o = gates_out(at) + (o_.coupled ? 2 : 3) * H_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V v = this->squash(load(shown + j, valid)), dh = load(d + j, valid);
      const V gate = load(o + j, valid);
      store<T>(d_o + j, dh * v * this->gate_slope(gate), valid);
      store<T>(dshown + j, dh * gate * this->squash_slope(v), valid);
    });
    if (o_.norm) {
      T* const sums = own(at) + ln_hh_;
      normalise_back<T>(s + kept_.c, dshown, H_, o_.eps, of(a_.ln_c), dshown, sums, sums + H_);
    }
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      store<T>(dc + j, load(dc + j, valid) + load(dshown + j, valid), valid);
    });
  }

  void lstm_row(const Here& at, const T* d) {
    const T* const s = kept(at);
    const T* const gates = s + kept_.gates;
    T* const dc = dc_.get() + at.n * H_;
    T* const zoned = scratch(at, 2);
    if (a_.dc != nullptr) {
      const T* const given = of(a_.dc) + at.row * H_;
      for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
        store<T>(dc + j, load(dc + j, valid) + load(given + j, valid), valid);
      });
    }
    if (o_.zoneout_c > 0) {
      this->zone_back(at.n, at.k, dc, zoned, H_, o_.zoneout_c, Base::kKeepC, scratch(at, 0));
    }
    shown_row(at, d, dc);
    const T* const state = before(at, kept_.c_kept, a_.c0, H_);
    const int f_at = o_.coupled ? 0 : 1;
    T* const out = gates_out(at) + f_at * H_;
    const T* const peep_f = o_.peepholes ? of(a_.peephole) + f_at * H_ : nullptr;
    T* const dpeep_f = o_.peepholes ? own(at) + ln_hh_ + 2 * ln_c_ + f_at * H_ : nullptr;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V i = load(gates + j, valid), f = load(gates + H_ + j, valid);
      const V g = load(gates + 2 * H_ + j, valid), past = load(state + j, valid);
      const V c = load(s + kept_.c + j, valid);
      V dv = load(dc + j, valid);
      if (o_.peepholes) {
        const V d_o = load(out + 2 * H_ + j, valid);
        dv += d_o * load(peep_f + H_ + j, valid);
        add(dpeep_f + H_ + j, d_o * c, valid);
      }
      if (o_.cell_clip > 0) {
        const V limit = V{} + static_cast<T>(o_.cell_clip);
        dv = c >= limit ? V{} : dv;
        dv = c <= -limit ? V{} : dv;
      }
      const V di = dv * g;
      V df = dv * past;
      if (o_.coupled) {
        df -= di;
      }
      df *= this->gate_slope(f);
      V later = dv * f;
      if (!o_.coupled) {
        const V d_i = di * this->gate_slope(i);
        store<T>(gates_out(at) + j, d_i, valid);
        if (o_.peepholes) {
          later += d_i * load(of(a_.peephole) + j, valid);
          add(dpeep_f - H_ + j, d_i * past, valid);
        }
      }
      if (o_.peepholes) {
        later += df * load(peep_f + j, valid);
        add(dpeep_f + j, df * past, valid);
      }
      if (o_.zoneout_c > 0) {
        later += load(zoned + j, valid);
      }
      store<T>(out + j, df, valid);
      store<T>(out + H_ + j, dv * i * this->squash_slope(g), valid);
      store<T>(dc + j, later, valid);
    });
  }

  static FUSED_RNN_INLINE void add(T* to, V v, std::int64_t valid) {
    store<T>(to, load(to, valid) + v, valid);
  }

  void gru_row(const Here& at, const T* d) {
    const T* const gates = kept(at) + kept_.gates;
    const T* const past = kept(at) + kept_.past;
    T* const out = gates_out(at);
    T* const sums = sums_out(at);
    T* const pass = pass_.get() + at.n * R_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = load(gates + j, valid), z = load(gates + H_ + j, valid);
      const V n = load(gates + 2 * H_ + j, valid), dv = load(d + j, valid);
      const V dn = dv * (T{1} - z) * this->squash_slope(n);
      const V dz = dv * (load(past + j, valid) - n) * this->gate_slope(z);
      add(pass + j, dv * z, valid);
      store<T>(out + H_ + j, dz, valid);
      store<T>(out + 2 * H_ + j, dn, valid);
      if (o_.reset_before) {
        return;  // what the reset gets comes through the product
      }
      const V dr = dn * load(gates + 3 * H_ + j, valid) * this->gate_slope(r);
      store<T>(out + j, dr, valid);
      store<T>(sums + j, dr, valid);
      store<T>(sums + H_ + j, dz, valid);
      store<T>(sums + 2 * H_ + j, dn * r, valid);
      add(own(at) + extra_ + j, dn * r, valid);
    });
  }

  // From the gradient of r h: that of r, and h's share into dreset_.
  void resetting_row(const Here& at) {
    const T* const s = kept(at);
    T* const d = dreset_.get() + at.n * H_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = load(s + kept_.gates + j, valid), dv = load(d + j, valid);
      store<T>(gates_out(at) + j, dv * load(s + kept_.heard + j, valid) * this->gate_slope(r),
               valid);
      store<T>(d + j, dv * r, valid);
    });
    unsettle(at, 0, 2);
  }

  void rnn_row(const Here& at, const T* d) {
    const T* const h = kept(at) + kept_.gates;
    const bool rectified = o_.cell == CellKind::kRnnRelu;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V v = load(h + j, valid), dv = load(d + j, valid);
      const V slope = T{1} - v * v;
      const V on = v <= V{} ? V{} : dv;
      store<T>(gates_out(at) + j, rectified ? on : dv * slope, valid);
    });
  }

  const VariantBackwardArgs& a_;
  HeadProduct<T> product_, late_, projection_;
  // Sizes of the variant's own parameters, of all of them, and of what is summed up along with them.
  const std::int64_t ln_hh_, ln_c_, peep_, extra_, own_;
  Buffer<T> dh_, pass_, dc_;    // (N, R), (N, R), (N, H)
  Buffer<T> dhidden_, dreset_;  // (N, H)
  Buffer<T> own_sums_;          // [block][own]
  Buffer<T> scratch_;           // [block][3][room]
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

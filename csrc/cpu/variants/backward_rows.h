// What backward makes of a row of a step: from the gradient of the new state to those of what the products
// have said. Through the gates, and through their norms.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class BackwardRows : protected VariantScan<T> {
 protected:
  using Base = VariantScan<T>;
  using V = typename Base::V;
  using Here = typename Base::Here;
  using Base::o_, Base::kept_, Base::steps_, Base::H_, Base::R_, Base::GH_, Base::of;

  BackwardRows(const VariantBackwardArgs& a, int members)
      : Base(a, members),
        a_(a),
        norm_(o_.norm ? GH_ : 0),
        ln_c_(o_.norm && o_.lstm() ? H_ : 0),
        extra_(2 * norm_ + 2 * ln_c_ + (o_.peepholes ? (o_.coupled ? 2 : 3) * H_ : 0)),
        own_(extra_ + GH_ + (o_.own_bias() ? H_ : 0)),
        passes_(o_.gru() || o_.zoneout_h > 0),
        dh_(a.N * R_),
        pass_(passes_ ? a.N * R_ : 0),
        dc_(o_.lstm() ? a.N * H_ : 0),
        dhidden_(a.P > 0 ? a.N * H_ : 0),
        dreset_(o_.reset_before ? a.N * H_ : 0),
        own_sums_(Base::kBlocks * own_),
        scratch_(Base::kBlocks * kScratch * this->room_) {}

  // The gradient of h before zoneout; what of it goes past the step.
  void hidden_row(const Here& at) {
    T* const d = dh_.get() + at.n * R_;
    T* const pass = passes_ ? pass_.get() + at.n * R_ : nullptr;
    T* const dproj = a_.P > 0 ? of(a_.dproj) + at.row * R_ : nullptr;
    const T* const dy = a_.dy != nullptr ? of(a_.dy) + at.row * R_ : nullptr;
    const T* const proj = o_.proj_clip > 0 ? kept(at) + kept_.proj : nullptr;
    const double clip = o_.proj_clip;
    const bool zoned = o_.zoneout_h > 0;
    Zone<T> zone{};
    if (zoned) {
      zone = this->zone(at.n, at.k, R_, o_.zoneout_h, Base::kKeepH, scratch(at, kMask));
    }
    for_units<T>(R_, [&](std::int64_t j, std::int64_t valid) {
      V v = load(d + j, valid);
      if (dy != nullptr) {
        v += load(dy + j, valid);
      }
      if (pass != nullptr) {
        const auto shares = zoned ? zone.back(v, j, valid) : typename Zone<T>::Shares{V{}, v};
        store<T>(pass + j, shares.before, valid);
        v = shares.after;
      }
      if (proj != nullptr) {
        v = unclipped<T>(v, load(proj + j, valid), clip);
      }
      store<T>((dproj != nullptr ? dproj : d) + j, v, valid);
    });
    if (a_.P == 0) {
      gates_row(at);
    }
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
      through_norm(at, 2, 3);  // the other two gates' are not known yet
    } else {
      through_norm(at, 0, o_.gates);
      settle(at);
    }
  }

  // From the gradient of r h: that of r, and h's share into dreset_.
  void resetting_row(const Here& at) {
    const Activations<T> act(o_);
    const T* const s = kept(at);
    T* const d = dreset_.get() + at.n * H_;
    T* const out = gates_out(at);
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = load(s + kept_.gates + j, valid), dv = load(d + j, valid);
      store<T>(out + j, dv * load(s + kept_.heard + j, valid) * act.gate_slope(r), valid);
      store<T>(d + j, dv * r, valid);
    });
    through_norm(at, 0, 2);
    settle(at);
  }

  T* own(std::int64_t block) const { return own_sums_.get() + block * own_; }

  const VariantBackwardArgs& a_;
  // Sizes: of a product's gains, of c's; of the variant's own parameters; of these and the biases, whose
  // gradients are summed up here: ln_ih, ln_hh, ln_c, ln_c_bias, peephole; b_ih, b_hh's last third.
  const std::int64_t norm_, ln_c_, extra_, own_;
  const bool passes_;           // whether a state's gradient goes past the step
  Buffer<T> dh_, pass_, dc_;    // (N, R), (N, R), (N, H)
  Buffer<T> dhidden_, dreset_;  // (N, H)
  Buffer<T> own_sums_;          // [block][own]
  Buffer<T> scratch_;           // [block][kScratch][room]

 private:
  static constexpr int kScratch = 3, kMask = 0, kShown = 1, kPast = 2;

  const T* kept(const Here& at) const { return of(a_.saved) + at.row * kept_.total; }
  T* scratch(const Here& at, int i) const {
    return scratch_.get() + (at.block * kScratch + i) * this->room_;
  }
  T* gates_out(const Here& at) const { return of(a_.dgates) + at.row * GH_; }
  T* sums_out(const Here& at) const { return of(o_.split() ? a_.dsums : a_.dgates) + at.row * GH_; }

  // The state of the step before, one of `kept`'s values or what was given.
  const T* before(const Here& at, std::int64_t value, const void* given, std::int64_t units) const {
    if (at.n < steps_.batch(at.k - 1)) {
      return of(a_.saved) + (steps_.begin(at.k - 1) + at.n) * kept_.total + value;
    }
    return of(given) + at.n * units;
  }

  static FUSED_RNN_INLINE void add(T* to, V v, std::int64_t valid) {
    store<T>(to, load(to, valid) + v, valid);
  }

  // From the gradients of gates from `first` to `last` - 1 to those of the recurrent sums, which have a
  // norm in common.
  void through_norm(const Here& at, std::int64_t first, std::int64_t last) {
    if (!o_.norm) {
      return;
    }
    // A GRU's candidate has left there what its past gets.
    const T* const d = (o_.own_bias() ? sums_out(at) : gates_out(at)) + first * H_;
    const int which = first > 0 ? VariantKept::kOfLate : VariantKept::kOfH;
    normalise_back<T>(kept(at) + kept_.sums + first * H_,
                      Moments<T>::read(kept(at) + kept_.stats, which), d, (last - first) * H_,
                      of(a_.ln_hh) + first * H_, sums_out(at) + first * H_,
                      own(at.block) + norm_ + first * H_);
  }

  // The gradients of all gates are known: the bias', and through the norm that of the input's product.
  void settle(const Here& at) {
    T* const d = gates_out(at);
    T* const dbias = own(at.block) + extra_;
    for_units<T>(GH_, [&](std::int64_t j, std::int64_t valid) {
      add(dbias + j, load(d + j, valid), valid);
    });
    if (o_.norm) {
      normalise_back<T>(of(a_.gates_x) + at.row * GH_,
                        Moments<T>::read(kept(at) + kept_.stats, VariantKept::kOfX), d, GH_,
                        of(a_.ln_ih), d, own(at.block));
    }
  }

  // Through the output gate: the gradient of c into dc (H,), on top of what comes from later.
  void shown_row(const Here& at, const T* d, T* dc) {
    const Activations<T> act(o_);
    const T* const s = kept(at);
    const T* const o = s + kept_.gates + 3 * H_;
    const T* const c = s + kept_.c;
    T* const d_o = gates_out(at) + (o_.coupled ? 2 : 3) * H_;
    if (!o_.norm) {
      for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
        const V v = act.squash(load(c + j, valid)), dh = load(d + j, valid);
        const V gate = load(o + j, valid);
        store<T>(d_o + j, dh * v * act.gate_slope(gate), valid);
        add(dc + j, dh * gate * act.squash_slope(v), valid);
      });
      return;
    }
    const auto m = Moments<T>::read(s + kept_.stats, VariantKept::kOfC);
    const T *const gain = of(a_.ln_c), *const bias = of(a_.ln_c_bias);
    T *const dshown = scratch(at, kShown), *const dgain = own(at.block) + 2 * norm_;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V shown = m.hat(load(c + j, valid)) * load(gain + j, valid) + load(bias + j, valid);
      const V v = act.squash(shown), dh = load(d + j, valid), gate = load(o + j, valid);
      const V dv = dh * gate * act.squash_slope(v);
      store<T>(d_o + j, dh * v * act.gate_slope(gate), valid);
      store<T>(dshown + j, dv, valid);
      add(dgain + H_ + j, dv, valid);
    });
    normalise_back<T>(c, m, dshown, H_, gain, dshown, dgain);
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      add(dc + j, load(dshown + j, valid), valid);
    });
  }

  void lstm_row(const Here& at, const T* d) {
    const Activations<T> act(o_);
    const T* const s = kept(at);
    const T* const gates = s + kept_.gates;
    const T* const every_c = s + kept_.c;
    T* const dc = dc_.get() + at.n * H_;
    if (a_.dc != nullptr) {
      const T* const given = of(a_.dc) + at.row * H_;
      for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
        add(dc + j, load(given + j, valid), valid);
      });
    }
    const bool zoned = o_.zoneout_c > 0, coupled = o_.coupled;
    const double clip = o_.cell_clip;
    const std::int64_t H = H_;
    T* const past_c = scratch(at, kPast);  // what the old c gets, which the new one does not
    if (zoned) {
      const Zone<T> zone =
          this->zone(at.n, at.k, H, o_.zoneout_c, Base::kKeepC, scratch(at, kMask));
      for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
        const auto shares = zone.back(load(dc + j, valid), j, valid);
        store<T>(past_c + j, shares.before, valid);
        store<T>(dc + j, shares.after, valid);
      });
    }
    shown_row(at, d, dc);
    const T* const state = before(at, kept_.c_kept, a_.c0, H);
    const std::int64_t f_at = coupled ? 0 : H;
    T *const d_i = gates_out(at), *const out = d_i + f_at;
    const T* const peep = of(a_.peephole);
    const T* const peep_f = peep != nullptr ? peep + f_at : nullptr;
    T* const dpeep = own(at.block) + 2 * norm_ + 2 * ln_c_;
    T* const dpeep_f = dpeep + f_at;
    for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
      const V i = load(gates + j, valid), f = load(gates + H + j, valid);
      const V g = load(gates + 2 * H + j, valid), past = load(state + j, valid);
      const V c = load(every_c + j, valid);
      V dv = load(dc + j, valid);
      if (peep != nullptr) {
        const V d_o = load(out + 2 * H + j, valid);
        dv += d_o * load(peep_f + H + j, valid);
        add(dpeep_f + H + j, d_o * c, valid);
      }
      if (clip > 0) {
        dv = unclipped<T>(dv, c, clip);
      }
      const V di = dv * g;
      V df = dv * past;
      if (coupled) {
        df -= di;
      }
      df *= act.gate_slope(f);
      V later = dv * f;
      if (!coupled) {
        const V of_i = di * act.gate_slope(i);
        store<T>(d_i + j, of_i, valid);
        if (peep != nullptr) {
          later += of_i * load(peep + j, valid);
          add(dpeep + j, of_i * past, valid);
        }
      }
      if (peep != nullptr) {
        later += df * load(peep_f + j, valid);
        add(dpeep_f + j, df * past, valid);
      }
      if (zoned) {
        later += load(past_c + j, valid);
      }
      store<T>(out + j, df, valid);
      store<T>(out + H + j, dv * i * act.squash_slope(g), valid);
      store<T>(dc + j, later, valid);
    });
  }

  void gru_row(const Here& at, const T* d) {
    const Activations<T> act(o_);
    const bool reset_before = o_.reset_before;
    const std::int64_t H = H_;
    const T* const gates = kept(at) + kept_.gates;
    const T* const past = kept(at) + kept_.past;
    T *const out = gates_out(at), *const sums = sums_out(at);
    T* const pass = pass_.get() + at.n * R_;
    T* const dbias = own(at.block) + extra_ + GH_;
    for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
      const V r = load(gates + j, valid), z = load(gates + H + j, valid);
      const V n = load(gates + 2 * H + j, valid), dv = load(d + j, valid);
      const V dn = dv * (T{1} - z) * act.squash_slope(n);
      const V dz = dv * (load(past + j, valid) - n) * act.gate_slope(z);
      add(pass + j, dv * z, valid);
      store<T>(out + H + j, dz, valid);
      store<T>(out + 2 * H + j, dn, valid);
      if (reset_before) {
        return;  // what the reset gets comes through the product
      }
      const V dr = dn * load(gates + 3 * H + j, valid) * act.gate_slope(r);
      store<T>(out + j, dr, valid);
      store<T>(sums + j, dr, valid);
      store<T>(sums + H + j, dz, valid);
      store<T>(sums + 2 * H + j, dn * r, valid);
      add(dbias + j, dn * r, valid);
    });
  }

  void rnn_row(const Here& at, const T* d) {
    const Activations<T> act(o_);
    const T* const h = kept(at) + kept_.gates;
    T* const out = gates_out(at);
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V slope = act.squash_slope(load(h + j, valid)), dv = load(d + j, valid);
      store<T>(out + j, dv * slope, valid);
    });
  }
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// What forward makes of a row of a step: from what the products say to the gates to the new state.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class ForwardRows : protected ForwardState<T> {
 protected:
  using Base = ForwardState<T>;
  using V = typename Base::V;
  using Here = typename Base::Here;
  template <bool kNorm>
  using Said = typename Base::template Said<kNorm>;
  using Out = typename Base::Out;
  using Base::a_, Base::o_, Base::kept_, Base::training_, Base::H_, Base::R_, Base::GH_, Base::of;
  using Base::bias_, Base::h_, Base::c_, Base::reset_h_, Base::hidden_, Base::proj_, Base::update_;
  using Base::kept, Base::scratch, Base::stats, Base::out_of, Base::heard;

  ForwardRows(const VariantForwardArgs& a, int members) : Base(a, members) {}

  void early_row(const Here& at) {
    if (training_) {
      std::copy_n(heard(at.n), R_, kept(at) + kept_.heard);
      if (kept_.past != kept_.heard) {
        std::copy_n(h_.get() + at.n * R_, R_, kept(at) + kept_.past);
      }
    }
    o_.norm ? gates_row<true>(at) : gates_row<false>(at);
  }

  // A GRU's candidate, where the reset comes before its product.
  void late_row(const Here& at) { o_.norm ? candidate_row<true>(at) : candidate_row<false>(at); }

  void projected_row(const Here& at) {
    const T* const from = proj_.get() + at.n * a_.P;
    const Out out = out_of(at);
    for_units<T>(a_.P, [&](std::int64_t j, std::int64_t valid) {
      V h = load(from + j, valid);
      if (o_.proj_clip > 0) {
        if (training_) {
          store<T>(kept(at) + kept_.proj + j, h, valid);
        }
        h = clipped<T>(h, o_.proj_clip);
      }
      out.take(h, j, valid);
    });
  }

 private:
  template <bool kNorm>
  void gates_row(const Here& at) {
    if (o_.lstm()) {
      lstm_row<kNorm>(at);
    } else if (!o_.gru()) {
      rnn_row<kNorm>(at);
    } else if (o_.reset_before) {
      resetting_row<kNorm>(at);
    } else {
      gru_row<kNorm>(at);
    }
  }

  template <bool kNorm>
  void lstm_row(const Here& at) {
    const Said<kNorm> said = this->template said<kNorm>(at, 0, o_.gates);
    const Activations<T> act(o_);
    const Out out = out_of(at);
    const bool training = training_, coupled = o_.coupled, zoned = o_.zoneout_c > 0;
    const double clip = o_.cell_clip;
    const std::int64_t H = H_, f_at = coupled ? 0 : H;
    const T* const peep = of(a_.peephole);
    const T* const peep_f = peep != nullptr ? peep + f_at : nullptr;
    T* const state = c_.get() + at.n * H;
    T* const every_c = a_.c != nullptr ? of(a_.c) + at.row * H : nullptr;
    T* const gates = training ? kept(at) + kept_.gates : nullptr;
    T* const o_row = training ? gates + 3 * H : scratch(at, Base::kOutput);
    T* const c_row = training ? kept(at) + kept_.c : scratch(at, Base::kCell);
    T* const c_kept = training && zoned ? kept(at) + kept_.c_kept : nullptr;
    T* const hidden = a_.P > 0 ? hidden_.get() + at.n * H : nullptr;
    T* const kept_hidden = training && a_.P > 0 ? kept(at) + kept_.hidden : nullptr;
    const auto show = [&](V h, std::int64_t j, std::int64_t valid) {
      if (hidden == nullptr) {
        out.take(h, j, valid);
        return;
      }
      store<T>(hidden + j, h, valid);
      if (kept_hidden != nullptr) {
        store<T>(kept_hidden + j, h, valid);
      }
    };
    Zone<T> zone{};
    if (zoned) {
      zone = this->zone(at.n, at.k, H, o_.zoneout_c, Base::kKeepC, scratch(at, Base::kMaskC));
    }
    for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
      const V before = load(state + j, valid);
      V a_f = said.pre(f_at + j, valid), a_o = said.pre(f_at + 2 * H + j, valid);
      if (peep != nullptr) {
        a_f += load(peep_f + j, valid) * before;
      }
      const V f = act.gate(a_f), g = act.squash(said.pre(f_at + H + j, valid));
      V i = T{1} - f;
      if (!coupled) {
        V a_i = said.pre(j, valid);
        if (peep != nullptr) {
          a_i += load(peep + j, valid) * before;
        }
        i = act.gate(a_i);
      }
      V after = f * before + i * g;
      if (clip > 0) {
        after = clipped<T>(after, clip);
      }
      if (peep != nullptr) {
        a_o += load(peep_f + H + j, valid) * after;
      }
      const V o = act.gate(a_o);
      if (training) {
        store<T>(gates + j, i, valid);
        store<T>(gates + H + j, f, valid);
        store<T>(gates + 2 * H + j, g, valid);
      }
      if (training || kNorm) {
        store<T>(o_row + j, o, valid);
        store<T>(c_row + j, after, valid);
      }
      const V carried = zoned ? zone.of(before, after, j, valid) : after;
      store<T>(state + j, carried, valid);
      if (c_kept != nullptr) {
        store<T>(c_kept + j, carried, valid);
      }
      if (every_c != nullptr) {
        store<T>(every_c + j, carried, valid);
      }
      if (!kNorm) {
        show(o * act.squash(after), j, valid);
      }
    });
    if constexpr (kNorm) {
      const Moments<T> m = moments_of(c_row, H, o_.eps);
      m.write(stats(at), VariantKept::kOfC);
      const T *const gain = of(a_.ln_c), *const bias = of(a_.ln_c_bias);
      for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
        const V shown =
            m.hat(load(c_row + j, valid)) * load(gain + j, valid) + load(bias + j, valid);
        show(load(o_row + j, valid) * act.squash(shown), j, valid);
      });
    }
  }

  template <bool kNorm>
  void gru_row(const Here& at) {
    const Said<kNorm> said = this->template said<kNorm>(at, 0, 3);
    const Activations<T> act(o_);
    const Out out = out_of(at);
    const std::int64_t H = H_;
    const T* const own_bias = bias_.get() + GH_;
    T* const gates = training_ ? kept(at) + kept_.gates : nullptr;
    for_units<T>(H, [&](std::int64_t j, std::int64_t valid) {
      const V r = act.gate(said.pre(j, valid)), z = act.gate(said.pre(H + j, valid));
      const V past = said.from_h(2 * H + j, valid) + load(own_bias + j, valid);
      const V from_x = said.from_x(2 * H + j, valid) + load(said.bias + 2 * H + j, valid);
      const V n = act.squash(from_x + r * past);
      if (gates != nullptr) {
        store<T>(gates + j, r, valid);
        store<T>(gates + H + j, z, valid);
        store<T>(gates + 2 * H + j, n, valid);
        store<T>(gates + 3 * H + j, past, valid);
      }
      out.take((T{1} - z) * n + z * load(out.h + j, valid), j, valid);
    });
  }

  T* update_of(const Here& at) const {
    return training_ ? kept(at) + kept_.gates + H_ : update_.get() + at.n * H_;
  }

  // Reset and update, and what the candidate hears.
  template <bool kNorm>
  void resetting_row(const Here& at) {
    const Said<kNorm> said = this->template said<kNorm>(at, 0, 2);
    const Activations<T> act(o_);
    const T* const h = heard(at.n);
    T* const update = update_of(at);
    T* const reset_h = reset_h_.get() + at.n * H_;
    T* const s = training_ ? kept(at) : nullptr;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V r = act.gate(said.pre(j, valid)), z = act.gate(said.pre(H_ + j, valid));
      const V reset = r * load(h + j, valid);
      store<T>(update + j, z, valid);
      store<T>(reset_h + j, reset, valid);
      if (s != nullptr) {
        store<T>(s + kept_.gates + j, r, valid);
        store<T>(s + kept_.reset_h + j, reset, valid);
      }
    });
  }

  template <bool kNorm>
  void candidate_row(const Here& at) {
    const Said<kNorm> said = this->template said<kNorm>(at, 2, 3);
    const Activations<T> act(o_);
    const Out out = out_of(at);
    const T* const update = update_of(at);
    T* const kept_n = training_ ? kept(at) + kept_.gates + 2 * H_ : nullptr;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V n = act.squash(said.pre(2 * H_ + j, valid)), z = load(update + j, valid);
      if (kept_n != nullptr) {
        store<T>(kept_n + j, n, valid);
      }
      out.take((T{1} - z) * n + z * load(out.h + j, valid), j, valid);
    });
  }

  template <bool kNorm>
  void rnn_row(const Here& at) {
    const Said<kNorm> said = this->template said<kNorm>(at, 0, 1);
    const Activations<T> act(o_);
    const Out out = out_of(at);
    T* const kept_h = training_ ? kept(at) + kept_.gates : nullptr;
    for_units<T>(H_, [&](std::int64_t j, std::int64_t valid) {
      const V h = act.squash(said.pre(j, valid));
      if (kept_h != nullptr) {
        store<T>(kept_h + j, h, valid);
      }
      out.take(h, j, valid);
    });
  }
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

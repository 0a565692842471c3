// What forward keeps from step to step, and what the arithmetic on its rows reads and writes.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class ForwardState : protected VariantScan<T> {
 protected:
  using Base = VariantScan<T>;
  using V = typename Base::V;
  using Here = typename Base::Here;
  using Base::o_, Base::kept_, Base::H_, Base::R_, Base::GH_, Base::of;

  ForwardState(const VariantForwardArgs& a, int members)
      : Base(a, members),
        a_(a),
        training_(a.saved != nullptr),
        sums_step_(o_.norm && training_ ? kept_.total : GH_),
        bias_(GH_ + H_),
        h_(a.N * R_),
        heard_(a.mask != nullptr ? a.N * R_ : 0),
        c_(o_.lstm() ? a.N * H_ : 0),
        sums_(o_.norm && training_ ? 0 : a.N * GH_),
        reset_h_(o_.reset_before ? a.N * H_ : 0),
        hidden_(a.P > 0 ? a.N * H_ : 0),
        proj_(a.P > 0 ? a.N * a.P : 0),
        update_(o_.reset_before && !training_ ? a.N * H_ : 0),
        stats_(training_ ? 0 : a.N * VariantKept::kStats),
        scratch_(Base::kBlocks * kScratch * this->room_) {
    const auto bias = [&](const void* b, std::int64_t j) { return b != nullptr ? of(b)[j] : T{}; };
    for (std::int64_t j = 0; j < GH_; ++j) {
      const bool own = o_.own_bias() && j >= 2 * H_;
      bias_.get()[j] = bias(a.b_ih, j) + (own ? T{} : bias(a.b_hh, j));
      if (own) {
        bias_.get()[GH_ + j - 2 * H_] = bias(a.b_hh, j);
      }
    }
  }

  // Where the products of a step's first row go, and how far apart those of the others do: where they are
  // kept, in training with norms.
  T* sums(std::int64_t first) const {
    return o_.norm && training_ ? of(a_.saved) + first * kept_.total + kept_.sums : sums_.get();
  }

  const T* heard(std::int64_t n) const {
    return (a_.mask != nullptr ? heard_.get() : h_.get()) + n * R_;
  }

  void begin_row(std::int64_t n) {
    const T* const h0 = of(a_.h0) + n * R_;
    const Out out = out_of(Here{n, 0, 0, 0}, false);
    for_units<T>(
        R_, [&](std::int64_t j, std::int64_t valid) { out.carry(load(h0 + j, valid), j, valid); });
    if (o_.lstm()) {
      std::copy_n(of(a_.c0) + n * H_, H_, c_.get() + n * H_);
    }
  }

  static constexpr int kScratch = 4, kMaskH = 0, kMaskC = 1, kOutput = 2, kCell = 3;

  T* kept(const Here& at) const { return of(a_.saved) + at.row * kept_.total; }
  T* scratch(const Here& at, int i) const {
    return scratch_.get() + (at.block * kScratch + i) * this->room_;
  }
  T* stats(const Here& at) const {
    return training_ ? kept(at) + kept_.stats : stats_.get() + at.n * VariantKept::kStats;
  }

  // Where a row's new h goes: through zoneout to the state, the output, and what the next step hears.
  struct Out {
    T *h, *y, *heard;
    const T* mask;
    T scale;
    bool zoned;
    Zone<T> zone;

    FUSED_RNN_INLINE void carry(V v, std::int64_t j, std::int64_t valid) const {
      store<T>(h + j, v, valid);
      if (mask != nullptr) {
        store<T>(heard + j, v * load(mask + j, valid) * scale, valid);
      }
    }
    FUSED_RNN_INLINE void take(V v, std::int64_t j, std::int64_t valid) const {
      if (zoned) {
        v = zone.of(load(h + j, valid), v, j, valid);
      }
      carry(v, j, valid);
      store<T>(y + j, v, valid);
    }
  };

  Out out_of(const Here& at, bool zones = true) const {
    Out out{};
    out.h = h_.get() + at.n * R_;
    out.y = of(a_.y) + at.row * R_;
    out.zoned = zones && o_.zoneout_h > 0;
    if (a_.mask != nullptr) {
      out.heard = heard_.get() + at.n * R_;
      out.mask = of(a_.mask) + at.n * R_;
      out.scale = static_cast<T>(1 / (1 - o_.dropout));
    }
    if (out.zoned) {
      out.zone = this->zone(at.n, at.k, R_, o_.zoneout_h, Base::kKeepH, scratch(at, kMaskH));
    }
    return out;
  }

  // What the products say to the gates of a row, as their norms have it.
  template <bool kNorm>
  struct Said {
    const T *x, *h, *bias, *gain_x, *gain_h;  // (G*H,)
    Moments<T> of_x, of_h;

    FUSED_RNN_INLINE V from_x(std::int64_t j, std::int64_t valid) const {
      const V v = load(x + j, valid);
      return kNorm ? of_x.hat(v) * load(gain_x + j, valid) : v;
    }
    FUSED_RNN_INLINE V from_h(std::int64_t j, std::int64_t valid) const {
      const V v = load(h + j, valid);
      return kNorm ? of_h.hat(v) * load(gain_h + j, valid) : v;
    }
    FUSED_RNN_INLINE V pre(std::int64_t j, std::int64_t valid) const {
      return from_x(j, valid) + from_h(j, valid) + load(bias + j, valid);
    }
  };

  // To gates from `first` to `last` - 1, whose recurrent sums have a norm in common.
  template <bool kNorm>
  Said<kNorm> said(const Here& at, std::int64_t first, std::int64_t last) const {
    const T* const h = sums(at.row - at.n) + at.n * sums_step_;
    Said<kNorm> s{of(a_.gates_x) + at.row * GH_, h, bias_.get(), nullptr, nullptr, {}, {}};
    if constexpr (kNorm) {
      s.gain_x = of(a_.ln_ih), s.gain_h = of(a_.ln_hh);
      const bool late = first > 0;
      s.of_x = late ? Moments<T>::read(stats(at), VariantKept::kOfX) : moments_of(s.x, GH_, o_.eps);
      s.of_h = moments_of(h + first * H_, (last - first) * H_, o_.eps);
      s.of_x.write(stats(at), VariantKept::kOfX);
      s.of_h.write(stats(at), late ? VariantKept::kOfLate : VariantKept::kOfH);
    }
    return s;
  }

  const VariantForwardArgs& a_;
  const bool training_;
  const std::int64_t sums_step_;
  Buffer<T> bias_;                            // (G*H,), and (H,) of the reset's own; see own_bias
  Buffer<T> h_, heard_, c_;                   // (N, R), (N, R), (N, H)
  Buffer<T> sums_, reset_h_, hidden_, proj_;  // (N, G*H), (N, H), (N, H), (N, P)
  Buffer<T> update_, stats_;                  // (N, H), (N, kStats), where nothing is saved
  Buffer<T> scratch_;                         // [block][kScratch][room]
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

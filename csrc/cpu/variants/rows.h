// What forward and backward share: sizes, how rows are cut, activations, zoneout.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// The gates' activations and their slopes. By value: of an object that others know a compiler reads the
// options again after every store.
template <class T>
struct Activations {
  using V = Vec<T>;

  explicit Activations(const VariantOptions& o)
      : hard(o.hard),
        rectified(o.lstm() || o.gru() ? o.relu : o.cell == CellKind::kRnnRelu),
        alpha(static_cast<T>(o.alpha)),
        beta(static_cast<T>(o.beta)) {}

  const bool hard, rectified;
  const T alpha, beta;

  FUSED_RNN_INLINE V gate(V a) const {
    if (!hard) {
      return sigmoid(a);
    }
    const V one = V{} + T{1}, v = a * alpha + beta;
    const V low = v < V{} ? V{} : v;
    return low > one ? one : low;
  }
  // Its slope where its value is s.
  FUSED_RNN_INLINE V gate_slope(V s) const {
    const V one = V{} + T{1};
    if (!hard) {
      return s * (one - s);
    }
    const V low = s <= V{} ? V{} : V{} + alpha;
    return s >= one ? V{} : low;
  }
  FUSED_RNN_INLINE V squash(V a) const { return rectified ? relu(a) : tanh(a); }
  FUSED_RNN_INLINE V squash_slope(V v) const {
    const V one = V{} + T{1};
    if (!rectified) {
      return one - v * v;
    }
    return v <= V{} ? V{} : one;
  }
};

template <class T>
FUSED_RNN_INLINE Vec<T> clipped(Vec<T> v, double limit) {
  const Vec<T> high = Vec<T>{} + static_cast<T>(limit), low = Vec<T>{} - static_cast<T>(limit);
  const Vec<T> below = v > high ? high : v;
  return below < low ? low : below;
}

// The gradient of what was clipped to v.
template <class T>
FUSED_RNN_INLINE Vec<T> unclipped(Vec<T> d, Vec<T> v, double limit) {
  const Vec<T> high = Vec<T>{} + static_cast<T>(limit);
  d = v >= high ? Vec<T>{} : d;
  return v <= -high ? Vec<T>{} : d;
}

// What zoneout does to the units of a row, by a mask or by the expectation.
template <class T>
struct Zone {
  using V = Vec<T>;

  const T* keep;  // 1 where a unit keeps its old value, else 0; null: the expectation
  T kept, rest;

  FUSED_RNN_INLINE V of(V before, V after, std::int64_t j, std::int64_t valid) const {
    if (keep == nullptr) {
      return before * kept + after * rest;
    }
    return load(keep + j, valid) != V{} ? before : after;
  }

  // The shares of a gradient that the old value gets and the new one. Chosen, not multiplied: zero times
  // what overflowed is no zero.
  struct Shares {
    V before, after;
  };
  FUSED_RNN_INLINE Shares back(V d, std::int64_t j, std::int64_t valid) const {
    if (keep == nullptr) {
      return {d * kept, d * rest};
    }
    const V keeps = load(keep + j, valid);
    return {keeps != V{} ? d : V{}, keeps != V{} ? V{} : d};
  }
};

template <class T>
class VariantScan {
 protected:
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int kKeepH = 0, kKeepC = 1;
  // Rows are cut the same way whoever takes them: sums over rows must not depend on that. Of few rows,
  // as each block has sums of its own, which are to stay in the cache.
  static constexpr std::int64_t kBlocks = 32, kBlockRows = 4;

  explicit VariantScan(const VariantArgs& a, int members)
      : args_(a),
        o_(a.options),
        kept_(a.options, a.H, a.P),
        steps_(a.T, a.N, a.batch_sizes, a.reverse),
        H_(a.H),
        R_(a.P > 0 ? a.P : a.H),
        GH_(a.options.gates * a.H),
        block_rows_(std::max(ceil_div(a.N, kBlocks), kBlockRows)),
        room_(ceil_div(std::max(H_, R_), std::int64_t{64}) * 64),
        members_(members) {}

  // Where a sequence is in a step.
  struct Here {
    std::int64_t n, k, row, block;
  };

  // The time of scan step k.
  std::int64_t time(std::int64_t k) const { return args_.reverse ? args_.T - 1 - k : k; }

  std::int64_t blocks() const { return ceil_div(args_.N, block_rows_); }

  // Calls f(n, block) for the sequences that step k has, and some of the steps' rows in each call.
  template <class F>
  void for_rows(Team::Member& m, std::int64_t rows, F&& f) const {
    m.run(ceil_div(rows, block_rows_), [&](std::int64_t block) {
      const std::int64_t last = std::min(rows, (block + 1) * block_rows_);
      for (std::int64_t n = block * block_rows_; n < last; ++n) {
        f(n, block);
      }
    });
  }

  // Zoneout of sequence n in step k; its mask, where one is drawn, into keep (room_,).
  Zone<T> zone(std::int64_t n, std::int64_t k, std::int64_t units, double p, int which,
               T* keep) const {
    if (args_.draws != nullptr) {
      draw(n, k, units, p, which, keep);
    }
    return {args_.draws != nullptr ? keep : nullptr, static_cast<T>(p), static_cast<T>(1 - p)};
  }

  void draw(std::int64_t n, std::int64_t k, std::int64_t units, double p, int which,
            T* keep) const {
    const std::int64_t* const of = args_.draws + 3 * n;
    const Draw draw{static_cast<std::uint32_t>(of[1] + time(k)), static_cast<std::uint32_t>(of[2]),
                    static_cast<std::uint32_t>(which), static_cast<std::uint64_t>(of[0])};
    const auto limit = static_cast<std::uint64_t>(std::nearbyint(p * 4294967296.0));
    if (limit == 0) {
      std::fill_n(keep, room_, T{0});
      return;
    }
    const auto last = static_cast<std::uint32_t>(limit - 1);
    for (std::int64_t j = 0; j < units; j += 64) {
      philox(static_cast<std::uint32_t>(j / 64), draw, [&](std::uint32_t first, Words words) {
        const Words keeps = same_bits<Words>(words <= last);
        if constexpr (sizeof(T) == sizeof(std::uint32_t)) {
          store<T>(keep + j + first, same_bits<V>(keeps & same_bits<Words>(V{} + T{1})));
        } else {
          for (std::int64_t i = 0; i < kLanes<float>; ++i) {
            keep[j + first + i] = keeps[i] != 0 ? T{1} : T{0};
          }
        }
      });
    }
  }

  HeadProduct<T> recurrent(int first, int last, bool back) const {
    return HeadProduct<T>(args_.w_hh, o_.heads, o_.gates, first, last, H_ / o_.heads, R_ / o_.heads,
                          back, args_.N, members_);
  }
  HeadProduct<T> projection(bool back) const {
    if (args_.P == 0) {
      return HeadProduct<T>();
    }
    return HeadProduct<T>(args_.w_hr, 1, 1, 0, 1, args_.P, H_, back, args_.N, members_);
  }

  static const T* of(const void* p) { return static_cast<const T*>(p); }
  static T* of(void* p) { return static_cast<T*>(p); }

  const VariantArgs& args_;
  const VariantOptions o_;
  const VariantKept kept_;
  const Steps steps_;
  const std::int64_t H_, R_, GH_, block_rows_, room_;
  const int members_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// What forward and backward share: arithmetic on the rows of a step, and the masks.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// Philox4x32-10 (Salmon et al. 2011) for 64 units: 16 counters, whose four words are of 16 units each.
inline void philox(std::uint32_t block, std::uint32_t step, std::uint32_t number,
                   std::uint32_t which, std::uint64_t seed, std::uint32_t* out) {
  constexpr int kL = 16;
  std::uint32_t a[kL], b[kL], c[kL], d[kL];
  for (int l = 0; l < kL; ++l) {
    a[l] = block * kL + static_cast<std::uint32_t>(l);
    b[l] = step, c[l] = number, d[l] = which;
  }
  std::uint32_t k = static_cast<std::uint32_t>(seed), q = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < kL; ++l) {
      const std::uint64_t first = std::uint64_t{0xD2511F53u} * a[l];
      const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * c[l];
      a[l] = static_cast<std::uint32_t>(second >> 32) ^ b[l] ^ k;
      c[l] = static_cast<std::uint32_t>(first >> 32) ^ d[l] ^ q;
      b[l] = static_cast<std::uint32_t>(second);
      d[l] = static_cast<std::uint32_t>(first);
    }
    k += 0x9E3779B9u, q += 0xBB67AE85u;
  }
  std::memcpy(out, a, sizeof(a));
  std::memcpy(out + kL, b, sizeof(b));
  std::memcpy(out + 2 * kL, c, sizeof(c));
  std::memcpy(out + 3 * kL, d, sizeof(d));
}

template <class T>
struct Moments {
  T mean, scale;  // 1 / sqrt(variance + eps)
};

template <class T>
T sum_of(Vec<T> v) {
  T sum{};
  for (std::int64_t i = 0; i < kLanes<T>; ++i) {
    sum += v[i];
  }
  return sum;
}

// Calls f(first unit, how many) for vectors of `units` units.
template <class T, class F>
FUSED_RNN_INLINE void for_units(std::int64_t units, F&& f) {
  std::int64_t j = 0;
  for (; j + kLanes<T> <= units; j += kLanes<T>) {
    f(j, kLanes<T>);
  }
  if (j < units) {
    f(j, units - j);
  }
}

// Lanes from `valid` on as zero: what is computed from the zeros there may be anything.
template <class T>
FUSED_RNN_INLINE Vec<T> only(Vec<T> v, std::int64_t valid) {
  for (std::int64_t i = valid; i < kLanes<T>; ++i) {
    v[i] = T{};
  }
  return v;
}

template <class T>
Moments<T> moments_of(const T* row, std::int64_t units, double eps) {
  Vec<T> sum{};
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) { sum += load(row + j, valid); });
  const T mean = sum_of<T>(sum) / static_cast<T>(units);
  Vec<T> squares{};
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    const Vec<T> d = only<T>(load(row + j, valid) - mean, valid);
    squares += d * d;
  });
  const T variance = sum_of<T>(squares) / static_cast<T>(units);
  return {mean, T{1} / std::sqrt(variance + static_cast<T>(eps))};
}

// out = gain (row - mean) scale + bias; `out` may be `row`.
template <class T>
void normalise(const T* row, std::int64_t units, double eps, const T* gain, const T* bias, T* out) {
  const Moments<T> m = moments_of(row, units, eps);
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    Vec<T> v = (load(row + j, valid) - m.mean) * m.scale * load(gain + j, valid);
    if (bias != nullptr) {
      v += load(bias + j, valid);
    }
    store<T>(out + j, v, valid);
  });
}

// From the gradient `d` of what is normalised that of `row`, into `out`, which may be `d`; adds the
// gain's, and the bias' where there is one.
template <class T>
void normalise_back(const T* row, const T* d, std::int64_t units, double eps, const T* gain, T* out,
                    T* dgain, T* dbias) {
  const Moments<T> m = moments_of(row, units, eps);
  Vec<T> sum{}, product{};
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    const Vec<T> hat = (load(row + j, valid) - m.mean) * m.scale;
    const Vec<T> dv = load(d + j, valid), g = dv * load(gain + j, valid);
    sum += g;
    product += g * hat;
    store<T>(dgain + j, load(dgain + j, valid) + dv * hat, valid);
    if (dbias != nullptr) {
      store<T>(dbias + j, load(dbias + j, valid) + dv, valid);
    }
  });
  const T mean = sum_of<T>(sum) / static_cast<T>(units);
  const T slope = sum_of<T>(product) / static_cast<T>(units);
  for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
    const Vec<T> hat = (load(row + j, valid) - m.mean) * m.scale;
    const Vec<T> g = load(d + j, valid) * load(gain + j, valid);
    store<T>(out + j, (g - mean - hat * slope) * m.scale, valid);
  });
}

// Of both passes: sizes, activations, zoneout.
template <class T>
class VariantScan {
 protected:
  using V = Vec<T>;
  static constexpr std::int64_t kW = kLanes<T>;
  static constexpr int kKeepH = 0, kKeepC = 1;
  // Rows are cut the same way whoever takes them: sums over rows must not depend on that.
  static constexpr std::int64_t kBlocks = 32;

  explicit VariantScan(const VariantArgs& a, int members)
      : args_(a),
        o_(a.options),
        kept_(a.options, a.H, a.P),
        steps_(a.T, a.N, a.batch_sizes, a.reverse),
        H_(a.H),
        R_(a.P > 0 ? a.P : a.H),
        GH_(a.options.gates * a.H),
        block_rows_(std::max<std::int64_t>(ceil_div(a.N, kBlocks), 1)),
        room_(ceil_div(std::max(H_, R_), std::int64_t{64}) * 64),
        members_(members) {}

  // The time of scan step k.
  std::int64_t time(std::int64_t k) const { return args_.reverse ? args_.T - 1 - k : k; }

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

  FUSED_RNN_INLINE V gate(V a) const {
    if (!o_.hard) {
      return sigmoid(a);
    }
    const V one = V{} + T{1}, v = a * static_cast<T>(o_.alpha) + static_cast<T>(o_.beta);
    const V low = v < V{} ? V{} : v;
    return low > one ? one : low;
  }
  // Its slope where its value is s.
  FUSED_RNN_INLINE V gate_slope(V s) const {
    const V one = V{} + T{1};
    if (!o_.hard) {
      return s * (one - s);
    }
    const V low = s <= V{} ? V{} : V{} + static_cast<T>(o_.alpha);
    return s >= one ? V{} : low;
  }
  FUSED_RNN_INLINE V squash(V a) const { return o_.relu ? relu(a) : tanh(a); }
  FUSED_RNN_INLINE V squash_slope(V v) const {
    const V one = V{} + T{1};
    if (!o_.relu) {
      return one - v * v;
    }
    return v <= V{} ? V{} : one;
  }
  static FUSED_RNN_INLINE V clipped(V v, double limit) {
    const V high = V{} + static_cast<T>(limit), low = V{} - static_cast<T>(limit);
    const V below = v > high ? high : v;
    return below < low ? low : below;
  }

  // 1 where a unit of sequence n keeps its old value in step k, 0 elsewhere, into keep (room_,).
  void draw(std::int64_t n, std::int64_t k, std::int64_t units, double p, int which,
            T* keep) const {
    const std::int64_t* const of = args_.draws + 3 * n;
    const auto step = static_cast<std::uint32_t>(of[1] + time(k));
    const auto limit = static_cast<std::uint64_t>(std::nearbyint(p * 4294967296.0));
    std::uint32_t words[64];
    for (std::int64_t j = 0; j < units; j += 64) {
      philox(static_cast<std::uint32_t>(j / 64), step, static_cast<std::uint32_t>(of[2]),
             static_cast<std::uint32_t>(which), static_cast<std::uint64_t>(of[0]), words);
      for (int i = 0; i < 64; ++i) {
        keep[j + i] = words[i] < limit ? T{1} : T{0};
      }
    }
  }

  // now = what zoneout makes of it and of `old`; `keep` is scratch (room_,).
  void zone(std::int64_t n, std::int64_t k, const T* old, T* now, std::int64_t units, double p,
            int which, T* keep) const {
    if (args_.draws != nullptr) {
      draw(n, k, units, p, which, keep);
      for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
        const V before = load(old + j, valid), after = load(now + j, valid);
        store<T>(now + j, load(keep + j, valid) != V{} ? before : after, valid);
      });
      return;
    }
    const T kept = static_cast<T>(p), rest = static_cast<T>(1 - p);
    for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
      store<T>(now + j, load(old + j, valid) * kept + load(now + j, valid) * rest, valid);
    });
  }

  // The other way: of d, the gradient of what zone() made, `old` gets its share, and d keeps the rest.
  void zone_back(std::int64_t n, std::int64_t k, T* d, T* old, std::int64_t units, double p,
                 int which, T* keep) const {
    const bool drawn = args_.draws != nullptr;
    if (drawn) {
      draw(n, k, units, p, which, keep);
    }
    const T kept = static_cast<T>(p), rest = static_cast<T>(1 - p);
    for_units<T>(units, [&](std::int64_t j, std::int64_t valid) {
      const V all = load(d + j, valid);
      if (!drawn) {
        store<T>(old + j, all * kept, valid);
        store<T>(d + j, all * rest, valid);
        return;
      }
      // Chosen, not multiplied: zero times what overflowed is no zero.
      const V keeps = load(keep + j, valid);
      store<T>(old + j, keeps != V{} ? all : V{}, valid);
      store<T>(d + j, keeps != V{} ? V{} : all, valid);
    });
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

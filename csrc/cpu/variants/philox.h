// Philox4x32-10 (Salmon et al. 2011) in vector registers, whose lanes are counters.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

using Words = FloatBits;
typedef std::uint64_t WidePairs __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));

// The 64-bit products of every second word, the first among them. Of an ordinary product of wide lanes a
// compiler does not know that their upper halves are zero.
FUSED_RNN_INLINE WidePairs times_even(Words a, std::uint32_t m) {
#if FUSED_RNN_F16C && FUSED_RNN_VECTOR_BYTES == 64
  return (WidePairs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi32((int)m));
#elif FUSED_RNN_F16C
  return (WidePairs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32((int)m));
#else
  return (same_bits<WidePairs>(a) & 0xffffffffu) * std::uint64_t{m};
#endif
}

struct WordProducts {
  Words high, low;
};

FUSED_RNN_INLINE WordProducts times(Words a, std::uint32_t m) {
  const WidePairs even = times_even(a, m),
                  odd = times_even(same_bits<Words>(same_bits<WidePairs>(a) >> 32), m);
  constexpr std::uint64_t kLow = 0xffffffffu;
  return {same_bits<Words>(even >> 32 | (odd & ~kLow)),
          same_bits<Words>((even & kLow) | odd << 32)};
}

// What tells the masks of a sequence apart; see fused_rnn/variants/philox.py.
struct Draw {
  std::uint32_t step, number, which;
  std::uint64_t seed;
};

// For the 64 units of `block`: 16 counters, whose four words are of 16 units each. f(first of the units,
// their words).
template <class F>
FUSED_RNN_INLINE void philox(std::uint32_t block, const Draw& of, F&& f) {
  constexpr std::uint32_t kL = kLanes<float>, kCounters = 16;
  static_assert(kCounters % kL == 0, "vectors of counters are full");
  for (std::uint32_t first = 0; first < kCounters; first += kL) {
    Words a{}, b = a + of.step, c = a + of.number, d = a + of.which;
    for (std::uint32_t l = 0; l < kL; ++l) {
      a[l] = block * kCounters + first + l;
    }
    std::uint32_t k = static_cast<std::uint32_t>(of.seed),
                  q = static_cast<std::uint32_t>(of.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const WordProducts of_a = times(a, 0xD2511F53u), of_c = times(c, 0xCD9E8D57u);
      a = of_c.high ^ b ^ k;
      c = of_a.high ^ d ^ q;
      b = of_c.low, d = of_a.low;
      k += 0x9E3779B9u, q += 0xBB67AE85u;
    }
    f(first, a);
    f(kCounters + first, b);
    f(2 * kCounters + first, c);
    f(3 * kCounters + first, d);
  }
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

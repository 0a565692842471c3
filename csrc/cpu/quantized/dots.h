// How a vector of 32-bit sums takes in the products of kStep weights with as many integers of a row, for
// each set of instructions. What a lane sums up is up to them: in the end all lanes are added.
//
// None saturates. Two products of bytes that one instruction adds up as 16-bit numbers have room (see
// Avx2Dot), as 32-bit numbers all the more; and where weights have to be unsigned, 128 is added to them, and 128 times
// the sum of the row's integers taken off in the end. On the way the sums may wrap around, which
// leaves their difference what it is: it has 32 bits (quantized.h).
//
//   Element  what a row is prepared as
//   kStep    weights at a time
//   kOffset  what weight() adds to each
#pragma once

#if defined(__SSE2__) && !defined(FUSED_RNN_TARGET) && FUSED_RNN_VECTOR_BYTES == 16
#include <emmintrin.h>
#endif

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

using Sums = Vec<std::uint32_t>;

struct IntegerSums {
  using Stored = std::int8_t;
  using Lane = std::uint32_t;
  using Sum = Sums;
  static constexpr bool kExact = true;
};

// Of bfloat16 weights, in float32. Two of them are a lane: one is its upper half, the other shifted there.
struct WideDot {
  using Stored = BFloat16;
  using Element = float;
  using Lane = float;
  using Sum = Vec<float>;
  static constexpr bool kExact = false;
  static constexpr std::int64_t kStep = 2 * kLanes<float>;
  struct Weight {
    Sum even, odd;
  };
  using Row = Weight;

  FUSED_RNN_INLINE static Weight weight(const BFloat16* p) {
    FloatBits pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return {same_bits<Sum>(pairs << 16), same_bits<Sum>(pairs & 0xffff0000u)};
#else
    return {same_bits<Sum>(pairs & 0xffff0000u), same_bits<Sum>(pairs << 16)};
#endif
  }
  FUSED_RNN_INLINE static Row row(const float* p) { return {load(p), load(p + kLanes<float>)}; }
  FUSED_RNN_INLINE static void add(Sum& sum, const Weight& w, const Row& r) {
    sum += w.even * r.even;
    sum += w.odd * r.odd;
  }
};

// By the compiler alone.
struct PlainDot : IntegerSums {
  using Element = std::int16_t;
  static constexpr std::int64_t kStep = 2 * kLanes<float>;
  static constexpr std::int32_t kOffset = 0;
  struct Weight {
    std::int32_t even[kLanes<float>], odd[kLanes<float>];
  };
  struct Row {
    std::int32_t even[kLanes<float>], odd[kLanes<float>];
  };

  template <class To, class From>
  FUSED_RNN_INLINE static To pairs(const From* p) {
    To to;
    for (int i = 0; i < kLanes<float>; ++i) {
      to.even[i] = p[2 * i], to.odd[i] = p[2 * i + 1];
    }
    return to;
  }
  FUSED_RNN_INLINE static Weight weight(const std::int8_t* p) { return pairs<Weight>(p); }
  FUSED_RNN_INLINE static Row row(const Element* p) { return pairs<Row>(p); }
  FUSED_RNN_INLINE static void add(Sums& sums, const Weight& w, const Row& r) {
    for (int i = 0; i < kLanes<float>; ++i) {
      sums[i] += static_cast<std::uint32_t>(w.even[i] * r.even[i] + w.odd[i] * r.odd[i]);
    }
  }
};

#if defined(__SSE2__) && !defined(FUSED_RNN_TARGET) && FUSED_RNN_VECTOR_BYTES == 16
struct Sse2Dot : IntegerSums {
  using Element = std::int16_t;
  static constexpr std::int64_t kStep = 8;
  static constexpr std::int32_t kOffset = 0;
  using Weight = __m128i;
  using Row = __m128i;

  FUSED_RNN_INLINE static Weight weight(const std::int8_t* p) {
    const __m128i w = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8);
  }
  FUSED_RNN_INLINE static Row row(const Element* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  FUSED_RNN_INLINE static void add(Sums& sums, Weight w, Row r) {
    sums += (Sums)_mm_madd_epi16(w, r);
  }
};
#endif

#if defined(FUSED_RNN_TARGET) && defined(__x86_64__)
#if FUSED_RNN_VECTOR_BYTES == 32
// A weight's sign goes to the row, so that its magnitude, 128 at most, is the unsigned byte of vpmaddubsw:
// with the row's 127 two products are 2 * 128 * 127 = 32512 at most.
struct Avx2Dot : IntegerSums {
  using Element = std::int8_t;
  static constexpr std::int64_t kStep = 32;
  static constexpr std::int32_t kOffset = 0;
  struct Weight {
    __m256i number, magnitude;
  };
  using Row = __m256i;

  FUSED_RNN_INLINE static Weight weight(const std::int8_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {w, _mm256_abs_epi8(w)};
  }
  FUSED_RNN_INLINE static Row row(const Element* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  FUSED_RNN_INLINE static void add(Sums& sums, Weight w, Row r) {
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(r, w.number));
    sums += (Sums)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};
#else
struct Avx512Dot : IntegerSums {
  using Element = std::int16_t;
  static constexpr std::int64_t kStep = 32;
  static constexpr std::int32_t kOffset = 0;
  using Weight = __m512i;
  using Row = __m512i;

  FUSED_RNN_INLINE static Weight weight(const std::int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  FUSED_RNN_INLINE static Row row(const Element* p) {
    return _mm512_loadu_si512(reinterpret_cast<const void*>(p));
  }
  FUSED_RNN_INLINE static void add(Sums& sums, Weight w, Row r) {
    sums += (Sums)_mm512_madd_epi16(w, r);
  }
};
#endif
#endif

// By vpdpbusd, which adds the products of four unsigned bytes with four signed ones to each sum: I has
// it for the level's vectors.
template <class I>
struct VnniDot : IntegerSums {
  using Element = std::int8_t;
  static constexpr std::int64_t kStep = FUSED_RNN_VECTOR_BYTES;
  static constexpr std::int32_t kOffset = 128;
  using Weight = Sums;
  using Row = Sums;

  FUSED_RNN_INLINE static Weight weight(const std::int8_t* p) {
    Sums w;
    std::memcpy(&w, p, sizeof(w));
    return w ^ 0x80808080u;
  }
  FUSED_RNN_INLINE static Row row(const Element* p) {
    Sums r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  FUSED_RNN_INLINE static void add(Sums& sums, Weight w, Row r) { I::add(sums, w, r); }
};

#if defined(FUSED_RNN_VNNI)
struct Vnni {
  FUSED_RNN_INLINE static void add(Sums& sums, Sums unsigned_bytes, Sums signed_bytes) {
#if FUSED_RNN_VECTOR_BYTES == 64
    sums = (Sums)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
    sums = (Sums)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)unsigned_bytes,
                                         (__m256i)signed_bytes);
#endif
  }
};
#endif

// What the level takes; FUSED_RNN_DOT is the tests' choice.
#if defined(FUSED_RNN_DOT)
using Dot = FUSED_RNN_DOT;
#elif defined(FUSED_RNN_VNNI)
using Dot = VnniDot<Vnni>;
#elif defined(FUSED_RNN_TARGET) && FUSED_RNN_VECTOR_BYTES == 64
using Dot = Avx512Dot;
#elif defined(FUSED_RNN_TARGET)
using Dot = Avx2Dot;
#elif defined(__SSE2__) && FUSED_RNN_VECTOR_BYTES == 16
using Dot = Sse2Dot;
#else
using Dot = PlainDot;
#endif

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

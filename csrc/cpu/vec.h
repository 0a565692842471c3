// A register's worth of elements, with loads and stores that convert from the stored type.
#pragma once

#ifndef FUSED_RNN_VECTOR_BYTES
#error "include this through one of the level files"
#endif

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr std::int64_t kLanes = FUSED_RNN_VECTOR_BYTES / sizeof(T);

template <class T>
constexpr std::int64_t ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// A register's worth of bfloat16, and the halves of floats that hold them. Loops over lanes become
// shuffles of single elements where the compiler does not see through them: half of a scan's time.
typedef std::uint16_t Halves __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES / 2)));
using FloatBits = typename Lanes<Vec<float>>::Bits;

FUSED_RNN_INLINE Vec<float> widen_all(Halves h) {
  return same_bits<Vec<float>>(__builtin_convertvector(h, FloatBits) << 16);
}

// As narrow<BFloat16> of every lane, left in the upper halves.
FUSED_RNN_INLINE FloatBits round_to_halves(Vec<float> v) {
  const FloatBits bits = same_bits<FloatBits>(v), odd = (bits >> 16) & 1u;
  const FloatBits is_nan = same_bits<FloatBits>((bits & 0x7fffffffu) > 0x7f800000u);
  return (is_nan & (bits | 0x400000u)) | (~is_nan & (bits + 0x7fffu + odd));
}

FUSED_RNN_INLINE Halves upper_halves(FloatBits bits) {
  return __builtin_convertvector(bits >> 16, Halves);
}

// As widen and narrow of every lane; the instructions keep a NaN's payload. Those of AVX-512 with a mask:
// GCC 12 warns of what the others leave undefined.
FUSED_RNN_INLINE Vec<float> widen_ieee(Halves h) {
#if FUSED_RNN_F16C && FUSED_RNN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#elif FUSED_RNN_F16C
  return (Vec<float>)_mm256_cvtph_ps((__m128i)h);
#else
  const FloatBits bits = __builtin_convertvector(h, FloatBits), magnitude = bits & 0x7fffu;
  const Vec<float> scaled = same_bits<Vec<float>>(magnitude << 13) * bit_cast<float>(0x77800000u);
  const FloatBits special = same_bits<FloatBits>(magnitude >= 0x7c00u);
  return same_bits<Vec<float>>((bits & 0x8000u) << 16 |
                               (special & (0x7f800000u | (magnitude & 0x3ffu) << 13)) |
                               (~special & same_bits<FloatBits>(scaled)));
#endif
}

FUSED_RNN_INLINE Halves narrow_ieee(Vec<float> v) {
#if FUSED_RNN_F16C && FUSED_RNN_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)v,
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif FUSED_RNN_F16C
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Halves h;
  for (std::int64_t i = 0; i < kLanes<float>; ++i) {
    h[i] = narrow<Half>(static_cast<float>(v[i])).bits;
  }
  return h;
#endif
}

// The first `valid` lanes from p, zero in the others.
template <class S, class T = typename ComputeType<S>::type>
FUSED_RNN_INLINE Vec<T> load(const S* p, std::int64_t valid = kLanes<T>) {
  Vec<T> v{};
  if constexpr (std::is_same<S, T>::value) {
    if (valid == kLanes<T>) {
      std::memcpy(&v, p, sizeof(v));
      return v;
    }
  }
  if constexpr (std::is_same<S, BFloat16>::value) {
    if (valid == kLanes<T>) {
      Halves h;
      std::memcpy(&h, p, sizeof(h));
      return widen_all(h);
    }
  }
  if constexpr (std::is_same<S, Half>::value) {
    if (valid == kLanes<T>) {
      Halves h;
      std::memcpy(&h, p, sizeof(h));
      return widen_ieee(h);
    }
  }
  for (std::int64_t i = 0; i < valid; ++i) {
    v[i] = widen(p[i]);
  }
  return v;
}

template <class S, class T = typename ComputeType<S>::type>
FUSED_RNN_INLINE void store(S* p, Vec<T> v, std::int64_t valid = kLanes<T>) {
  if constexpr (std::is_same<S, T>::value) {
    if (valid == kLanes<T>) {
      std::memcpy(p, &v, sizeof(v));
      return;
    }
  }
  if constexpr (std::is_same<S, BFloat16>::value) {
    if (valid == kLanes<T>) {
      const Halves h = upper_halves(round_to_halves(v));
      std::memcpy(p, &h, sizeof(h));
      return;
    }
  }
  if constexpr (std::is_same<S, Half>::value) {
    if (valid == kLanes<T>) {
      const Halves h = narrow_ieee(v);
      std::memcpy(p, &h, sizeof(h));
      return;
    }
  }
  for (std::int64_t i = 0; i < valid; ++i) {
    p[i] = narrow<S>(static_cast<T>(v[i]));
  }
}

// v as it reads back after being stored.
template <class S, class T = typename ComputeType<S>::type>
FUSED_RNN_INLINE Vec<T> rounded(Vec<T> v) {
  if constexpr (std::is_same<S, BFloat16>::value) {
    return same_bits<Vec<T>>(round_to_halves(v) & 0xffff0000u);
  } else if constexpr (std::is_same<S, Half>::value) {
    return widen_ieee(narrow_ieee(v));
  }
  return v;
}

// Uninitialised scratch, on a cache line's boundary. `keep`: see scratch_free.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t n, bool keep = true)
      : bytes_(static_cast<std::size_t>(n) * sizeof(T)), keep_(keep) {
    data_ = n > 0 ? static_cast<T*>(scratch_allocate(bytes_)) : nullptr;
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) {
      scratch_free(data_, bytes_, keep_);
    }
  }
  T* get() const { return data_; }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(keep_, other.keep_);
  }
  T* data_ = nullptr;
  std::size_t bytes_ = 0;
  bool keep_ = true;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

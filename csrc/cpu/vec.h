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
  for (std::int64_t i = 0; i < valid; ++i) {
    p[i] = narrow<S>(static_cast<T>(v[i]));
  }
}

// v as it reads back after being stored.
template <class S, class T = typename ComputeType<S>::type>
FUSED_RNN_INLINE Vec<T> rounded(Vec<T> v) {
  if constexpr (!std::is_same<S, T>::value) {
    for (std::int64_t i = 0; i < kLanes<T>; ++i) {
      v[i] = widen(narrow<S>(static_cast<T>(v[i])));
    }
  }
  return v;
}

// Uninitialised scratch, on a cache line's boundary.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t n) : data_(n > 0 ? allocate(n) : nullptr) {}
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t(kAlign)); }
  T* get() const { return data_; }

 private:
  static constexpr std::size_t kAlign = 64;
  static T* allocate(std::int64_t n) {
    return static_cast<T*>(::operator new(static_cast<std::size_t>(n) * sizeof(T), std::align_val_t(kAlign)));
  }
  T* data_ = nullptr;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

// Several neighbouring elements at once, in accesses of 16 bytes where they fill so many.
#pragma once

#include <cstddef>
#include <cstring>

#include "dtypes.h"

namespace fused_rnn {
namespace cuda {

// Elements a thread takes where rows are whole vectors: 16 bytes of the tensors' type.
template <class S>
constexpr int kWide = 16 / sizeof(S);

constexpr std::size_t access_bytes(std::size_t bytes) { return bytes < 16 ? bytes : 16; }

template <class E, int kCount>
struct alignas(access_bytes(sizeof(E) * kCount)) Vector {
  E v[kCount];
};

template <int kCount, class E>
__device__ __forceinline__ void load(const E* p, typename ComputeType<E>::type (&out)[kCount]) {
  const Vector<E, kCount> in = *reinterpret_cast<const Vector<E, kCount>*>(p);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    out[i] = widen(in.v[i]);
  }
}

template <int kCount, class E>
__device__ __forceinline__ void store(E* p, const typename ComputeType<E>::type (&values)[kCount]) {
  Vector<E, kCount> out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    out.v[i] = narrow<E>(values[i]);
  }
#if !defined(__CUDA_ARCH__)
  *reinterpret_cast<Vector<E, kCount>*>(p) = out;
#else
  // Of a struct, or of a uint4, a compiler may store the elements one by one, and does.
  if constexpr (sizeof(out) % sizeof(uint4) == 0) {
    uint4 words[sizeof(out) / sizeof(uint4)];
    std::memcpy(words, &out, sizeof(out));
#pragma unroll
    for (std::size_t i = 0; i < sizeof(out) / sizeof(uint4); ++i) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                   :
                   : "l"(reinterpret_cast<uint4*>(p) + i), "r"(words[i].x), "r"(words[i].y),
                     "r"(words[i].z), "r"(words[i].w)
                   : "memory");
    }
  } else {
    *reinterpret_cast<Vector<E, kCount>*>(p) = out;
  }
#endif
}

}  // namespace cuda
}  // namespace fused_rnn

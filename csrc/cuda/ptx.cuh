// Every inline PTX, each with its twin on the host bench: matrix products of a warp, and what blocks
// say to each other. PTX ISA, "Memory Consistency Model", is what the orders below are argued with.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "dtypes.h"
#include "launch.cuh"

namespace fused_rnn {
namespace cuda {
namespace ptx {

// Fragments of a product D = A B + D of a warp: A has 16 rows, B 8 columns, and both 32 bytes of
// depth, k. Lane l has, with g = l / 4, q = l % 4 and `pair` elements in 4 bytes (2 halves, 1
// float):
//
//   A[0]  row g      k = pair * q + ..            B[0]  k = pair * q + ..        column g
//   A[1]  row g + 8  k = pair * q + ..            B[1]  k = pair * (q + 4) + ..  column g
//   A[2]  row g      k = pair * (q + 4) + ..      D[0], D[1]  row g      columns 2q, 2q + 1
//   A[3]  row g + 8  k = pair * (q + 4) + ..      D[2], D[3]  row g + 8  columns 2q, 2q + 1
struct alignas(16) FragmentA {
  std::uint32_t v[4];
};
struct alignas(8) FragmentB {
  std::uint32_t v[2];
};
struct Accumulator {
  float v[4];
};

#if defined(__CUDACC__)

// All of them need sm_80; nothing calls them in code for less.
template <class S>
__device__ __forceinline__ void multiply(Accumulator& d, const FragmentA& a, const FragmentB& b);

#define FUSED_RNN_MMA(S, shape_and_types)                                                         \
  template <>                                                                                     \
  __device__ __forceinline__ void multiply<S>(Accumulator & d, const FragmentA& a,                \
                                              const FragmentB& b) {                               \
    asm volatile("mma.sync.aligned." shape_and_types                                              \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
                 : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3])                         \
                 : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[0]), "r"(b.v[1])); \
  }
FUSED_RNN_MMA(Half, "m16n8k16.row.col.f32.f16.f16.f32")
FUSED_RNN_MMA(BFloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FUSED_RNN_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")  // of operands that round_tf32 gave
#undef FUSED_RNN_MMA

__device__ __forceinline__ std::uint32_t round_tf32(float v) {
  std::uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
  return rounded;
}

__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(from));
}

// Past L1, which does not know what other SMs write.
template <class V>
__device__ __forceinline__ V load_shared_by_all(const void* from) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "one, two or four words");
  V v;
  if constexpr (sizeof(V) == 4) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v.v[0]) : "l"(from) : "memory");
  } else if constexpr (sizeof(V) == 8) {
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(v.v[0]), "=r"(v.v[1])
                 : "l"(from)
                 : "memory");
  } else {
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.v[0]), "=r"(v.v[1]), "=r"(v.v[2]), "=r"(v.v[3])
                 : "l"(from)
                 : "memory");
  }
  return v;
}

// The same where it is `there`; else there is no access, and what is returned is any number.
template <class V>
__device__ __forceinline__ V load_shared_by_all(const void* from, bool there) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "one, two or four words");
  V v;
  const int given = there;
  if constexpr (sizeof(V) == 4) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p ld.relaxed.gpu.global.b32 %0, [%1]; }"
                 : "=r"(v.v[0])
                 : "l"(from), "r"(given)
                 : "memory");
  } else if constexpr (sizeof(V) == 8) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %3, 0; @p ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2]; }"
        : "=r"(v.v[0]), "=r"(v.v[1])
        : "l"(from), "r"(given)
        : "memory");
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0; "
        "@p ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
        : "=r"(v.v[0]), "=r"(v.v[1]), "=r"(v.v[2]), "=r"(v.v[3])
        : "l"(from), "r"(given)
        : "memory");
  }
  return v;
}

// For blocks that acquire a flag which this thread, or one it has a barrier with, releases later.
template <class E>
__device__ __forceinline__ void store_for_all(E* to, E value) {
  if constexpr (sizeof(E) == 2) {
    asm volatile("st.relaxed.gpu.global.b16 [%0], %1;"
                 :
                 : "l"(to), "h"(bit_cast<std::uint16_t>(value))
                 : "memory");
  } else {
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;"
                 :
                 : "l"(to), "r"(bit_cast<std::uint32_t>(value))
                 : "memory");
  }
}

__device__ __forceinline__ void release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(flag), "r"(value) : "memory");
}

#if defined(FUSED_RNN_WATCHDOG)
__device__ __forceinline__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}
#endif

// Waits until the flag is `least` or more. Flags count up, and never as far as half their range.
//
// In a build with FUSED_RNN_WATCHDOG, seconds in which nobody raises it, it ends the launch with an
// error: a fault is then one process's, and not a GPU that hangs until it is reset.
__device__ __forceinline__ void acquire(const unsigned* flag, unsigned least) {
#if defined(FUSED_RNN_WATCHDOG)
  const unsigned long long begin = nanoseconds();
#endif
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
#if defined(FUSED_RNN_WATCHDOG)
    if (nanoseconds() - begin > FUSED_RNN_WATCHDOG * 1000000000ull) {
      __trap();
    }
#endif
  } while (seen < least);
}

// A cluster's, sm_90. Blocks of it have consecutive numbers, the first a multiple of its size.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The same place of another block's shared memory.
template <class E>
__device__ __forceinline__ E* of_member(E* mine, unsigned rank) {
  std::uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;"
      : "=l"(theirs)
      : "l"(reinterpret_cast<std::uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<E*>(theirs);
}

// What a thread writes to members before it arrives, all threads of the cluster see after they have
// waited.
template <class E>
__device__ __forceinline__ void store_for_member(E* to, E value) {
  *to = value;
}

// Not .aligned: a warp's threads may come from different branches.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" : : : "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" : : : "memory");
}
#endif

#else

namespace bench {

template <class S>
struct Operands {
  Accumulator* d;
  FragmentA a;
  FragmentB b;

  static constexpr int kPair = 4 / sizeof(S);

  // Word `w` of a fragment, its `i`th element. Of a float the instruction takes 10 bits of fraction,
  // and what it does with others is not laid down: they have to be rounded before.
  template <class Fragment>
  static float element(const Fragment& f, int w, int i) {
    S s[kPair];
    std::memcpy(s, &f.v[w], 4);
    const float v = widen(s[i]);
    if (sizeof(S) == 4 && v == v && (f.v[w] & 0x1fff) != 0) {
      throw std::runtime_error("mma: an operand has not been rounded to tf32");
    }
    return v;
  }
};

template <class S>
void combine(void* const* lanes) {
  using O = Operands<S>;
  const auto lane = [&](int l) { return static_cast<O*>(lanes[l]); };
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& d = lane(row % 8 * 4 + column / 2)->d->v[row / 8 * 2 + column % 2];
      double sum = d;
      for (int k = 0; k < 8 * O::kPair; ++k) {
        const int word = k / O::kPair, i = k % O::kPair;
        const float a = O::element(lane(row % 8 * 4 + word % 4)->a, word / 4 * 2 + row / 8, i);
        const float b = O::element(lane(column * 4 + word % 4)->b, word / 4, i);
        sum += static_cast<double>(a) * b;
      }
      d = static_cast<float>(sum);
    }
  }
}

}  // namespace bench

template <class S>
void multiply(Accumulator& d, const FragmentA& a, const FragmentB& b, int line = __builtin_LINE()) {
  bench::Operands<S> operands{&d, a, b};
  simt::warp_meeting({"mma", line, 0xffffffffu, 0, simt::lane(), &operands, bench::combine<S>});
}

// To the nearest of 10 bits of fraction, away from zero where two are as near.
inline std::uint32_t round_tf32(float v) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : (bits + 0x1000u) & ~0x1fffu;
}

// Reads, so that a sanitizer sees what is nobody's: a GPU may have no page there.
inline void prefetch(const void* from) { (void)*static_cast<const volatile char*>(from); }

template <class V>
V load_shared_by_all(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <class V>
V load_shared_by_all(const void* from, bool there) {
  return there ? load_shared_by_all<V>(from) : V{};
}

template <class E>
void store_for_all(E* to, E value) {
  simt::store(to, &value, sizeof(E));
}

inline void release(unsigned* flag, unsigned value) { simt::release(flag, value); }

inline void acquire(const unsigned* flag, unsigned least, int line = __builtin_LINE()) {
  simt::wait_for(flag, least, line);
}

template <class E>
E* of_member(E* mine, unsigned rank) {
  return static_cast<E*>(simt::in_block_of_cluster(mine, rank));
}

template <class E>
void store_for_member(E* to, E value) {
  simt::store(to, &value, sizeof(E));
}

inline void cluster_arrive(int line = __builtin_LINE()) { simt::cluster_arrive(line); }
inline void cluster_wait(int line = __builtin_LINE()) { simt::cluster_wait(line); }

#endif

}  // namespace ptx
}  // namespace cuda
}  // namespace fused_rnn

// What the same source needs to say differently to a host compiler and to nvcc.
#pragma once

#if defined(__CUDACC__)
#define FUSED_RNN_INLINE __host__ __device__ __forceinline__
#else
// Forced: a helper left out of line in one SIMD level's file could be linked into another's.
#define FUSED_RNN_INLINE inline __attribute__((always_inline))
#endif

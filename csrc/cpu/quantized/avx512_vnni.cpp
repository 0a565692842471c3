#if defined(__x86_64__)
#define FUSED_RNN_SHOWN "avx512-vnni"
#define FUSED_RNN_LEVEL quantized_avx512_vnni
#define FUSED_RNN_TARGET "avx512vnni,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_VECTOR_REGISTERS 32
#define FUSED_RNN_VNNI

#include "level.inc"
#endif

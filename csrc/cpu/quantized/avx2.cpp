#if defined(__x86_64__)
#define FUSED_RNN_SHOWN "avx2"
#define FUSED_RNN_LEVEL quantized_avx2
#define FUSED_RNN_TARGET "avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_VECTOR_REGISTERS 16

#include "level.inc"
#endif

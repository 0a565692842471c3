// AVX-VNNI, which CPUs without AVX-512 have. Older compilers do not know it: the level is left out then.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FUSED_RNN_SHOWN "avx-vnni"
#define FUSED_RNN_LEVEL quantized_avx_vnni
#define FUSED_RNN_TARGET "avxvnni,avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_VECTOR_REGISTERS 16
#define FUSED_RNN_VNNI

#include "level.inc"
#endif

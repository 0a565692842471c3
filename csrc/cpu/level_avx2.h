// The level for AVX2 with FMA: 16 registers of 32 bytes.
#pragma once

#define FUSED_RNN_LEVEL avx2
#define FUSED_RNN_TARGET "avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_VECTOR_REGISTERS 16

// The level for AVX-512: 32 registers of 64 bytes.
#pragma once

#define FUSED_RNN_LEVEL avx512
#define FUSED_RNN_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_VECTOR_REGISTERS 32

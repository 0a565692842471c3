// The level for Intel AMX: tile registers for the products, AVX-512 for what stands between them. What
// tiles do not pay for, or cannot carry, runs on the level below.
#pragma once

#include "tiles/amx.h"

#define FUSED_RNN_LEVEL amx
#define FUSED_RNN_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_VECTOR_REGISTERS 32
#define FUSED_RNN_TILES Amx
#define FUSED_RNN_BELOW avx512

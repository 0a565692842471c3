// The level for whatever the compiler targets by default: SSE2, NEON.
#pragma once

#define FUSED_RNN_LEVEL portable
#define FUSED_RNN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define FUSED_RNN_VECTOR_REGISTERS 32
#else
#define FUSED_RNN_VECTOR_REGISTERS 16
#endif

#define FUSED_RNN_SHOWN "portable"
#define FUSED_RNN_LEVEL quantized_portable
#define FUSED_RNN_VECTOR_BYTES 16
#define FUSED_RNN_VECTOR_REGISTERS 16

#include "level.inc"

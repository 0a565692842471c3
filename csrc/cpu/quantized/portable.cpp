#define FUSED_RNN_SHOWN "portable"
#include "../level_portable.h"
#undef FUSED_RNN_LEVEL
#define FUSED_RNN_LEVEL quantized_portable

#include "level.inc"

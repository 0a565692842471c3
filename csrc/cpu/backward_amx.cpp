#if defined(__x86_64__)
#define FUSED_RNN_BACKWARD
#include "level_amx.h"

#include "tiles/level.inc"
#endif

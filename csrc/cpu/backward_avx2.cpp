#if defined(__x86_64__)
#define FUSED_RNN_BACKWARD
#include "level_avx2.h"

#include "level.inc"
#endif

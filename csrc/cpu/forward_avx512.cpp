#if defined(__x86_64__)
#define FUSED_RNN_FORWARD
#include "level_avx512.h"

#include "level.inc"
#endif

#if defined(__x86_64__)
#include "../level_avx2.h"

#include "level.inc"
#endif

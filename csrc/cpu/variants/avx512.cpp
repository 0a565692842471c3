#if defined(__x86_64__)
#include "../level_avx512.h"

#include "level.inc"
#endif

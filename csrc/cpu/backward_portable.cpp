#define FUSED_RNN_BACKWARD
#include "level_portable.h"

#include "level.inc"

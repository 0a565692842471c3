#define FUSED_RNN_FORWARD
#include "level_portable.h"

#include "level.inc"

#include "../level_portable.h"

#include "level.inc"

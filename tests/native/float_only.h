// Included before everything else where one element type is enough: a quarter of the compiling.
#include "../../csrc/dtypes.h"

#undef FUSED_RNN_DTYPES
#define FUSED_RNN_DTYPES(X) X(Float, float, float)

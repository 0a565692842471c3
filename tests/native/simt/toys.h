// The toys' C interface.
#pragma once

// Threads of a toy's block, but for `indices`; dynamic shared memory holds a float for each.
constexpr int kToyBlock = 64;

// Runs the toy; returns null or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* simt_toy(const char* toy,
                                                                       const float* in, float* out);

// The narrow waist: one layer, one direction, a whole sequence. Plain structs, no torch.
//
// Dims: T steps, N sequences, I inputs, H hidden units, P projected size (0: none), R = P or H, the
// size of h; G gates. Sequences may differ in length: step t has batch_sizes[t] of them, the
// longest first (torch's PackedSequence), and `rows` = the sum of batch_sizes; dense is rows = T *
// N. All arrays are row-major and contiguous, of `dtype`; none may alias another.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace fused_rnn {

enum class CellKind { kLstm, kGru, kRnnTanh, kRnnRelu };

// Runs body(member, context) for members 0..n-1, side by side where it can. The kernels need
// neither concurrency nor all members: one call alone finishes the work.
using Parallel = void (*)(int n, void (*body)(int member, void* context), void* context);

struct ScanArgs {
  CellKind cell;
  Dtype dtype;
  std::int64_t T, N, I, H, P;
  const std::int64_t* batch_sizes;  // (T,) non-increasing, first N, all > 0; null: N at every step
  bool reverse;      // scan each sequence from its own last step to its first; y keeps time's order
  const void* x;     // (rows, I)
  const void* h0;    // (N, R)
  const void* c0;    // (N, H)       LSTM; null otherwise
  const void* w_ih;  // (G*H, I)     torch's gate order
  const void* w_hh;  // (G*H, R)
  const void* b_ih;  // (G*H,)       null: zero
  const void* b_hh;  // (G*H,)       null: zero
  const void* w_hr;  // (P, H)       null where P == 0
  int threads;       // at most this many members
  Parallel parallel;
};

struct ForwardArgs : ScanArgs {
  void* y;        // (rows, R)
  void* h_n;      // (N, R)     each sequence's state after its last scanned step
  void* c_n;      // (N, H)     LSTM; null otherwise
  void* c;        // (rows, H)  LSTM: every step's; null: not wanted
  bool training;  // fill `saved`
  void* saved;    // saved_elements(args) elements of the arithmetic's type, for backward
};

struct BackwardArgs : ScanArgs {
  const void* y;      // (rows, R)   as forward gave it
  const void* saved;  // as forward gave it
  const void* dy;     // (rows, R)   null: zero
  const void* dh_n;   // (N, R)      null: zero
  const void* dc_n;   // (N, H)      null: zero
  const void* dc;     // (rows, H)   of every step's c; null: zero
  void* dx;           // (rows, I)   null, here and below: not wanted
  void* dh0;          // (N, R)
  void* dc0;          // (N, H)
  void* dw_ih;        // (G*H, I)
  void* dw_hh;        // (G*H, R)
  void* db_ih;        // (G*H,)
  void* db_hh;        // (G*H,)
  void* dw_hr;        // (P, H)
};

namespace cpu {

// The levels are the same source compiled for different registers (levels.cpp picks one); amx adds
// products of its own to avx512.
struct Level {
  const char* name;
  std::int64_t (*saved_elements)(const ScanArgs&);
  void (*forward)(const ForwardArgs&);
  void (*backward)(const BackwardArgs&);
  // The level that runs a problem whose numbers it can carry: this one, or one that it gives it to. No
  // pointer of it is read.
  const char* (*name_for)(const ScanArgs&);
};

// The best level this machine has; FUSED_RNN_SIMD = amx | avx512 | avx2 | portable asks
// for another.
const Level& level();

}  // namespace cpu
}  // namespace fused_rnn

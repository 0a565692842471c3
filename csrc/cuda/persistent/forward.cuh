// What a block of a forward scan does: every step is the product of its hidden units' weights with h,
// the gates, and handing the new h to the other blocks of the group.
#pragma once

#include <cstdint>

#include "cells.h"
#include "exchange.cuh"
#include "walk.cuh"

namespace fused_rnn {
namespace cuda {

// Where a block stands, and what it has in shared memory.
struct Place {
  const PersistentForwardDirection* direction;
  Member member;
  int first;  // sequence of the group
  SharedLayout layout;
  unsigned char* shared;
  unsigned char *states, *flags;  // of the group, in scratch
};

template <class Cell, class S, class Product, int kShape, class Exchange>
class Forward {
 public:
  using T = float;
  static constexpr Shape kS = kShapes[kShape];
  static constexpr int G = Cell::kGates, kPre = Cell::kPre, kColumns = kS.columns;
  static constexpr int kRounds = rounds_of(kS.rows() / G, kColumns, kS.threads());
  // Gates come as far as L2 two steps ahead. They are loaded before the wait, and outputs stored when
  // h is on its way to others; with more rounds than registers hold, a round is finished before the
  // next.
  static constexpr int kRoom = kS.tiles_m == 4 ? 1 : 2;  // four tiles of weights leave less
  static constexpr bool kInRegisters = kRounds <= kRoom;
  static constexpr int kHeld = kInRegisters ? kRounds : 1;
  static constexpr bool kHasState = Cell::kHasCell || Cell::kStateIsHidden;
  using Warp = WarpWeights<Product, kShape>;

  __device__ __forceinline__ Forward(const PersistentForward& a, const Place& place,
                                     Exchange exchange)
      : a_(a),
        d_(*place.direction),
        H_(static_cast<int>(a.H)),
        first_unit_(place.member.rank * place.member.units),
        units_(place.member.units),
        chunks_(place.member.chunks),
        first_(place.first),
        partials_(reinterpret_cast<float*>(place.shared + place.layout.partials)),
        biases_(reinterpret_cast<float*>(place.shared + place.layout.biases)),
        state_(reinterpret_cast<float*>(place.shared + place.layout.states)),
        weights_(a.H, place.shared + place.layout.weights),
        producers_{weights_.depth_begin() / units_,
                   ((weights_.depth_end() < H_ ? weights_.depth_end() : H_) - 1) / units_},
        exchange_(exchange) {}

  __device__ __forceinline__ void run() {
    load_weights();
    load_biases();
    exchange_.begin();
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      load_initial(chunk);
      exchange_.publish(chunk, 1);
    }
    for (ForwardWalk walk(a_.lengths, a_.T, a_.N, d_.reverse); walk.k < a_.T; walk.advance()) {
      for (int chunk = 0; chunk < chunks_; ++chunk) {
        if (walk.now > first_ + chunk * kColumns) {
          step(walk, chunk);
        }
      }
    }
    exchange_.end();
  }

 private:
  struct Unit {
    int here, column;  // in the block, in the chunk
    int unit, n;       // of the layer: hidden unit, sequence
  };

  __device__ __forceinline__ Unit unit_of_round(int round, int chunk) const {
    const UnitOfChunk at =
        unit_of_chunk<kColumns>(static_cast<int>(threadIdx.x) + round * kS.threads());
    return {at.unit, at.column, first_unit_ + at.unit, first_ + chunk * kColumns + at.column};
  }

  __device__ __forceinline__ bool is_there(const Unit& u, int sequences) const {
    return u.here < units_ && u.unit < H_ && u.n < sequences;
  }

  // Gate g of the block's units stands in rows g * units on.
  __device__ __forceinline__ void load_weights() {
    const S* const w = elements<const S>(d_.w_hh);
    weights_.load([&](int row, int k) {
      const int gate = row / units_, unit = first_unit_ + row % units_;
      const bool there = gate < G && unit < H_ && k < H_;
      return there ? w[(std::int64_t{gate} * H_ + unit) * H_ + k] : S{};
    });
  }

  // [pre-activation][unit]
  __device__ __forceinline__ void load_biases() {
#pragma unroll
    for (int p = 0; p < kPre; ++p) {
      for (int i = static_cast<int>(threadIdx.x); i < units_; i += kS.threads()) {
        const int unit = first_unit_ + i, at = Cell::order(p) * H_ + unit;
        float sum = 0;
        if (unit < H_ && p < G && d_.b_ih != nullptr) {
          sum += widen(elements<const S>(d_.b_ih)[at]);
        }
        if (unit < H_ && p >= Cell::kRecurrent && d_.b_hh != nullptr) {
          sum += widen(elements<const S>(d_.b_hh)[at]);
        }
        biases_[p * units_ + i] = sum;
      }
    }
  }

  __device__ __forceinline__ float& state(int chunk, const Unit& u) const {
    return state_[chunk * units_ * kColumns + place_of<kColumns>(u.here, u.column)];
  }

  // In the exchange.
  __device__ __forceinline__ static int place_of_h(const Unit& u) {
    return (u.unit / Product::kDepth * kColumns + u.column) * Product::kDepth +
           u.unit % Product::kDepth;
  }

  // To both copies: a sequence that begins late finds h0 wherever it looks.
  __device__ __forceinline__ void load_initial(int chunk) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Unit u = unit_of_round(round, chunk);
      if (is_there(u, static_cast<int>(a_.N))) {
        const std::int64_t at = std::int64_t{u.n} * H_ + u.unit;
        const S h0 = elements<const S>(d_.h0)[at];
        if constexpr (kHasState) {
          state(chunk, u) = widen(Cell::kHasCell ? elements<const S>(d_.c0)[at] : h0);
        }
        for (int parity = 0; parity < 2; ++parity) {
          exchange_.write(exchange_.copy(chunk, parity), place_of_h(u), Product::rounded(h0));
        }
      }
    }
  }

  __device__ __forceinline__ void step(const ForwardWalk& walk, int chunk) {
    T gates[kHeld][G] = {}, saved[kHeld][Cell::kSaved] = {}, h[kHeld] = {};
    if constexpr (kInRegisters) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        load_gates(walk, unit_of_round(round, chunk), gates[round]);
      }
    }

    const int sequences = first_ + chunk * kColumns;
    const unsigned published = walk.before > sequences ? static_cast<unsigned>(walk.k) + 1 : 1;
    exchange_.wait(chunk, published, producers_);
    typename Warp::Sums sums{};
    weights_.template multiply<Exchange>(exchange_.copy(chunk, (walk.k + 1) % 2), sums);
    weights_.store(sums, partials_);
    __syncthreads();

    S* const next = exchange_.copy(chunk, walk.k % 2);
    const bool goes_on = walk.after > sequences;
#pragma unroll kHeld
    for (int round = 0; round < kRounds; ++round) {
      const Unit u = unit_of_round(round, chunk);
      const int held = kInRegisters ? round : 0;
      if constexpr (!kInRegisters) {
        load_gates(walk, u, gates[held]);
      }
      if (is_there(u, walk.now)) {
        h[held] = apply_cell(u, chunk, gates[held], saved[held]);
        if (goes_on) {
          exchange_.write(next, place_of_h(u), Product::rounded(narrow<S>(h[held])));
        }
        if constexpr (!kInRegisters) {
          store_outputs(walk, u, saved[held], h[held]);
        }
      }
    }
    if (goes_on) {
      exchange_.publish(chunk, static_cast<unsigned>(walk.k) + 2);
    } else {
      __syncthreads();  // the partial sums have been read
    }
    if constexpr (kInRegisters) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const Unit u = unit_of_round(round, chunk);
        if (is_there(u, walk.now)) {
          store_outputs(walk, u, saved[round], h[round]);
        }
      }
    }
    expect_gates(walk, chunk);
  }

  __device__ __forceinline__ const T* gates_of(std::int64_t row, const Unit& u) const {
    return elements<const T>(d_.gates) + (row + u.n) * G * H_ + u.unit;
  }

  __device__ __forceinline__ void load_gates(const ForwardWalk& walk, const Unit& u,
                                             T (&gates)[G]) const {
    if (is_there(u, walk.now)) {
      const T* const from = gates_of(walk.row, u);
#pragma unroll
      for (int p = 0; p < G; ++p) gates[p] = from[std::int64_t{Cell::order(p)} * H_];
    }
  }

  // Asks for the gates of the step after the next one: those of the next are loaded at once.
  __device__ __forceinline__ void expect_gates(const ForwardWalk& walk, int chunk) const {
#pragma unroll 1
    for (int round = 0; round < kRounds; ++round) {
      const Unit u = unit_of_round(round, chunk);
      if (is_there(u, walk.beyond)) {
        const T* const from = gates_of(walk.row_beyond(), u);
#pragma unroll
        for (int g = 0; g < G; ++g) ptx::prefetch(from + std::int64_t{g} * H_);
      }
    }
  }

  __device__ __forceinline__ T apply_cell(const Unit& u, int chunk, const T (&gates)[G],
                                          T (&saved)[Cell::kSaved]) const {
    T pre[kPre];
#pragma unroll
    for (int p = 0; p < kPre; ++p) {
      pre[p] = biases_[p * units_ + u.here];
      if (p < G) {
        pre[p] += gates[p];
      }
      if (p >= Cell::kRecurrent) {
        pre[p] += Warp::sum(partials_, Cell::order(p) * units_ + u.here, u.column);
      }
    }
    T h;
    if constexpr (kHasState) {
      T& kept = state(chunk, u);
      h = Cell::forward(pre, kept, saved);
      kept = Cell::kHasCell ? saved[G] : widen(narrow<S>(h));  // the next step gets h as y has it
    } else {
      h = a_.cell == CellKind::kRnnRelu ? Rnn<true>::forward(pre, T{}, saved)
                                        : Rnn<false>::forward(pre, T{}, saved);
    }
    return h;
  }

  __device__ __forceinline__ void store_outputs(const ForwardWalk& walk, const Unit& u,
                                                const T (&saved)[Cell::kSaved], T h) const {
    const std::int64_t row = walk.row + u.n, at = row * H_ + u.unit;
    elements<S>(d_.y)[at] = narrow<S>(h);
    if (u.n >= walk.after) {
      const std::int64_t last = std::int64_t{u.n} * H_ + u.unit;
      elements<S>(d_.h_n)[last] = narrow<S>(h);
      if constexpr (Cell::kHasCell) {
        elements<S>(d_.c_n)[last] = narrow<S>(saved[G]);
      }
    }
    if (a_.training) {
      T* const gates = elements<T>(d_.gates) + row * G * H_ + u.unit;
#pragma unroll
      for (int g = 0; g < G; ++g) gates[std::int64_t{g} * H_] = saved[g];
      if constexpr (kHasState) {
        elements<T>(d_.extra)[at] = saved[G];
      }
    }
  }

  const PersistentForward& a_;
  const PersistentForwardDirection& d_;
  const int H_, first_unit_, units_, chunks_, first_;
  float *const partials_, *const biases_, *const state_;
  Warp weights_;
  const Producers producers_;  // of what this warp reads
  Exchange exchange_;
};

}  // namespace cuda
}  // namespace fused_rnn

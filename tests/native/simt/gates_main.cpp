// The fused gate kernels on arrays without an element to spare, for a build with sanitizers: every
// kernel, cell and type. What they compute is tests/backends/native/cuda/test_gates.py's business; here every
// output has to be written, and in every order the same.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <vector>

#include "cells.h"
#include "cuda/stepwise/marked.h"
#include "cuda/stepwise/steps.h"

extern "C" void simt_set_order(std::uint64_t order);

namespace fused_rnn {
namespace cuda {
namespace {

struct Case {
  std::int64_t N, H, inner, outer;
  bool full;     // all that may be absent is there
  bool aligned;  // to 16 bytes
};

constexpr Case kCases[] = {
    {1, 1, 0, 0, true, true},        {5, 7, 2, 3, true, true},    {5, 7, 0, 5, false, true},
    {9, 48, 3, 6, true, true},       {9, 48, 6, 3, false, true},  {9, 48, 9, 0, true, false},
    {260, 16, 100, 260, true, true}, {2, 1040, 1, 1, true, true}, {0, 16, 0, 0, true, true},
};

template <class E>
bool has_nan(const std::vector<unsigned char>& bytes, std::size_t begin) {
  for (std::size_t i = begin; i < bytes.size(); i += sizeof(E)) {
    E element;
    std::memcpy(&element, &bytes[i], sizeof(E));
    if (std::isnan(widen(element))) {
      return true;
    }
  }
  return false;
}

// An allocation of its own, so that what lies before and behind it is out of bounds. All NaN.
struct Array {
  std::size_t shift;  // of the address, away from 16 bytes
  std::vector<unsigned char> bytes;
  bool (*has_nan)(const std::vector<unsigned char>&, std::size_t);
};

// One step of one cell and type, forward and backward, with arrays made as they are named.
template <class Cell, class S>
class Run {
 public:
  using T = typename ComputeType<S>::type;

  Run(CellKind cell, Dtype dtype, const Case& c) : c_(c) {
    constexpr std::int64_t G = Cell::kGates;
    constexpr bool kState = Cell::kHasCell || Cell::kStateIsHidden;
    const std::int64_t N = c.N, H = c.H;
    ForwardStep f{};
    fill(f, cell, dtype);
    f.training = true;
    f.gates = drawn<T>(N * G * H);
    f.recurrent = drawn<T>(N * G * H);
    f.b_ih = c.full ? drawn<S>(G * H) : nullptr;
    f.b_hh = c.full ? drawn<S>(G * H) : nullptr;
    if (kState) {
      f.prev = Cell::kHasCell ? drawn<T>(c.inner * H) : drawn<S>(c.inner * H);
      f.initial = drawn<S>(N * H);
    }
    f.c = Cell::kHasCell ? array<T>(N * H) : nullptr;
    f.a_nh = Cell::kStateIsHidden ? array<T>(N * H) : nullptr;
    f.h = array<S>(N * H);
    f.h_again = c.full ? array<S>(N * H) : nullptr;
    f.h_n = c.full ? drawn<S>(N * H) : nullptr;
    f.c_n = Cell::kHasCell ? drawn<S>(N * H) : nullptr;
    f.c_again = c.full && Cell::kHasCell ? drawn<S>(N * H) : nullptr;
    launch_forward_step(f, nullptr);

    BackwardStep b{};
    static_cast<Step&>(b) = f;
    b.gates = f.gates;
    b.extra = Cell::kHasCell ? f.c : f.a_nh;
    b.dh = c.full ? nullptr : drawn<T>(N * H);
    b.dy = c.full ? drawn<S>(N * H) : nullptr;
    b.recurrent = drawn<T>(c.outer * H);
    b.dh_n = c.full ? drawn<S>(N * H) : nullptr;
    b.dc_n = c.full && Cell::kHasCell ? drawn<S>(N * H) : nullptr;
    b.dc = c.full && Cell::kHasCell ? drawn<S>(N * H) : nullptr;
    b.carry = kState ? drawn<T>(N * H) : nullptr;
    b.dgates_x = array<S>(N * G * H);
    b.dgates_h = Cell::kStateIsHidden ? array<S>(N * G * H) : nullptr;
    b.h = Cell::kHasCell && c.full ? array<S>(N * H) : nullptr;
    launch_backward_step(b, nullptr);
    launch_hidden_step({dtype, N, H, c.outer, b.dy, b.recurrent, b.dh_n, array<S>(N * H)}, nullptr);
    run_marked(f, b);
  }

  bool has_nan() const {
    return std::any_of(arrays_.begin(), arrays_.end(),
                       [](const Array& a) { return a.has_nan(a.bytes, a.shift); });
  }

  std::vector<unsigned char> contents() const {
    std::vector<unsigned char> all;
    for (const Array& a : arrays_) {
      all.insert(all.end(), a.bytes.begin(), a.bytes.end());
    }
    return all;
  }

 private:
  // The same step with marks, the arrays read in the rows of sequences that go on all being there.
  void run_marked(const ForwardStep& plain, const BackwardStep& plain_back) {
    constexpr std::int64_t G = Cell::kGates;
    constexpr bool kState = Cell::kHasCell || Cell::kStateIsHidden;
    const std::int64_t N = c_.N, H = c_.H, kSteps = 3;
    const auto* const marks = static_cast<const Mark*>(drawn_marks(kSteps * N));
    MarkedForwardStep f{};
    static_cast<ForwardStep&>(f) = plain;
    f.marks = {marks, c_.full ? marks + N : nullptr};
    f.gates = drawn<T>(N * G * H);
    f.first = drawn<T>((N + 1) * G * H);
    if (kState) {
      f.prev = Cell::kHasCell ? drawn<T>(N * H) : drawn<S>(N * H);
    }
    f.initial = drawn<S>((N + 1) * H);
    launch_marked_forward_step(f, nullptr);

    MarkedBackwardStep b{};
    static_cast<BackwardStep&>(b) = plain_back;
    static_cast<Step&>(b) = f;
    b.marks = f.marks;
    b.gates = f.gates;
    b.dh = nullptr;
    b.recurrent = drawn<T>(N * H);
    b.dfirst = drawn<T>(2 * N * G * H);
    b.dinitial = kState ? drawn<T>(2 * N * H) : nullptr;
    launch_marked_backward_step(b, nullptr);

    for (const std::int64_t shift : {-1, 1}) {
      launch_picked_rows({f.dtype, kSteps, N, H, marks, drawn<S>(kSteps * N * H), shift,
                          shift < 0 && c_.full ? nullptr : f.initial, array<S>(kSteps * N * H)},
                         nullptr);
    }
    launch_initial_gradient(
        {f.dtype, N, H, marks, b.recurrent, c_.full ? b.carry : nullptr, b.dh_n, array<S>(N * H)},
        nullptr);
  }

  // All that a byte may say, the marks that there are among them.
  void* drawn_marks(std::int64_t elements) {
    arrays_.push_back({0, std::vector<unsigned char>(static_cast<std::size_t>(elements)),
                       [](const std::vector<unsigned char>&, std::size_t) { return false; }});
    std::vector<unsigned char>& bytes = arrays_.back().bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<unsigned char>(i % 11 == 10 ? 255 : i % 5);
    }
    return bytes.data();
  }

  void fill(Step& step, CellKind cell, Dtype dtype) const {
    step.cell = cell, step.dtype = dtype;
    step.N = c_.N, step.H = c_.H, step.inner = c_.inner, step.outer = c_.outer;
  }

  template <class E>
  void* array(std::int64_t elements) {
    const std::size_t shift = c_.aligned ? 0 : sizeof(E);
    const std::size_t size = shift + static_cast<std::size_t>(elements) * sizeof(E);
    arrays_.push_back({shift, std::vector<unsigned char>(size, 0xff), cuda::has_nan<E>});
    return arrays_.back().bytes.data() + shift;
  }

  template <class E>
  void* drawn(std::int64_t elements) {
    auto* const at = static_cast<E*>(array<E>(elements));
    for (std::int64_t i = 0; i < elements; ++i) {
      const E element = narrow<E>(static_cast<typename ComputeType<E>::type>(std::sin(++draws_)));
      std::memcpy(at + i, &element, sizeof(E));
    }
    return at;
  }

  const Case c_;
  double draws_ = 0;
  std::deque<Array> arrays_;  // which stay where they are
};

int runs = 0, failures = 0;

template <class Cell, class S>
void check(CellKind cell, Dtype dtype, const Case& c, const char* name) {
  std::vector<unsigned char> first;
  for (const std::uint64_t order : {0, 1, 2}) {  // forward, backward, random
    simt_set_order(order);
    const Run<Cell, S> run(cell, dtype, c);
    first = order == 0 ? run.contents() : first;
    ++runs;
    if (run.has_nan() || run.contents() != first) {
      ++failures;
      std::printf("WRONG %s cell %d N=%d H=%d order %d: %s\n", name, static_cast<int>(cell),
                  static_cast<int>(c.N), static_cast<int>(c.H), static_cast<int>(order),
                  run.has_nan() ? "not all is written" : "another result");
    }
  }
}

int run_all() {
  for (const Case& c : kCases) {
#define FUSED_RNN_CHECK(name, stored, compute)                             \
  check<Lstm, stored>(CellKind::kLstm, Dtype::k##name, c, #name);          \
  check<Gru, stored>(CellKind::kGru, Dtype::k##name, c, #name);            \
  check<Rnn<false>, stored>(CellKind::kRnnTanh, Dtype::k##name, c, #name); \
  check<Rnn<true>, stored>(CellKind::kRnnRelu, Dtype::k##name, c, #name);
    FUSED_RNN_DTYPES(FUSED_RNN_CHECK)
#undef FUSED_RNN_CHECK
  }
  std::printf("%d runs of the gate kernels, %d wrong\n", runs, failures);
  return failures > 0 || runs == 0;
}

}  // namespace
}  // namespace cuda
}  // namespace fused_rnn

int main() { return fused_rnn::cuda::run_all(); }

// What forward and backward share: the chunks of steps, and where a cell's arrays lie.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// A group of consecutive steps whose input product is made at once, so that the weights are read
// once for all of them and the result is used while it is in the cache.
constexpr std::int64_t kForwardChunkRows = 96;
constexpr std::int64_t kBackwardChunkRows = 384;

template <class StepsOf>
std::int64_t chunk_begin(const StepsOf& s, std::int64_t end, std::int64_t rows) {
  std::int64_t k = end - 1;
  while (k > 0 && s.rows(k - 1, end) <= rows) {
    --k;
  }
  return k;
}

// Hidden units are cut into slices of one vector; a slice's values lie together:
//   gates_x  [slice][row of the chunk][kGates][lane]
//   dgates   [slice][row of the chunk][kPre][lane]
//   saved    [slice][row][kKept][lane]
// and states are [n][unit], padded to whole slices.
template <class Cell, class S>
struct Shape {
  using T = typename ComputeType<S>::type;
  static constexpr std::int64_t kW = kLanes<T>;
  // The last value that a cell saves is h, where it has no c: y has that already. A plain RNN's is
  // the more exact one where y is of a narrower type.
  static constexpr bool kHiddenInY =
      Cell::kStateIsHidden || (!Cell::kHasCell && std::is_same<S, T>::value);
  static constexpr int kKept = Cell::kSaved - (kHiddenInY ? 1 : 0);

  explicit Shape(const ScanArgs& a)
      : N(a.N),
        I(a.I),
        H(a.H),
        P(a.P),
        R(a.P > 0 ? a.P : a.H),
        slices(ceil_div(H, kW)),
        Hp(slices * kW),
        Rp(ceil_div(R, kW) * kW) {}

  const std::int64_t N, I, H, P, R, slices, Hp, Rp;

  // The most values that an array has in a row: what a step's rows take of the cache.
  std::int64_t widest() const { return std::max({I, Rp, Cell::kPre * Hp}); }

  std::int64_t valid(std::int64_t slice) const { return std::min(kW, H - slice * kW); }

  // Rows of a gate matrix (G*H, ...) that give vector q of the pre-activations from `first_pre` on.
  RowBlock<S> gate_rows(const void* w, std::int64_t columns, std::int64_t q, int first_pre) const {
    const std::int64_t slice = q / Cell::kGates;
    const int gate = Cell::order(first_pre + q % Cell::kGates);
    return {static_cast<const S*>(w) + (gate * H + slice * kW) * columns, valid(slice)};
  }

  // Row of a gate matrix that multiplies dgates at depth k = (slice, gate, lane); null past H.
  const S* gate_row(const void* w, std::int64_t columns, std::int64_t k, int first_pre) const {
    const std::int64_t slice = k / (Cell::kGates * kW), lane = k % kW;
    const int gate = Cell::order(first_pre + k / kW % Cell::kGates);
    return lane < valid(slice) ? static_cast<const S*>(w) + (gate * H + slice * kW + lane) * columns
                               : nullptr;
  }
};

// What stands in pre-activation p of a slice beside the products.
template <class Cell, class S>
auto gate_bias(const ScanArgs& a, const Shape<Cell, S>& s, std::int64_t slice, int p) {
  const std::int64_t unit = Cell::order(p) * s.H + slice * s.kW;
  Vec<typename Shape<Cell, S>::T> b{};
  if (a.b_ih != nullptr && p < Cell::kGates) {
    b += load(static_cast<const S*>(a.b_ih) + unit, s.valid(slice));
  }
  if (a.b_hh != nullptr && p >= Cell::kRecurrent) {
    b += load(static_cast<const S*>(a.b_hh) + unit, s.valid(slice));
  }
  return b;
}

// Threads that pay: below some ten thousand multiplications per step, the input's among them, a second
// thread costs more in waiting than it saves in work.
inline int useful_threads(const ScanArgs& a, std::int64_t gates) {
  constexpr std::int64_t kWorkPerThread = 16384;
  const std::int64_t work = a.N * gates * a.H * ((a.P > 0 ? a.P : a.H) + a.I);
  return static_cast<int>(std::min<std::int64_t>(std::max(a.threads, 1),
                                                 std::max<std::int64_t>(work / kWorkPerThread, 1)));
}

// Runs `scan`, an object with member(Team::Member&), on as many members as pay.
template <class Args, class Scan>
void run_team(const Args& a, int members, Scan& scan) {
  Team team(members);
  struct Context {
    Team& team;
    Scan& scan;
    FloatMode mode;
  } context{team, scan, float_mode()};
  const auto body = [](int id, void* p) {
    auto* c = static_cast<Context*>(p);
    const BorrowedFloatMode mode(c->mode);
    Team::Member member(c->team, id);
    c->scan.member(member);
  };
  if (members == 1) {
    body(0, &context);
  } else {
    a.parallel(members, body, &context);
  }
}

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

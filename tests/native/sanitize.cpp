// The kernels without Python and PyTorch, for a build with sanitizers: many problems, each against
// loops that anybody can read. `sanitize teams` runs only what takes several threads, in every way;
// `sanitize LEVEL few` leaves out the largest and the reverse ones, for a CPU that is emulated.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <thread>

#include "cases.h"
#include "exact_run.h"
#include "levels.h"
#include "parallels.h"
#include "switched_scratch.h"

namespace fused_rnn {

#define FUSED_RNN_DECLARE(level)  \
  namespace level {               \
  extern const cpu::Level kLevel; \
  }
FUSED_RNN_BENCH_LEVELS(FUSED_RNN_DECLARE)
#undef FUSED_RNN_DECLARE

namespace bench {
namespace {

const cpu::Level* const kLevels[] = {
#define FUSED_RNN_ROW(level) &level::kLevel,
    FUSED_RNN_BENCH_LEVELS(FUSED_RNN_ROW)
#undef FUSED_RNN_ROW
};

constexpr Team kAlone{1, threads};

int failures = 0, comparisons = 0;
bool few = false;

void fail(const std::string& where, const char* name, double error) {
  ++failures;
  std::printf("WRONG %s: %s is off by %g\n", where.c_str(), name, error);
}

// Relative to the largest number expected.
void compare(const std::string& where, const char* name, const Numbers& found,
             const Numbers& expected, double tolerance) {
  ++comparisons;
  double largest = 1e-3, error = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::fabs(found[i] - expected[i]);
    error = std::isnan(difference) ? HUGE_VAL : std::max(error, difference);
    largest = std::max(largest, std::fabs(expected[i]));
  }
  if (error > tolerance * largest) {
    fail(where, name, error / largest);
  }
}

struct Field {
  const char* name;
  Numbers Outcome::* numbers;
};
// Gradients in the order of BackwardArgs.
constexpr Field kResults[] = {{"y", &Outcome::y}, {"h_n", &Outcome::h_n}, {"c_n", &Outcome::c_n}};
constexpr Field kGradients[] = {{"dx", &Outcome::dx},       {"dh0", &Outcome::dh0},
                                {"dc0", &Outcome::dc0},     {"dw_ih", &Outcome::dw_ih},
                                {"dw_hh", &Outcome::dw_hh}, {"db_ih", &Outcome::db_ih},
                                {"db_hh", &Outcome::db_hh}, {"dw_hr", &Outcome::dw_hr}};

// What was not asked for is empty in `found`, and not compared.
void compare(const std::string& where, const Outcome& found, const Outcome& expected,
             double tolerance, double gradient_tolerance) {
  for (const Field& f : kResults) {
    compare(where, f.name, found.*f.numbers, expected.*f.numbers, tolerance);
  }
  for (const Field& f : kGradients) {
    compare(where, f.name, found.*f.numbers, expected.*f.numbers, gradient_tolerance);
  }
}

template <class S>
struct Kind;
template <>
struct Kind<float> {
  static constexpr double kTolerance = 4e-6, kGradient = 8e-6;
};
template <>
struct Kind<double> {
  static constexpr double kTolerance = 1e-14, kGradient = 2e-14;
};
template <>
struct Kind<Half> {
  static constexpr double kTolerance = 2e-3, kGradient = 8e-3;
};
template <>
struct Kind<BFloat16> {
  static constexpr double kTolerance = 2e-2, kGradient = 5e-2;
};

std::string describe(const cpu::Level& level, const Variant& v, const char* dtype, const Sizes& s,
                     bool reverse, const char* how) {
  char text[200];
  std::snprintf(text, sizeof(text), "%s %s %s T=%d N=%d I=%d H=%d%s%s %s", level.name, v.name,
                dtype, static_cast<int>(s.T), static_cast<int>(s.N), static_cast<int>(s.I),
                static_cast<int>(s.H), s.batch_sizes.empty() ? "" : " ragged",
                reverse ? " reverse" : "", how);
  return text;
}

// The ways to call one level with one problem, by one thread. Of the gradients that may be asked for
// alone it is one, another for each problem: which one makes no difference to the rest.
template <class S>
void check_calls(const cpu::Level& level, const ExactRun<S>& run, const Outcome& expected,
                 const std::string& where, int single) {
  const auto check = [&](Choice choice, const char* how) {
    compare(where + how, run.run(level, kAlone, choice), expected, Kind<S>::kTolerance,
            Kind<S>::kGradient);
  };
  check({}, "training");
  check({false}, "inference");
  check({true, true, single}, kGradients[single].name);
  const Outcome still = run.run(level, kAlone, {true, false});
  for (const Field& f : kGradients) {
    const Numbers& g = still.*f.numbers;
    compare(where + "nothing fed back", f.name, g, Numbers(g.size()), 0);
  }
}

constexpr Parallel kParallels[] = {threads, only_first, only_last,  in_turn,
                                   late,    crowded,    interrupted};

// Teams; scratch of the second run is the first one's where it is kept.
template <class S>
void check_teams(const cpu::Level& level, const ExactRun<S>& run, const Outcome& expected,
                 const std::string& where, Parallel parallel) {
  const Outcome alone = run.run(level, kAlone);
  compare(where + "alone", alone, expected, Kind<S>::kTolerance, Kind<S>::kGradient);
  for (const Scratch kind : {Scratch::kStrict, Scratch::kKept, Scratch::kKept}) {
    scratch = kind;
    compare(where + "team", run.run(level, {3, parallel}), alone, 0, 0);
    scratch = Scratch::kStrict;
  }
}

template <class S>
void check_type(const cpu::Level& level, Dtype dtype, const char* name, bool teams,
                bool every_parallel) {
  std::size_t turn = 0;
  int single = 0;
  for (const Variant& variant : kVariants) {
    for (const Sizes& sizes : teams ? team_sizes() : all_sizes()) {
      const bool large = is_large(sizes);
      const std::size_t parallels = every_parallel && !large ? std::size(kParallels) : 1;
      for (const bool reverse : {false, true}) {
        if ((large && reverse) || (few && (large || reverse)) ||
            (is_cut(sizes) && dtype != Dtype::kFloat) ||
            (outgrows_half(variant, sizes) && dtype == Dtype::kHalf) ||
            (is_banded(sizes) && &variant != kVariants && variant.cell != CellKind::kRnnTanh)) {
          continue;
        }
        const Operands operands = draw_operands(variant, sizes, reverse, round_to<S>);
        const Outcome expected = Naive(operands, round_to<S>).run();
        const ExactRun<S> run(operands, dtype);
        const std::string where = describe(level, variant, name, sizes, reverse, "");
        if (!teams) {
          check_calls<S>(level, run, expected, where, single++ % 8);
        }
        for (std::size_t i = 0; teams && i < parallels; ++i) {
          check_teams<S>(level, run, expected, where, kParallels[turn++ % std::size(kParallels)]);
        }
      }
    }
  }
}

// Several calls at once, each with a team of its own, and one cache of scratch blocks among them.
void check_callers(const cpu::Level& level) {
  scratch = Scratch::kKept;
  std::vector<std::thread> callers;
  Outcome alone[3], found[3];
  for (std::size_t i = 0; i < 3; ++i) {
    callers.emplace_back([&, i] {
      const Operands operands = draw_operands(kVariants[i], {6, 30, 20, 40 + static_cast<int>(i)},
                                              false, round_to<float>);
      const ExactRun<float> run(operands, Dtype::kFloat);
      alone[i] = run.run(level, kAlone);
      for (int again = 0; again < 3; ++again) {
        found[i] = run.run(level, {2, threads});
      }
    });
  }
  join(callers);
  scratch = Scratch::kStrict;
  for (std::size_t i = 0; i < 3; ++i) {
    compare(std::string(level.name) + " callers at once", found[i], alone[i], 0, 0);
  }
}

}  // namespace

// `only`: the level to run; null: all.
int run(bool only_teams, const char* only, bool only_few) {
  few = only_few;
  for (const cpu::Level* const level : kLevels) {
    if (only != nullptr && std::strcmp(only, level->name) != 0) {
      continue;
    }
    if (const char* const missing = lacks(level->name)) {
      std::printf("%s left out: %s\n", level->name, missing);
      if (only != nullptr) {
        return 0;
      }
      continue;
    }
#define FUSED_RNN_CHECK(type, stored, compute)                       \
  if (!only_teams) {                                                 \
    check_type<stored>(*level, Dtype::k##type, #type, false, false); \
  }                                                                  \
  check_type<stored>(*level, Dtype::k##type, #type, true, only_teams);
    FUSED_RNN_DTYPES(FUSED_RNN_CHECK)
#undef FUSED_RNN_CHECK
    check_callers(*level);
    std::printf("%s: %d comparisons so far\n", level->name, comparisons);
    std::fflush(stdout);
  }
  std::printf("%d comparisons, %d wrong\n", comparisons, failures);
  return failures > 0 || comparisons == 0;
}

}  // namespace bench
}  // namespace fused_rnn

int main(int argc, char** argv) {
  const bool teams = argc > 1 && std::strcmp(argv[1], "teams") == 0;
  const bool few = argc > 2 && std::strcmp(argv[2], "few") == 0;
  return fused_rnn::bench::run(teams, argc > 1 && !teams ? argv[1] : nullptr, few);
}

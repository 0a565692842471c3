// A variant's scan, backward: what comes of a step's state row by row, then the recurrent product.
//
// It leaves the gradients of what the products have said. Those of weights are products of these, made
// of all steps at once, by whoever calls.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class VariantBackward : BackwardRows<T> {
  using Rows = BackwardRows<T>;
  using V = typename Rows::V;
  using Here = typename Rows::Here;
  using Rows::a_, Rows::o_, Rows::steps_, Rows::H_, Rows::R_, Rows::GH_, Rows::of;
  using Rows::extra_, Rows::own_, Rows::dh_, Rows::dc_, Rows::dhidden_, Rows::dreset_;

 public:
  VariantBackward(const VariantBackwardArgs& a, int members)
      : Rows(a, members),
        product_(this->recurrent(0, o_.reset_before ? 2 : o_.gates, true)),
        late_(o_.reset_before ? this->recurrent(2, 3, true) : HeadProduct<T>()),
        projection_(this->projection(true)) {}

  void member(Team::Member& m) {
    const std::int64_t early = product_.groups(), late = late_.groups();
    m.run(early + late + projection_.groups(), [&](std::int64_t i) {
      i < early          ? product_.pack(i)
      : i < early + late ? late_.pack(i - early)
                         : projection_.pack(i - early - late);
    });
    m.run(this->blocks(), [&](std::int64_t block) { std::fill_n(this->own(block), own_, T{}); });
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      take(a_.dh_n, n, R_, dh_.get());
      if (o_.lstm()) {
        take(a_.dc_n, n, H_, dc_.get());
      }
    });
    for (std::int64_t k = a_.T - 1; k >= 0; --k) {
      step(m, k);
    }
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      std::copy_n(dh_.get() + n * R_, R_, of(a_.dh0) + n * R_);
      if (o_.lstm()) {
        std::copy_n(dc_.get() + n * H_, H_, of(a_.dc0) + n * H_);
      }
    });
    m.run(1, [&](std::int64_t) { add_up(); });
  }

 private:
  static void take(const void* given, std::int64_t n, std::int64_t units, T* to) {
    if (given != nullptr) {
      std::copy_n(of(given) + n * units, units, to + n * units);
    } else {
      std::fill_n(to + n * units, units, T{});
    }
  }

  // Over the blocks, whose rows never change hands: the same sums whoever took them.
  void add_up() {
    for (std::int64_t i = 0; i < own_; ++i) {
      T sum{};
      for (std::int64_t block = 0; block < this->blocks(); ++block) {
        sum += this->own(block)[i];
      }
      (i < extra_ ? of(a_.dextra)[i] : of(a_.dbias)[i - extra_]) = sum;
    }
  }

  void step(Team::Member& m, std::int64_t k) {
    const std::int64_t batch = steps_.batch(k), first = steps_.begin(k);
    const auto each = [&](auto&& f) {
      this->for_rows(m, batch,
                     [&](std::int64_t n, std::int64_t block) { f(Here{n, k, first + n, block}); });
    };
    each([&](const Here& at) { this->hidden_row(at); });
    if (a_.P > 0) {
      projection_.multiply(m, of(a_.dproj) + first * a_.P, a_.P, batch,
                           [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                             store<T>(dhidden_.get() + n * H_ + unit, sums, valid);
                           });
      each([&](const Here& at) { this->gates_row(at); });
    }
    const T* const from = of(o_.split() ? a_.dsums : a_.dgates) + first * GH_;
    if (o_.reset_before) {
      late_.multiply(m, from, GH_, batch,
                     [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                       store<T>(dreset_.get() + n * H_ + unit, sums, valid);
                     });
      each([&](const Here& at) { this->resetting_row(at); });
    }
    const T scale = static_cast<T>(1 / (1 - o_.dropout));
    T* const dh = dh_.get();
    const T* const pass = this->passes_ ? this->pass_.get() : nullptr;
    const T* const dreset = o_.reset_before ? dreset_.get() : nullptr;
    const T* const mask = of(a_.mask);
    product_.multiply(m, from, GH_, batch,
                      [&](std::int64_t n, std::int64_t unit, V sums, std::int64_t valid) {
                        const std::int64_t at = n * R_ + unit;
                        if (dreset != nullptr) {
                          sums += load(dreset + at, valid);
                        }
                        if (mask != nullptr) {
                          sums *= load(mask + at, valid) * scale;
                        }
                        if (pass != nullptr) {
                          sums += load(pass + at, valid);
                        }
                        store<T>(dh + at, sums, valid);
                      });
  }

  HeadProduct<T> product_, late_, projection_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

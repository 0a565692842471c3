// A variant's scan, forward: in each step the recurrent product, then what is made of it row by row,
// as norms need all of a row; then a second product where the reset comes before it, or a projection.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class T>
class VariantForward : ForwardRows<T> {
  using Rows = ForwardRows<T>;
  using V = typename Rows::V;
  using Here = typename Rows::Here;
  using Rows::a_, Rows::o_, Rows::steps_, Rows::H_, Rows::R_, Rows::of;

 public:
  VariantForward(const VariantForwardArgs& a, int members)
      : Rows(a, members),
        product_(this->recurrent(0, o_.reset_before ? 2 : o_.gates, false)),
        late_(o_.reset_before ? this->recurrent(2, 3, false) : HeadProduct<T>()),
        projection_(this->projection(false)) {}

  void member(Team::Member& m) {
    const std::int64_t early = product_.groups(), late = late_.groups();
    m.run(early + late + projection_.groups(), [&](std::int64_t i) {
      i < early          ? product_.pack(i)
      : i < early + late ? late_.pack(i - early)
                         : projection_.pack(i - early - late);
    });
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) { this->begin_row(n); });
    for (std::int64_t k = 0; k < a_.T; ++k) {
      step(m, k);
    }
    this->for_rows(m, a_.N, [&](std::int64_t n, std::int64_t) {
      std::copy_n(this->h_.get() + n * R_, R_, of(a_.h_n) + n * R_);
      if (o_.lstm()) {
        std::copy_n(this->c_.get() + n * H_, H_, of(a_.c_n) + n * H_);
      }
    });
  }

 private:
  void step(Team::Member& m, std::int64_t k) {
    const std::int64_t batch = steps_.batch(k), first = steps_.begin(k);
    const auto each = [&](auto&& f) {
      this->for_rows(m, batch,
                     [&](std::int64_t n, std::int64_t block) { f(Here{n, k, first + n, block}); });
    };
    const auto into = [](T* out, std::int64_t row) {
      return [=](std::int64_t n, std::int64_t column, V sums, std::int64_t valid) {
        store<T>(out + n * row + column, sums, valid);
      };
    };
    const auto sums = into(this->sums(first), this->sums_step_);
    product_.multiply(m, this->heard(0), R_, batch, sums);
    each([&](const Here& at) { this->early_row(at); });
    if (o_.reset_before) {
      late_.multiply(m, this->reset_h_.get(), H_, batch, sums);
      each([&](const Here& at) { this->late_row(at); });
    }
    if (a_.P > 0) {
      projection_.multiply(m, this->hidden_.get(), H_, batch, into(this->proj_.get(), a_.P));
      each([&](const Here& at) { this->projected_row(at); });
    }
  }

  HeadProduct<T> product_, late_, projection_;
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn

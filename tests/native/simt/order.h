// In which order blocks run, and the threads of a block between two waits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace simt {

class Order {
 public:
  // 0: forward, 1: backward, anything else: a seed of random orders.
  explicit Order(std::uint64_t kind) : kind_(kind), random_(kind) {}

  void draw(std::vector<std::size_t>& order) {
    if (kind_ == 0 || kind_ == 1) {
      std::iota(order.begin(), order.end(), std::size_t{0});
    }
    if (kind_ == 1) {
      std::reverse(order.begin(), order.end());
    } else if (kind_ > 1) {
      std::shuffle(order.begin(), order.end(), random_);
    }
  }

  // Whether who has run goes on before others have their turn.
  bool stays() { return kind_ <= 1 || random_() % 4 != 0; }

 private:
  std::uint64_t kind_;
  std::mt19937_64 random_;
};

}  // namespace simt

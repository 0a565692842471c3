// The tile registers of csrc/cpu/tiles/amx.h in plain C++, to run the same kernels on any machine. Equal
// to the hardware in every bit (measured over normal, tiny, huge, infinite and random operands):
// denormal numbers in and out are zeros, even and odd depths are summed apart, by fused operations
// from zero, then to each other, then to the sum before. What the CPU would refuse ends the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fused_rnn {

struct TileModel {
  static void configure() {
    std::memset(tiles, 0, sizeof(tiles));
    configured = true;
  }
  static void release() { configured = false; }

  template <int kTile>
  static void zero() {
    check();
    std::memset(tiles[kTile], 0, sizeof(tiles[kTile]));
  }
  template <int kTile>
  static void load(const void* from, std::int64_t stride) {
    check();
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(tiles[kTile][r], static_cast<const char*>(from) + r * stride, kBytes);
    }
  }
  template <int kTile>
  static void store(void* to, std::int64_t stride) {
    check();
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[kTile][r], kBytes);
    }
  }
  template <int kC, int kA, int kB>
  static void multiply() {
    static_assert(kC != kA && kC != kB && kA != kB, "the CPU takes no register twice");
    check();
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kRows; ++n) {
        float even = 0, odd = 0, c;
        for (int k = 0; k < kRows; ++k) {
          even = normal(std::fma(half(tiles[kA][m] + 4 * k), half(tiles[kB][k] + 4 * n), even));
          odd =
              normal(std::fma(half(tiles[kA][m] + 4 * k + 2), half(tiles[kB][k] + 4 * n + 2), odd));
        }
        std::memcpy(&c, tiles[kC][m] + 4 * n, sizeof(c));
        c = normal(normal(c) + normal(even + odd));
        std::memcpy(tiles[kC][m] + 4 * n, &c, sizeof(c));
      }
    }
  }

 private:
  static constexpr int kRows = 16, kBytes = 64;
  static inline thread_local unsigned char tiles[8][kRows][kBytes];
  static inline thread_local bool configured = false;

  static void check() {
    if (!configured) {
      std::fputs("a tile is used without a configuration\n", stderr);
      std::abort();
    }
  }
  static float normal(float f) {
    return f != 0 && std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f;
  }
  static float half(const unsigned char* p) {
    std::uint16_t h;
    std::memcpy(&h, p, sizeof(h));
    const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return normal(f);
  }
};

}  // namespace fused_rnn

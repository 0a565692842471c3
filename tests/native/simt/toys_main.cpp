// `toys NAME...` runs toys on arrays without an element to spare, for a build with sanitizers.
#include <cstdio>
#include <vector>

#include "toys.h"

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    constexpr int kBlocks = 4;
    const std::vector<float> in(kBlocks * kToyBlock, 1);
    std::vector<float> out(kBlocks * kToyBlock);
    if (const char* const failure = simt_toy(argv[i], in.data(), out.data())) {
      std::puts(failure);
      return 2;
    }
  }
}

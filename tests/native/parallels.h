// Ways to run a team's members, most of them unkind. Each keeps what scan.h promises (a member runs
// at most once, and all have returned at the end) and no more.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "../../csrc/scan.h"

namespace fused_rnn::bench {

using Body = void (*)(int member, void* context);

inline void nap(int microseconds) {
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

inline void join(std::vector<std::thread>& all) {
  for (std::thread& t : all) {
    t.join();
  }
}

// One thread each, whatever the number of cores.
inline void threads(int n, Body body, void* context) {
  std::vector<std::thread> all;
  for (int i = 0; i < n; ++i) {
    all.emplace_back(body, i, context);
  }
  join(all);
}

inline void only_first(int, Body body, void* context) { body(0, context); }

inline void only_last(int n, Body body, void* context) { body(n - 1, context); }

// Never two at once, the last one first.
inline void in_turn(int n, Body body, void* context) {
  for (int i = n - 1; i >= 0; --i) {
    body(i, context);
  }
}

// The last first, then one more at a time: the others meet work half done, or all of it.
inline void late(int n, Body body, void* context) {
  std::vector<std::thread> all;
  for (int i = n - 1; i >= 0; --i) {
    all.emplace_back(body, i, context);
    nap(200);
  }
  join(all);
}

// Beside threads that want the cores for themselves.
inline void crowded(int n, Body body, void* context) {
  std::atomic<bool> over{false};
  std::vector<std::thread> busy;
  for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); ++i) {
    busy.emplace_back([&] {
      while (!over.load(std::memory_order_relaxed)) {
      }
    });
  }
  threads(n, body, context);
  over = true;
  join(busy);
}

// A signal stops one member after the other, wherever it stands, as the scheduler may.
inline void interrupted(int n, Body body, void* context) {
  struct sigaction sleeps{}, before{};
  sleeps.sa_handler = [](int) { nap(300); };
  sigaction(SIGUSR1, &sleeps, &before);
  std::atomic<int> running{n};
  std::vector<std::thread> all;
  for (int i = 0; i < n; ++i) {
    all.emplace_back([&, i] {
      body(i, context);
      --running;
    });
  }
  for (int i = 0; running > 0; i = (i + 1) % n) {
    pthread_kill(all[static_cast<std::size_t>(i)].native_handle(),
                 SIGUSR1);  // not joined: still valid
    nap(100);
  }
  join(all);
  sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace fused_rnn::bench

"""Interleaved timing of several calls in one process."""

from __future__ import annotations

import gc
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[Callable[[], Any], int], float]

# Short calls are repeated for this long, so that neither the clock nor an interrupt shows.
_SAMPLE_SECONDS = 0.008
# Idle threads spin before they sleep (measured: OpenMP's for 9 ms, onnxruntime's for 38 ms), and
# the next peer would be timed on the cores that they occupy.
_SETTLE_STEP, _SETTLE_LIMIT = 0.001, 0.2
_THREADS = Path("/proc/self/task")
_SETTLE_BLINDLY = 0.05  # where the system does not show which threads run
_MIN_ROUNDS, _MAX_ROUNDS = 7, 41
# Slow cases (a training step of seconds) get fewer rounds rather than all of the run's time.
_FEWEST_ROUNDS, _PATIENCE = 5, 2.0


@dataclass(frozen=True)
class Timing:
    """Seconds per call over all rounds: median and quartiles, and how they were sampled."""

    median_s: float
    q1_s: float
    q3_s: float
    min_s: float
    rounds: int
    calls_per_sample: int

    @property
    def spread(self) -> float:
        """Interquartile range as a fraction of the median."""
        return (self.q3_s - self.q1_s) / self.median_s

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _cpu_clock(call: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def _cuda_clock(call: Callable[[], Any], number: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / number


#: Seconds per call, measured as the device asks for: a GPU's by events around the calls.
CLOCKS: dict[str, Clock] = {"cpu": _cpu_clock, "cuda": _cuda_clock}


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float
) -> dict[str, Timing]:
    """Time ``calls`` round by round, each once a round in a fresh random order.

    Args:
        calls: What to time, by name. Each has run before.
        device: Whose clock to use.
        seconds: Time for all samples together; the least number of rounds may take longer.
    """
    clock = CLOCKS[device.type]
    numbers, cost = {}, 0.0
    for name, call in calls.items():
        once = min(clock(call, 1), clock(call, 1))
        numbers[name] = max(1, math.ceil(_SAMPLE_SECONDS / once))
        cost += once * (numbers[name] + 1) + _settle()
    rounds = min(max(int(seconds / cost), _MIN_ROUNDS), _MAX_ROUNDS)
    if rounds * cost > _PATIENCE * seconds:
        rounds = max(int(_PATIENCE * seconds / cost), _FEWEST_ROUNDS)

    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                _settle()
                if numbers[name] > 1:  # wakes the threads; a long call hides that by itself
                    clock(calls[name], 1)
                samples[name].append(clock(calls[name], numbers[name]))
    finally:
        gc.enable()
    return {name: _summary(samples[name], numbers[name]) for name in calls}


def _settle() -> float:
    """Sleep until no other thread of this process runs; return the seconds that it took."""
    start = time.perf_counter()
    time.sleep(_SETTLE_STEP if _THREADS.exists() else _SETTLE_BLINDLY)
    while _others_run() and time.perf_counter() - start < _SETTLE_LIMIT:
        time.sleep(_SETTLE_STEP)
    return time.perf_counter() - start


def _others_run() -> bool:
    """Whether another thread of this process is on a core or waits for one.

    The process's CPU time would not do: the kernel adds up other cores' at its ticks only.
    """
    own = str(threading.get_native_id())
    for thread in _THREADS.glob("*"):
        try:
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # the thread has ended since
            continue
        if state == "R" and thread.name != own:
            return True
    return False


def _summary(samples: list[float], number: int) -> Timing:
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, q1, q3, min(samples), len(samples), number)

"""Peak memory of one call, as the operating system sees it.

Counting torch's allocations would miss what a library takes from ``malloc`` itself (oneDNN's
workspaces, a kernel's packed weights), so the figure is the growth of the resident set's
high-water mark over one call, in a fresh process each time. Three things make that repeatable: the
process is forked from one that has imported everything and run nothing, freed memory goes straight
back to the system, and huge pages are off.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .workload import build

#: Two runs of one call differ by up to this much: pages are counted per core and summed lazily.
NOISE_BYTES = 256 << 10

# torch imports symbolic_shapes at the first backward: a third of a second in each process.
_PRELOADED = [__name__, "fused_rnn", "torch.fx.experimental.symbolic_shapes"]
_PR_SET_THP_DISABLE = 41
# glibc serves blocks from this size on by mmap, and munmaps them when freed.
_MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_CLEAR_REFS, _RESET_PEAK = Path("/proc/self/clear_refs"), "5"


class PeakMemory:
    """Measures peaks in processes of its own, until closed."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.unavailable = None if _CLEAR_REFS.exists() else "needs Linux's /proc/self/clear_refs"
        self._pool: ProcessPoolExecutor | None = None
        if self.unavailable is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(_PRELOADED)
            self._pool = ProcessPoolExecutor(1, context, max_tasks_per_child=1)

    def close(self) -> None:
        """End the measuring processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def measure(self, case: Case, library: str) -> int | None:
        """Return the bytes that one call takes at its peak, its results included."""
        if self._pool is None:
            return None
        # The fork server starts with the first task and keeps the environment of that moment.
        before = {name: os.environ.get(name) for name in _MALLOC_SETTINGS}
        os.environ.update(_MALLOC_SETTINGS)
        try:
            return self._pool.submit(_measure_here, case, library, self._threads).result()
        except (BrokenProcessPool, OSError) as error:
            self.unavailable, self._pool = f"the measuring process failed: {error}", None
            return None
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _measure_here(case: Case, library: str, threads: int) -> int:
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    # Threads, lazily imported modules and code generators are not the call's memory, so a tiny call
    # comes first. It shares no size with the real one: nothing kept per shape is paid for ahead.
    tiny = replace(case, shape=replace(case.shape, T=min(case.shape.T, 3), N=2, I=8, H=8))
    with torch.set_grad_enabled(case.grad):
        _caller(tiny, library)()
        call = _caller(case, library)
        gc.collect()
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        _CLEAR_REFS.write_text(_RESET_PEAK)
        before = _status_bytes("VmRSS")
        result = call()
        peak = _status_bytes("VmHWM")
    del result
    return max(peak - before, 0)


def _caller(case: Case, library: str) -> Callable[[], Any]:
    work = build(case, torch.device("cpu"))
    module = work.make_module(importlib.import_module(library)).train(case.backward)
    return work.caller(module, module.parameters())


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

"""The fused gate kernels alone: the bytes they have to move over the time they take.

The profiler gives each kernel's own time, so that the products around it do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .cases import DTYPES, Case, Shape
from .workload import build

# N * H = 2^21, a few steps: far more than any cache holds.
_SHAPE = Shape(6, 1024, 64, 2048)
_DTYPES = ("fp32", "bf16")

# Elements that one hidden unit of one sequence must read and write in a step that is neither the
# first nor the last: (in the arithmetic's type, in the tensors' type). See stepwise/steps.h.
#   forward    reads gates, recurrent, the state before; writes gates, the state, h
#   backward   reads gates, the states, carry, recurrent, dy; writes carry, dgates
_FORWARD = {"lstm": (14, 1), "gru": (10, 2), "rnn": (3, 1)}
_FORWARD_INFERENCE = {"lstm": (10, 1), "gru": (6, 2), "rnn": (2, 1)}
_BACKWARD = {"lstm": (9, 5), "gru": (7, 8), "rnn": (2, 2)}


@dataclass(frozen=True)
class KernelResult:
    """One kernel in one cell and dtype: its median time, and the rate at which it moved bytes."""

    kernel: str
    cell: str
    dtype: str
    pass_: str
    units: int
    compulsory_bytes: int
    median_s: float | None = None
    copy_fraction: float | None = None
    skipped: str | None = None


def measure_kernels(device: torch.device, copy_gbytes: float) -> Iterator[KernelResult]:
    """Profile the gate kernels of each cell; yields a reason where there is nothing to profile."""
    for dtype in _DTYPES:
        for cell in ("lstm", "gru", "rnn"):
            for kind, kernel, table in (
                ("inference", "forward_step", _FORWARD_INFERENCE),
                ("training", "forward_step", _FORWARD),
                ("training", "backward_step", _BACKWARD),
            ):
                yield _measure(Case(cell, kind, _SHAPE, dtype=dtype), kernel, table[cell], device,
                               copy_gbytes)  # fmt: skip


def _measure(
    case: Case,
    kernel: str,
    elements: tuple[int, int],
    device: torch.device,
    copy_gbytes: float,
) -> KernelResult:
    units = case.shape.N * case.shape.H
    moved = units * (elements[0] * 4 + elements[1] * DTYPES[case.dtype].itemsize)
    known = kernel, case.cell, case.dtype, case.kind, units, moved
    try:
        durations = _durations(case, kernel, device)
    except RuntimeError as error:
        return KernelResult(*known, skipped=f"the profiler failed: {str(error).splitlines()[0]}")
    if not durations:
        return KernelResult(*known, skipped=f"no kernel named {kernel} was seen")
    # The median is a step in the middle: the first and the last move fewer bytes.
    seconds = statistics.median(durations)
    return KernelResult(*known, seconds, moved / seconds / 1e9 / copy_gbytes)


def _durations(case: Case, kernel: str, device: torch.device) -> list[float]:
    """Return the seconds of every launch of a kernel in a few calls."""
    from torch.profiler import ProfilerActivity, profile

    import fused_rnn
    from fused_rnn.backends import use_way

    work = build(case, device)
    module = work.make_module(fused_rnn).train(case.backward)
    call = work.caller(module, module.parameters())
    # By itself a GPU of which nothing was measured runs cuDNN.
    with torch.set_grad_enabled(case.grad), use_way("native stepwise"):
        for _ in range(2):
            call()
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(3):
                call()
            torch.cuda.synchronize(device)
    return [event.time_range.elapsed_us() / 1e6 for event in _launches(profiled, kernel)]


def _launches(profiled: Any, kernel: str) -> list[Any]:
    on_gpu = torch.autograd.DeviceType.CUDA
    events = profiled.events() or ()
    return [event for event in events if event.device_type == on_gpu and kernel in event.name]

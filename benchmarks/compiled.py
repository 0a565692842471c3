"""A Python loop over torch.nn's cell, compiled as one graph: fusion without a library."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .workload import Work


class CompileTimeoutError(Exception):
    """Compilation took longer than it was given."""


def missing_compiler(device: torch.device) -> str | None:
    """Return None, or why ``torch.compile`` cannot generate code for this device."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs Triton"
    if any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "torch.compile needs a C++ compiler"


def loop_of(work: Work) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return the uncompiled loop over ``work``'s first layer, and the parameters it reads."""
    if work.case.single_cell:
        return work.module, list(work.module.parameters())
    s, parameters = work.case.shape, list(work.module.parameters())
    cell = getattr(nn, type(work.module).__name__ + "Cell")(s.I, s.H).to(parameters[0])
    with torch.no_grad():
        for own, given in zip(cell.parameters(), parameters, strict=True):
            own.copy_(given)

    def loop(x: Tensor) -> tuple[Tensor, Any]:
        state, steps = None, []
        for x_t in x.unbind(0):
            state = cell(x_t, state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        if isinstance(state, tuple):
            return torch.stack(steps), tuple(part.unsqueeze(0) for part in state)
        return torch.stack(steps), state.unsqueeze(0)

    return loop, list(cell.parameters())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``function`` for compilation at its first call, its sizes taken as constants."""
    # Each case compiles the same code afresh, and the compiler refuses after a few times.
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def first_call(call: Callable[[], Any], seconds: float) -> float:
    """Make the call that compiles, and return how long it took.

    Raises:
        CompileTimeoutError: Past ``seconds``, where the system can interrupt it.
    """
    start = time.perf_counter()
    with _time_limit(seconds):
        call()
    return time.perf_counter() - start


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise CompileTimeoutError(f"not compiled within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

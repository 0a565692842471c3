"""The native backend by one of its ways on a GPU: step by step, or all steps by one of the plans.

A way is told to the ops before they are called, in the thread that calls them: what decides it is
known here, at the choice of a backend, and the ops' schemas are not for one device alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs, Problem
from fused_rnn.backends.native import persistent

__all__ = ["Way", "names", "parse"]

STEPWISE, PERSISTENT = "stepwise", "persistent"
# As enum How in csrc/cuda/persistent/path.h counts.
_STEP_BY_STEP, _BY_MODEL, _CHOSEN = 1, 2, 3
_NAME = re.compile(r"persistent (\d+)/(\d+)(?: (\d+)/(\d+))?")
_MOST_PLANS = 4  # of a pass: the model is not so far off that its fifth would be the fastest


class _Pass(NamedTuple):
    how: int
    shape: int = 0
    cluster: int = 0


def parse(name: str) -> tuple[_Pass, _Pass]:
    """Return what a way's name says of forward and of backward.

    ``stepwise``; ``persistent``, by the plan of the model; ``persistent 1/0 4/8``, by the shape and
    the size of clusters in either pass, and ``persistent 1/0`` with the model's plan in backward.

    Raises:
        ValueError: if it says nothing.
    """
    if name == STEPWISE:
        return _Pass(_STEP_BY_STEP), _Pass(_STEP_BY_STEP)
    if name == PERSISTENT:
        return _Pass(_BY_MODEL), _Pass(_BY_MODEL)
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"the native backend knows no way {name!r}")
    forward, backward = match.groups()[:2], match.groups()[2:]
    chosen = _Pass(_CHOSEN, int(forward[0]), int(forward[1]))
    if backward[0] is None:
        return chosen, _Pass(_BY_MODEL)
    return chosen, _Pass(_CHOSEN, int(backward[0]), int(backward[1]))


def names(problem: Problem, seconds: dict[str, float]) -> list[str]:
    """Return the ways that a GPU has for a problem, given what some of them took.

    First forward's plans go with the model's for backward, and backward's with the model's for
    forward: the passes know nothing of each other, so the fastest of each are to be the fastest
    together, which are what is left then.
    """
    if seconds:
        return [name for name in (_fastest(seconds),) if name is not None]
    found, forward = [STEPWISE, PERSISTENT], _plans(problem, False)[:_MOST_PLANS]
    if not problem.training:
        return found + [f"{PERSISTENT} {plan}" for plan in forward] if forward else found[:1]
    backward = _plans(problem, True)[:_MOST_PLANS]
    found += [f"{PERSISTENT} {plan}" for plan in forward]
    if forward:
        found += [f"{PERSISTENT} {forward[0]} {plan}" for plan in backward]
    return found if forward or backward else found[:1]


def _fastest(seconds: dict[str, float]) -> str | None:
    """Return the way made of the fastest plan of each pass; None where it is known."""
    ways = [(name, match) for name in seconds if (match := _NAME.fullmatch(name))]
    forward = min((w for w in ways if w[1][3] is None), key=lambda w: seconds[w[0]], default=None)
    backward = min((w for w in ways if w[1][3]), key=lambda w: seconds[w[0]], default=None)
    if forward is None or backward is None:
        return None
    name = f"{forward[0]} {backward[1][3]}/{backward[1][4]}"
    return None if name in seconds else name


def _plans(problem: Problem, backward: bool) -> list[str]:
    """Return the plans that fit, by shape and cluster, in the order of the model."""
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    persistent.tell_tf32(like, regardless=True)
    sizes = problem.T, problem.N, problem.H, problem.P
    found: dict[str, None] = {}
    for directions in range(problem.directions, 0, -1):  # at once; one after the other
        scan = like, problem.cell, *sizes, backward, problem.training, directions
        flat = persistent.ops().persistent_ways(*scan)
        found |= dict.fromkeys(f"{a}/{b}" for a, b in zip(flat[::2], flat[1::2], strict=True))
    return list(found)


class Way:
    """The native backend, by a way of a name; see :class:`fused_rnn.backends.Backend`."""

    def __init__(self, backend: Any, name: str) -> None:
        self._backend, self.way_name = backend, name
        forward, backward = parse(name)
        self._told = [*forward, *backward]
        self._persistent = name != STEPWISE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @contextmanager
    def _tell(self, like: Tensor) -> Iterator[None]:
        if self._persistent:
            persistent.tell_tf32(like, regardless=True)
        before = persistent.ops().persistent_way(self._told)
        try:
            yield
        finally:
            persistent.ops().persistent_way(before)

    def forward(self, cell: str, inputs: Inputs, *args: Any) -> Any:
        with self._tell(inputs.x):
            return self._backend.forward(cell, inputs, *args)

    def scan_states(self, cell: str, inputs: Inputs, *args: Any) -> Any:
        with self._tell(inputs.x):
            return self._backend.scan_states(cell, inputs, *args)

    def backward(self, cell: str, inputs: Inputs, *args: Any) -> Any:
        with self._tell(inputs.x):
            return self._backend.backward(cell, inputs, *args)

    def forward_both(self, cell: str, inputs: tuple[Inputs, Inputs], *args: Any) -> Any:
        with self._tell(inputs[0].x):
            return self._backend.forward_both(cell, inputs, *args)

    def backward_both(self, cell: str, inputs: tuple[Inputs, Inputs], *args: Any) -> Any:
        with self._tell(inputs[0].x):
            return self._backend.backward_both(cell, inputs, *args)

    def takes_both(self, problem: Problem) -> bool:
        if not self._persistent:
            return False
        with self._tell(torch.empty(0, dtype=problem.dtype, device=problem.device)):
            return persistent.takes_both(problem, self.way_name)

    def plan(self, problem: Problem, together: bool = False) -> str | None:
        with self._tell(torch.empty(0, dtype=problem.dtype, device=problem.device)):
            return self._backend.plan(problem, together)

"""The backends, and the choice between them.

``use_backend()`` comes before the environment variable ``FUSED_RNN_BACKEND``, and that before the
automatic choice: the first backend of the table that does not refuse. What is chosen by name either
runs or fails with the reason.

What a backend refuses, and in which words, its own ``supports`` says; what may be asked of one
stands in ``base.py``. Layers, directions and packing are not known here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple, cast

from fused_rnn.backends.base import (
    ANEW,
    BEGINS,
    DEAD,
    GOES_ON,
    Backend,
    Inputs,
    Marked,
    Problem,
    Selection,
)
from fused_rnn.backends.transforms import ONLY_REFERENCE, TORCH_FUNC

# The modules of the backends import the names above from here.
from fused_rnn.backends import native, reference, triton  # isort: skip

__all__ = [
    "ANEW",
    "BACKENDS",
    "BEGINS",
    "DEAD",
    "GOES_ON",
    "TORCH",
    "Backend",
    "Inputs",
    "Marked",
    "Problem",
    "Record",
    "Selection",
    "asked_for",
    "available_backends",
    "note",
    "record",
    "select",
    "select_step",
    "torch_ran",
    "use_backend",
]

# In the order in which the automatic choice asks them.
BACKENDS: dict[str, Backend] = {
    b.name: b for b in cast("list[Backend]", [native, triton, reference])
}

# torch.nn's own forward, under a name that can be asked for.
TORCH = "torch"

_choice: ContextVar[str | None] = ContextVar("fused_rnn_backend", default=None)
_records: ContextVar[list[Record] | None] = ContextVar("fused_rnn_records", default=None)
# Read once: looking into the environment would cost more than the rest of a selection.
_environment: str | None = os.environ.get("FUSED_RNN_BACKEND") or None


class Record(NamedTuple):
    """What ran for one layer and direction of one call."""

    layer: int
    direction: int
    problem: Problem | None  # None where the arguments never got as far as a choice
    backend: str  # a key of BACKENDS, or "torch"
    refusals: dict[str, str]  # why the backends before it did not run
    together: bool = False  # the layer's other direction may run along with it


class use_backend:  # noqa: N801 (used like torch.set_grad_enabled)
    r"""Choose by name the backend that runs from here on, in this thread.

    Works as a call, which holds until the next one, and as a context manager, which restores the
    choice that held before. A backend chosen by name fails with its reason where it cannot run;
    without a choice the environment variable ``FUSED_RNN_BACKEND`` decides, and without that the
    first backend that can.

    Args:
        name (str, optional): a key of :func:`available_backends`, or ``"torch"`` for the forward of
            :mod:`torch.nn` itself; ``None`` takes an earlier choice back

    Raises:
        ValueError: if there is no backend of this name.

    Examples::

        >>> rnn = fused_rnn.GRU(10, 20)
        >>> with fused_rnn.use_backend("reference"):
        ...     output, hn = rnn(torch.randn(5, 3, 10))
    """

    def __init__(self, name: str | None) -> None:
        if name is not None:
            _check_name(name, "use_backend")
        self.name = name
        self._before = _choice.get()
        _choice.set(name)

    def __enter__(self) -> use_backend:
        _choice.set(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _choice.set(self._before)


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS and name != TORCH:
        known = ", ".join(map(repr, [*BACKENDS, TORCH]))
        raise ValueError(f"{source}: unknown backend {name!r}. Choose one of {known}.")


def available_backends() -> dict[str, str | None]:
    r"""Return the name of every backend with ``None``, or with the reason why it cannot run here.

    The order is that of the automatic choice. ``"torch"``, which :func:`use_backend` takes too, is
    not listed: it is always there.

    Examples::

        >>> fused_rnn.available_backends()["reference"] is None
        True
    """
    return {name: backend.available() for name, backend in BACKENDS.items()}


def select(problem: Problem | tuple[Any, ...]) -> Selection:
    """Return the backend that runs a problem, and the reasons of those that were asked before it.

    A plain tuple of the same elements does as well, and is made faster.

    Raises:
        RuntimeError: if the backend chosen by name refuses, with its reason.
        ValueError: if the environment variable names no backend.
    """
    name = asked_for()
    return _automatic(problem) if name is None else _by_name(name, problem)


@lru_cache(maxsize=4096)
def _automatic(problem: tuple[Any, ...]) -> Selection:
    problem = Problem(*problem)
    refusals: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if backend is reference and not _beyond_torch(problem):
            refusals[name] = "torch.nn's own forward is faster"
            continue
        reason = backend.available() or backend.supports(problem)
        if reason is None:
            return Selection(backend, refusals)
        refusals[name] = reason
    return Selection(None, refusals)


def select_step(problem: tuple[Any, ...]) -> Selection:
    """Do as :func:`select` for a single step outside of a graph, where torch may be faster."""
    name = asked_for()
    return _automatic_step(problem) if name is None else _by_name(name, problem)


@lru_cache(maxsize=4096)
def _automatic_step(problem: tuple[Any, ...]) -> Selection:
    selection, of = _automatic(problem), Problem(*problem)
    plain = of.cell in ("rnn_tanh", "rnn_relu") and of.training and of.I > 0
    if selection.backend is native and plain and of.device.type == "cpu":
        # Two products and a tanh cost torch less than a node of autograd's that is made in Python:
        # the benchmark's calls of an RNNCell.
        reason = "torch's own operators are faster at one step of a plain RNN with gradients"
        return Selection(None, {**selection.refusals, native.name: reason})
    return selection


def _beyond_torch(problem: Problem) -> bool:
    """Return whether torch.nn's own forward cannot run a problem."""
    if problem.ragged and problem.transform == TORCH_FUNC:
        return True  # it reads the sizes of batches from a tensor that the transform has wrapped
    return problem.states or problem.transform in ONLY_REFERENCE


@lru_cache(maxsize=4096)
def _by_name(name: str, problem: tuple[Any, ...]) -> Selection:
    problem = Problem(*problem)
    _check_name(name, "FUSED_RNN_BACKEND")
    if name == TORCH:
        return Selection(None, {})
    backend = BACKENDS[name]
    reason = backend.available() or backend.supports(problem)
    if reason is not None:
        raise RuntimeError(_refusal(name, reason))
    return Selection(backend, {})


def note(
    problem: tuple[Any, ...],
    selection: Selection,
    layer: int = 0,
    directions: int = 1,
    together: bool = False,
) -> None:
    """Tell :func:`record` what runs a problem, which stands for every direction of its layer."""
    records = _records.get()
    if records is not None:
        backend = TORCH if selection.backend is None else selection.backend.name
        for direction in range(directions):
            of = Problem(*problem)
            records.append(Record(layer, direction, of, backend, selection.refusals, together))


def asked_for() -> str | None:
    """Return the name that was chosen, by :class:`use_backend` or the environment, or None."""
    return _choice.get() or _environment


def torch_ran(reason: str) -> None:
    """Tell :func:`record` that torch.nn ran a call which never got as far as :func:`select`.

    Raises:
        RuntimeError: if a backend had been chosen by name.
    """
    name = asked_for()
    if name is not None:
        _check_name(name, "FUSED_RNN_BACKEND")
        if name != TORCH:
            raise RuntimeError(_refusal(name, reason))
    records = _records.get()
    if records is not None:
        records.append(Record(0, 0, None, TORCH, dict.fromkeys(BACKENDS, reason)))


def _refusal(name: str, reason: str) -> str:
    return f"The backend {name!r} was asked for and cannot run this: {reason}."


@contextmanager
def record() -> Iterator[list[Record]]:
    """Collect what runs in this thread, a :class:`Record` for each layer and direction."""
    records: list[Record] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)

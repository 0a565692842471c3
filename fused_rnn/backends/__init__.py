"""The backends, and the choice between them.

``use_backend()`` comes before the environment variable ``FUSED_RNN_BACKEND``, that before what
:func:`fused_rnn.tune` measured, and that before the default: on a CPU the first backend of the
table that does not refuse; on a GPU, where nothing was measured, torch.nn wherever it can do what
the call asks for. What is chosen by name either runs or fails with the reason.

What a backend refuses, and in which words, its own ``supports`` says; what may be asked of one
stands in ``base.py``. Layers, directions and packing are not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any, cast

from fused_rnn.backends.base import (
    ANEW,
    ANY_SIZE,
    BEGINS,
    DEAD,
    GOES_ON,
    AnyInputs,
    Backend,
    Inputs,
    Marked,
    Problem,
    Selection,
    VariantInputs,
    inputs_of,
)
from fused_rnn.backends.transforms import ONLY_REFERENCE, TORCH_FUNC
from fused_rnn.cells import CELLS
from fused_rnn.variants import variant_of

# The modules of the backends import the names above from here.
from fused_rnn.backends import native, reference, triton  # isort: skip
from fused_rnn.backends import tuned  # isort: skip
from fused_rnn.backends.measured import Entry  # isort: skip
from fused_rnn.backends.records import Record, record, recording  # isort: skip

__all__ = [
    "ANEW",
    "ANY_SIZE",
    "BACKENDS",
    "BEGINS",
    "DEAD",
    "GOES_ON",
    "TORCH",
    "UNMEASURED",
    "AnyInputs",
    "Backend",
    "Inputs",
    "Marked",
    "NotNowError",
    "Problem",
    "Record",
    "Selection",
    "VariantInputs",
    "asked_for",
    "at_first_call",
    "available_backends",
    "inputs_of",
    "keep",
    "note",
    "only_rules",
    "record",
    "select",
    "select_kernels",
    "select_step",
    "torch_can_run",
    "torch_ran",
    "use_backend",
    "use_way",
    "way_named",
    "way_of",
]

# In the order in which the default asks them.
BACKENDS: dict[str, Backend] = {
    b.name: b for b in cast("list[Backend]", [native, triton, reference])
}

# torch.nn's own forward, under a name that can be asked for.
TORCH = "torch"

UNMEASURED = (
    "nothing was measured on this GPU: torch.nn (cuDNN) runs until fused_rnn.tune, or a file that "
    "it saved, says otherwise"
)

_choice: ContextVar[str | None] = ContextVar("fused_rnn_backend", default=None)
# Read once: looking into the environment would cost more than the rest of a selection.
_environment: str | None = os.environ.get("FUSED_RNN_BACKEND") or None
_first_call: Callable[[Problem], None] | None = None


class NotNowError(Exception):
    """Raised by what is called at a problem's first call, where the next is to be a first too."""


class use_backend:  # noqa: N801 (used like torch.set_grad_enabled)
    r"""Choose by name the backend that runs from here on, in this thread.

    Works as a call, which holds until the next one, and as a context manager, which restores the
    choice that held before. A backend chosen by name fails with its reason where it cannot run;
    without a choice the environment variable ``FUSED_RNN_BACKEND`` decides, then what
    :func:`fused_rnn.tune` measured, then a default: the first backend that can, on a GPU torch.nn.

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


@contextmanager
def use_way(name: str) -> Iterator[None]:
    """Do as :class:`use_backend` with what :func:`way_named` takes, or ``"torch"``."""
    token = _choice.set(name)
    try:
        yield
    finally:
        _choice.reset(token)


def way_named(name: str) -> Backend:
    """Return a backend by its key, and the name of one of its ways where it has several.

    Raises:
        KeyError, ValueError: if there is none of this name.
    """
    key, _, way = name.partition(" ")
    return BACKENDS[key].way(way) if way else BACKENDS[key]


def way_of(backend: Backend | None) -> str:
    """Return what :func:`way_named` takes, or ``"torch"``."""
    if backend is None:
        return TORCH
    return f"{backend.name} {getattr(backend, 'way_name', '')}".rstrip()


def available_backends() -> dict[str, str | None]:
    r"""Return the name of every backend with ``None``, or with the reason why it cannot run here.

    The order is that of the default choice. ``"torch"``, which :func:`use_backend` takes too, is
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
        ValueError: if the environment variable names no backend, or ``FUSED_RNN_TUNED`` a file that
            is none of :func:`fused_rnn.tune`'s.
        OSError: if that file cannot be read.
    """
    name = asked_for()
    if name is not None:
        return _by_name(name, problem)
    try:
        return _automatic(problem)
    except NotNowError:
        return _unasked(Problem(*problem))


def select_step(problem: tuple[Any, ...]) -> Selection:
    """Do as :func:`select` for a single step outside of a graph, where torch may be faster."""
    name = asked_for()
    if name is not None:
        return _by_name(name, problem)
    try:
        return _automatic_step(problem)
    except NotNowError:
        of = Problem(*problem)
        return _step_unasked(of, _unasked(of))


def select_kernels(problem: Problem) -> Backend | None:
    """Do as :func:`select` where torch.nn's own forward cannot be: in a node of a graph.

    None: no kernel takes it, or torch.nn was asked for.
    """
    backend = select(problem).backend
    return _first(problem, None).backend if backend is None and asked_for() is None else backend


@lru_cache(maxsize=4096)
def _automatic(problem: tuple[Any, ...]) -> Selection:
    of = Problem(*problem)
    if _first_call is not None:
        _first_call(of)
    return _unasked(of)


@lru_cache(maxsize=4096)
def _automatic_step(problem: tuple[Any, ...]) -> Selection:
    return _step_unasked(Problem(*problem), _automatic(problem))


def _unasked(problem: Problem) -> Selection:
    entry = tuned.measurement(problem)
    found = None if entry is None else _as_measured(problem, entry)
    if found is not None:
        return found
    beyond = problem.states or problem.marked or problem.cut or problem.recompute
    by_torch = problem.device.type != "cpu" and not (beyond or _beyond_torch(problem))
    return _first(problem, UNMEASURED if by_torch else None)


def _first(problem: Problem, passed_over: str | None) -> Selection:
    """Return the first backend of the table that can, unless there is a reason to pass them all."""
    refusals: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if backend is reference and not _beyond_torch(problem):
            refusals[name] = "torch.nn's own forward is faster"
            continue
        reason = backend.available() or backend.supports(problem) or passed_over
        if reason is None:
            return Selection(backend, refusals)
        refusals[name] = reason
    return Selection(None, refusals)


def _as_measured(problem: Problem, entry: Entry) -> Selection | None:
    """Return what was the fastest, or None where it cannot run this problem after all."""
    if entry.way == TORCH:
        if not torch_can_run(problem):
            return None
        backend = None
    else:
        try:
            backend = way_named(entry.way)
        except (KeyError, ValueError):  # another build's
            return None
        if backend.available() or backend.supports(problem):
            return None
    refusals = {}
    for name, other in BACKENDS.items():
        if backend is None or name != backend.name:
            times = [s for way, s in entry.seconds.items() if way.partition(" ")[0] == name]
            best = entry.seconds[entry.way]
            measured = f"measured: {min(times) / best:.2f}x the time" if times else "not measured"
            refusals[name] = other.available() or other.supports(problem) or measured
    return Selection(backend, refusals)


def _step_unasked(of: Problem, selection: Selection) -> Selection:
    plain = of.cell in ("rnn_tanh", "rnn_relu") and of.training and of.I > 0
    unmeasured = tuned.measurement(of) is None
    if selection.backend is native and plain and of.device.type == "cpu" and unmeasured:
        # Two products and a tanh cost torch less than a node of autograd's that is made in Python:
        # the benchmark's calls of an RNNCell.
        reason = "torch's own operators are faster at one step of a plain RNN with gradients"
        return Selection(None, {**selection.refusals, native.name: reason})
    return selection


def torch_can_run(problem: Problem) -> bool:
    """Return whether torch.nn's own forward does all that a problem asks for."""
    return not (problem.marked or problem.recompute or _beyond_torch(problem))


def _beyond_torch(problem: Problem) -> bool:
    """Return whether torch.nn's own forward cannot run a problem."""
    if problem.ragged and problem.transform == TORCH_FUNC:
        return True  # it reads the sizes of batches from a tensor that the transform has wrapped
    if problem.cell not in CELLS:
        return True
    return problem.states or problem.transform in ONLY_REFERENCE


@lru_cache(maxsize=4096)
def _by_name(name: str, problem: tuple[Any, ...]) -> Selection:
    problem = Problem(*problem)
    _check_name(name.partition(" ")[0], "FUSED_RNN_BACKEND")
    if name == TORCH:
        if problem.cell not in CELLS:
            raise RuntimeError(_refusal(name, f"it has no {' and no '.join(_options(problem))}"))
        return Selection(None, {})
    backend = way_named(name)
    reason = backend.available() or backend.supports(problem)
    if reason is not None:
        raise RuntimeError(_refusal(name, reason))
    return Selection(backend, {})


def _options(problem: Problem) -> list[str]:
    variant = variant_of(problem.cell)
    return [] if variant is None else variant.changed


def at_first_call(measure: Callable[[Problem], None] | None) -> None:
    """Have ``measure`` called before a problem is chosen for the first time; None: nothing."""
    global _first_call
    _first_call = measure
    _forget()


def keep(entries: Iterable[Entry]) -> None:
    """Have the choice follow measurements from here on."""
    tuned.add(entries)
    _forget()


def _forget() -> None:
    for choice in (_automatic, _automatic_step):
        choice.cache_clear()


def note(
    problem: tuple[Any, ...],
    selection: Selection,
    layer: int = 0,
    directions: int = 1,
    together: bool = False,
) -> None:
    """Tell :func:`record` what runs a problem, which stands for every direction of its layer."""
    records = recording()
    if records is not None:
        backend = TORCH if selection.backend is None else selection.backend.name
        of, why, way = Problem(*problem), selection.refusals, way_of(selection.backend)
        for direction in range(directions):
            records.append(Record(layer, direction, of, backend, why, together, way))


def asked_for() -> str | None:
    """Return the name that was chosen, by :class:`use_backend` or the environment, or None."""
    return _choice.get() or _environment


def only_rules() -> bool:
    """Return whether the rules here decide alone, and nobody wants to know: what is usual.

    No name, no measurement, no first call that measures, no :func:`record`.
    """
    return (
        asked_for() is None
        and recording() is None
        and _first_call is None
        and not tuned.any_measured()
    )


def torch_ran(reason: str) -> None:
    """Tell :func:`record` that torch.nn ran a call which never got as far as :func:`select`.

    Raises:
        RuntimeError: if a backend had been chosen by name.
    """
    name = asked_for()
    if name is not None:
        _check_name(name.partition(" ")[0], "FUSED_RNN_BACKEND")
        if name != TORCH:
            raise RuntimeError(_refusal(name, reason))
    records = recording()
    if records is not None:
        records.append(Record(0, 0, None, TORCH, dict.fromkeys(BACKENDS, reason)))


def _refusal(name: str, reason: str) -> str:
    return f"The backend {name!r} was asked for and cannot run this: {reason}."

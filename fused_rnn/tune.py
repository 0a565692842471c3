"""Choosing by measurement: which way runs the recurrent layers of a model, on this machine."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_rnn.backends import (
    TORCH,
    NotNowError,
    Problem,
    at_first_call,
    keep,
    record,
    tuned,
)
from fused_rnn.backends.measured import Entry, Here, Table, kind_of, ranges
from fused_rnn.convert import is_recurrent
from fused_rnn.trials import Trial, refusal, try_all

__all__ = ["Measured", "Tuning", "tune"]

# Whether a model runs to show its problems, which are to be measured afterwards, not as they come.
_running: ContextVar[bool] = ContextVar("fused_rnn_tune_running", default=False)
_HEADINGS = ("way", "time", "over torch.nn", "error", "")


class Measured:
    """What was found of one recurrent problem.

    Attributes:
        problem: what was measured, of a stack of layers or of a single step
        trials: the ways, each with ``way``, ``seconds``, ``error`` and ``failure``
        skipped: why nothing was measured, or ``None``
        chosen: the fastest of the ways that are right, or ``None``
    """

    def __init__(self, problem: Problem, trials: list[Trial], skipped: str | None = None) -> None:
        self.problem, self.trials, self.skipped = problem, trials, skipped
        timed = {t.way: t.seconds for t in trials if t.seconds is not None}
        self.chosen = min(timed, key=timed.__getitem__) if timed else None
        self._seconds = timed

    def ratio(self, trial: Trial) -> float | None:
        """Return how many times as fast as torch.nn a way is, or ``None`` where one is unknown."""
        if trial.seconds is None or TORCH not in self._seconds:
            return None
        return self._seconds[TORCH] / trial.seconds

    def entry(self) -> Entry | None:
        """Return what is kept of it."""
        if self.chosen is None:
            return None
        p = self.problem
        return Entry(tuned.here(p.device), kind_of(p), p.T, p.N, self._seconds)

    def lines(self) -> Iterator[str]:
        """Yield its part of the table."""
        yield _words(self.problem)
        if self.skipped is not None:
            yield f"  not measured: {self.skipped}"
            return
        for trial in sorted(self.trials, key=lambda t: (t.seconds is None, t.seconds or 0.0)):
            ratio = self.ratio(trial)
            cells = (
                "torch.nn" if trial.way == TORCH else trial.way,
                "" if trial.seconds is None else _duration(trial.seconds),
                "" if ratio is None else f"{ratio:.2f}x",
                "" if trial.error is None else f"{trial.error:.0e}",
                trial.failure or ("chosen" if trial.way == self.chosen else ""),
            )
            yield _columns(cells)
        T, N = ranges(self.problem.T, self.problem.N)
        if self.chosen is None:
            yield "  no way is right: the default stays"
        else:
            yield f"  holds for T from {T[0]} to {T[1]}, N from {N[0]} to {N[1]}"


class Tuning(list[Measured]):
    """What :func:`fused_rnn.tune` found: a list of :class:`Measured`; its text is a table."""

    def __str__(self) -> str:
        lines = [_columns(_HEADINGS), *chain.from_iterable(m.lines() for m in self)]
        return "\n".join(lines)


def _columns(cells: tuple[str, ...]) -> str:
    widths = 36, 10, 14, 8, 0
    return ("  " + " ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True))).rstrip()


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _words(p: Problem) -> str:
    extras = {
        f"P {p.P}": p.P > 0,
        f"{p.layers} layers": p.layers > 1,
        "bidirectional": p.directions == 2,
        "lengths": p.cut or p.marked,
        "packed": p.ragged and not (p.cut or p.marked),
        "every step's states": p.states,
        "recompute": p.recompute,
    }
    what = "a step" if p.width == 0 else f"T {p.T}"
    kind = "training" if p.training else "inference"
    dtype = str(p.dtype).removeprefix("torch.")
    sizes = f"{p.cell}, {what}, N {p.N}, I {p.I}, H {p.H}"
    return ", ".join(
        [sizes, *(w for w, is_so in extras.items() if is_so), dtype, str(p.device), kind]
    )


class Tune:
    r"""Measure every way to run a model's recurrent layers here, and keep the fastest of each.

    The model runs once, as it would in your program, to see which problems its layers are: cells,
    sizes, dtypes, options. Each is then made of random numbers, and run by every way that can:
    :mod:`torch.nn`, and the backends, on a GPU by each of the plans that fit. What is wrong,
    refuses or fails is reported and never chosen; the fastest of the others runs calls like it from
    here on, in this process, and in others that :meth:`load` what :meth:`save` wrote. A choice by
    name, :func:`fused_rnn.use_backend` or ``FUSED_RNN_BACKEND``, still comes first.

    A measurement holds for this device and these versions, for T from a quarter to four times, and
    for N from half to twice what was measured; tune again with other inputs for more. Graphs of
    :func:`torch.compile` are made for any size: tune before, and they take what was the fastest for
    all sizes that were measured. Under :class:`~torch.nn.parallel.DistributedDataParallel` save on
    one rank and load on each, so that all run the same.

    Nothing is measured unasked. ``FUSED_RNN_TUNED=path`` loads a file at the first call, and
    ``FUSED_RNN_TUNE=1`` has each problem measured at its first call, outside of graphs.

    Args:
        model (torch.nn.Module): a recurrent layer of fused_rnn, or a model that has some
        inputs, kwargs: what to call it with
        training (bool, optional): ``True`` measures training steps, their backward included,
            ``False`` inference, and ``None`` what the call is as it stands. Default: ``None``

    Returns:
        a list with a :class:`~fused_rnn.Measured` for each problem, which is printed as a table

    Raises:
        TypeError: if :attr:`model` is not a :class:`torch.nn.Module`
        ValueError: if no recurrent layer of fused_rnn ran
        RuntimeError: if a way took the GPU down with it

    Examples::

        >>> rnn = fused_rnn.GRU(10, 20)
        >>> found = fused_rnn.tune(rnn, torch.randn(5, 3, 10), training=False)  # doctest: +SKIP
        >>> fused_rnn.tune.save("tuned.json")  # doctest: +SKIP
    """

    def __call__(
        self, model: nn.Module, *inputs: Any, training: bool | None = None, **kwargs: Any
    ) -> Tuning:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
        if training not in (None, True, False):
            raise TypeError(f"training should be True, False or None, got: {training!r}")
        if isinstance(model, DistributedDataParallel):
            # Its forward tells the other ranks to expect a backward.
            model = model.module
        found = Tuning(map(_measure, _problems(model, inputs, training, kwargs)))
        keep(entry for entry in (m.entry() for m in found) if entry is not None)
        print(found)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that was measured or loaded in this process, as JSON.

        Args:
            path: the file, which is replaced where it is there

        Raises:
            OSError: if it cannot be written
        """
        tuned.measurements().write(path)

    def load(self, path: str | os.PathLike[str]) -> int:
        """Read what :meth:`save` wrote, and have it hold in this process.

        Measurements of other devices or versions are kept, for :meth:`save`, and do not count here.

        Args:
            path: the file

        Returns:
            how many measurements of the file are for a device that is here, and these versions; a
            warning says where there is none

        Raises:
            OSError: if the file cannot be read
            ValueError: if it is not what :meth:`save` writes, or of another format
        """
        table = Table.read(path)
        keep(table)
        count = serving(table)
        if count == 0:
            warnings.warn(
                f"{os.fspath(path)}: none of its {len(table)} measurements is of a device that is "
                f"here, with these versions: {_described()}",
                stacklevel=2,
            )
        return count


def serving(table: Table) -> int:
    """Return how many entries are for a device that is here, and these versions."""
    here = _here()
    return sum(entry.here in here for entry in table)


def _here() -> list[Here]:
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [tuned.here(device) for device in (torch.device("cpu"), *gpus)]


def _described() -> str:
    here = _here()
    devices = "; ".join(dict.fromkeys(h.device for h in here))
    return f"{devices}; {', '.join(' '.join(version) for version in here[0].versions)}"


def _problems(
    model: nn.Module, inputs: tuple[Any, ...], training: bool | None, kwargs: dict[str, Any]
) -> list[Problem]:
    """Run a model, and return the problems that came up, of whole stacks."""
    devices = {t.device for t in chain(model.parameters(), model.buffers()) if t.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(d.index for d in devices)))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        grad = torch.is_grad_enabled() if training is None else training
        stack.enter_context(torch.set_grad_enabled(grad))
        records = stack.enter_context(record())
        stack.callback(_running.reset, _running.set(True))
        model(*inputs, **kwargs)
    seen = [r.problem for r in records if r.problem is not None]
    if not seen:
        raise ValueError(_nothing(model, [r.refusals for r in records]))
    return list(dict.fromkeys(map(_of_stack, seen)))


def _of_stack(p: Problem) -> Problem:
    """Return the problem of a layer's whole stack."""
    return p if p.width == 0 else p._replace(I=p.width)


def _nothing(model: nn.Module, refusals: list[dict[str, str]]) -> str:
    if refusals:
        return f"tune: torch.nn has to run this model's recurrent layers ({refusals[0]['native']})"
    others = sum(
        is_recurrent(m) and type(m).__module__.startswith("torch") for m in model.modules()
    )
    more = f", and {others} of torch.nn: fused_rnn.convert(model) swaps them" if others else ""
    return f"tune: no recurrent layer of fused_rnn ran in this {type(model).__name__}{more}"


def _measure(problem: Problem) -> Measured:
    reason = refusal(problem)
    with record():  # who looks on is told of the call itself, not of what is tried for it
        return Measured(problem, [] if reason else try_all(problem), reason)


def _first_call(problem: Problem) -> None:
    """Measure a problem that is about to be chosen for, where ``FUSED_RNN_TUNE=1`` allows it."""
    stack = _of_stack(problem)
    if refusal(stack) is not None or tuned.measurement(problem) is not None:
        return
    capturing = problem.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if _running.get() or capturing or torch.compiler.is_compiling():
        raise NotNowError
    entry = _measure(stack).entry()
    tuned.add(() if entry is None else (entry,))


tune = Tune()
if os.environ.get("FUSED_RNN_TUNE") == "1":
    at_first_call(_first_call)

"""Say which backend runs each recurrent layer of a model, and why the others do not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from fused_rnn.backends import (
    BACKENDS,
    TORCH,
    Record,
    asked_for,
    native,
    record,
    tuned,
    way_named,
)
from fused_rnn.convert import is_recurrent, reason_to_leave

_HEADINGS = ("module", "layer", "direction", "backend", "calls", "how", "why", "why not the others")
_OPTIONAL = ("how", "why")  # columns that are left out where all of them are empty


@dataclass
class Row:
    """What ran for one layer and direction.

    Attributes:
        module: the module's name in ``module.named_modules()``; empty for the module itself
        layer: the layer's index, or ``None`` where all layers and directions ran as one
        direction: ``"forward"`` or ``"reverse"``, or ``None`` as for ``layer``
        backend: the name of the backend, or ``"torch.nn"``
        refusals: for each other backend, why it did not run
        calls: how many times the module was called with this result
        how: where the compiled kernels ran, their SIMD level on a CPU, or how the steps lie on a
            GPU; or ``None``
        why: where :func:`fused_rnn.tune` measured it, what it found: ``"measured: 1.80x over
            torch.nn"``; or ``None``
    """

    module: str
    layer: int | None
    direction: str | None
    backend: str
    refusals: dict[str, str]
    calls: int = field(default=1, compare=False)
    how: str | None = None
    why: str | None = None


class Explanation:
    """The rows of :func:`fused_rnn.explain`, in the order in which modules ran; a table as text."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row, or count it where an equal one is there already."""
        if row in self._rows:
            self._rows[self._rows.index(row)].calls += 1
        else:
            self._rows.append(row)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def __str__(self) -> str:
        if not self._rows:
            return "No recurrent layer ran."
        lines = [_HEADINGS, *chain.from_iterable(map(_lines, self._rows))]
        for heading in _OPTIONAL:
            if all(getattr(row, heading) is None for row in self._rows):
                column = lines[0].index(heading)
                lines = [line[:column] + line[column + 1 :] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    __repr__ = __str__


def explain(module: nn.Module, *inputs: Any, **kwargs: Any) -> Explanation:
    r"""Run a module once and tell which backend ran each of its recurrent layers and directions.

    The module runs as it would in your program: in its mode, under the grad mode, autocast and
    :func:`use_backend` that hold here. The random number generators are put back afterwards; what
    the module itself changes when it runs (running statistics, say) is changed. A model under
    :func:`torch.compile` runs uncompiled here; compiled, its layers run as shown, each
    direction a node of the graph, and its cells become part of it as torch's own code.

    Args:
        module (torch.nn.Module): a recurrent layer, or a model that has some
        inputs, kwargs: what to call it with

    Returns:
        an iterable of rows, one for each layer and direction of each recurrent module that ran,
        with ``module``, ``layer``, ``direction``, ``backend`` (``"torch.nn"`` where no backend took
        it), ``refusals`` (a dictionary from each other backend to its reason), ``calls``, ``how``
        (the SIMD level on a CPU; on a GPU: all steps in one launch, or why step by step) and
        ``why`` (what was measured); its ``str()`` is a table

    Raises:
        RuntimeError: if a backend chosen by name cannot run a layer
        TypeError: if :attr:`module` is not a :class:`torch.nn.Module`

    Examples::

        >>> rnn = fused_rnn.LSTM(10, 20, dtype=torch.complex64)
        >>> rows = fused_rnn.explain(rnn, torch.randn(5, 3, 10, dtype=torch.complex64))
        >>> rows[0].backend
        'torch.nn'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module should be a torch.nn.Module, got: {type(module).__name__}")
    explanation = Explanation()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(_cuda_devices(module)))
        if "torch._dynamo" in sys.modules:
            # A graph compiled here would keep the hooks for good; one compiled before has none.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        records = stack.enter_context(record())
        for name, child in module.named_modules():
            if is_recurrent(child) and not isinstance(child, torch.jit.ScriptModule):
                _watch(stack, name, child, records, explanation)
        module(*inputs, **kwargs)
    for left_over in records:
        explanation.add(_row("(not called as a module)", left_over))
    return explanation


def _watch(
    stack: ExitStack, name: str, module: nn.Module, records: list[Record], into: Explanation
) -> None:
    """Have ``module`` take what was recorded during its calls out of ``records``."""
    starts: list[int] = []

    def before(*_: object) -> None:
        starts.append(len(records))

    def after(*_: object) -> None:
        start = starts.pop()
        for entry in _settled(records[start:]):
            into.add(_row(name, entry))
        if len(records) == start:
            reason = reason_to_leave(module) or "it is torch.nn's, fused_rnn.convert would swap it"
            into.add(Row(name, None, None, "torch.nn", dict.fromkeys(BACKENDS, reason)))
        del records[start:]

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)


def _settled(entries: list[Record]) -> list[Record]:
    """Leave out what was chosen before torch.nn took over, which runs a call whole."""
    return [e for e in entries if e.problem is None] or entries


def _row(name: str, entry: Record) -> Row:
    backend = "torch.nn" if entry.backend == TORCH else entry.backend
    if entry.problem is None:
        return Row(name, None, None, backend, entry.refusals)
    direction = ("forward", "reverse")[entry.direction]
    how = None
    if entry.backend == native.name:
        backend_of: Any = way_named(entry.way) if " " in entry.way else native
        how = backend_of.plan(entry.problem, entry.together)
    others = _others(entry, backend)
    return Row(name, entry.layer, direction, backend, others, how=how, why=_why(entry))


def _why(entry: Record) -> str | None:
    """Return what was measured, where that decided."""
    assert entry.problem is not None
    asked = asked_for() is not None or entry.problem.stored is not None
    measured = None if asked else tuned.measurement(entry.problem)
    if measured is None or measured.way != entry.way:
        return None
    others = {w: s for w, s in measured.seconds.items() if w.partition(" ")[0] != entry.backend}
    if not others:
        return "measured: the only way that is right"
    over = TORCH if TORCH in others else min(others, key=others.__getitem__)
    ratio = others[over] / measured.seconds[measured.way]
    return f"measured: {ratio:.2f}x over {'torch.nn' if over == TORCH else over}"


def _others(entry: Record, shown: str) -> dict[str, str]:
    """Return the reasons that were given, and those of the backends that nobody asked."""
    reasons, passed = {}, False
    assert entry.problem is not None
    for name, backend in BACKENDS.items():
        if name == entry.backend:
            passed = True
            continue
        reasons[name] = (
            entry.refusals.get(name)
            or backend.available()
            or backend.supports(entry.problem)
            or (f"{shown} comes before it" if passed else f"{shown} was chosen by name")
        )
    return reasons


def _cuda_devices(module: nn.Module) -> list[int]:
    tensors = chain(module.parameters(), module.buffers())
    return sorted({t.device.index for t in tensors if t.is_cuda})


def _lines(row: Row) -> list[tuple[str, ...]]:
    """Return a row's texts, and below them a line for each reason but the first."""
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in _by_reason(row).items()]
    texts = (
        row.module or "(itself)",
        "all" if row.layer is None else str(row.layer),
        row.direction or "all",
        row.backend,
        str(row.calls),
        row.how or "",
        row.why or "",
    )
    blank = ("",) * len(texts)
    first, *others = reasons or [""]
    return [(*texts, first), *((*blank, reason) for reason in others)]


def _by_reason(row: Row) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reason in row.refusals.items():
        names.setdefault(reason, []).append(name)
    return names

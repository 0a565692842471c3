"""What a call of the layers may ask for beyond torch.nn, on top of the layers as they are.

Lengths and resets become packed segments, or marks of padded sequences where nothing may wait for
their values; states of every step are collected from the scans, and recomputation is a way to scan:
no layer knows of any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import transforms, way_of
from fused_rnn.graph.collectors import Collector, Nodes
from fused_rnn.graph.compiled import choose_in_graph, run_stack_in_graph, torch_is_asked_for
from fused_rnn.graph.onnx import onnx_stack
from fused_rnn.graph.running import WHEN_RUN
from fused_rnn.scans import autograd
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.scans.marks import mark
from fused_rnn.scans.noise import Whose
from fused_rnn.scans.segments import (
    Segments,
    check_lengths,
    check_resets,
    check_within,
    cut,
    on_device,
    read,
    unwrapped,
    vmapped,
)
from fused_rnn.scans.stack import choose, initial_states, run_stack
from fused_rnn.variants import cell_of

__all__ = ["Options", "Steps"]

# The h and c of every step; no c without a cell state.
Steps = tuple[Tensor, Tensor | None]


class Options:
    """The options of one call, and what it left besides its results.

    Args:
        lengths: (N,) integers
        resets: (T, N) booleans, (N, T) with ``batch_first``
        every_state: whether ``steps`` is wanted
        recompute: whether backward makes anew what it needs
        initial: h (L*D, 1, R) and c (L*D, 1, H) after a reset; ``(None, None)`` for zeros
        batch_first: how ``resets`` stand
        batched: whether there is a batch dim in what the user gave

    Attributes:
        steps: the states of every step, h (T, L*D, N, R) | (rows, L*D, R) for packed data, and c
    """

    def __init__(
        self,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        every_state: bool = False,
        recompute: bool = False,
        initial: tuple[Tensor | None, Tensor | None] = (None, None),
        batch_first: bool = False,
        batched: bool = True,
    ) -> None:
        self._lengths, self._resets = lengths, resets
        self._every_state, self._recompute = every_state, recompute
        self._initial, self._batch_first, self._batched = initial, batch_first, batched
        self._ran = False
        self.steps: Steps | None = None

    def run(
        self,
        stack: Stack,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        rows: Sequence[Row],
        batch_sizes: Tensor | None,
        n: int,
        dropout: float,
        training: bool,
        whose: Whose | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None] | str:
        """Run layers with these options; see :func:`fused_rnn.scans.stack.run_stack`.

        In a graph, return the reason where it has to be torch.nn's own forward that runs.
        """
        self._ran = True
        initial = self.anew(stack, x)
        if h0 is None and initial[0] is not None:
            h0, c0 = (s if s is None else s.expand(-1, n, -1).contiguous() for s in initial)
        operands = stack, x, h0, c0, rows, batch_sizes, n
        if transforms.onnx_exports() and (self._cuts or self._every_state):
            return self._in_onnx(*operands, dropout, training)
        if transforms.jit_traces() and transforms.onnx_exports():
            if stack.proj_size:
                return "ONNX has no node with a projection, and a trace writes nodes alone"
            return onnx_stack(stack, x, h0, c0, rows, n, dropout, training)
        if torch.compiler.is_compiling():
            return self._in_graph(*operands, dropout, training)
        if not self._cuts:
            return self._layers(*operands, dropout, training, whose)
        names = self._marking(*operands)
        if names is not None:
            return self._marked(names, *operands, dropout, training)
        segments = cut(*read(*self.cuts(x), len(x)), *x.shape[:2], stack.directions, x.device)
        given = initial_states(stack, x, n, h0, c0)
        anew = initial_states(stack, x, 1, *initial)
        y, h_n, c_n = self._layers(
            stack,
            segments.pack(x),
            *(g if g is None else segments.begin(g, a) for g, a in zip(given, anew, strict=True)),
            rows,
            segments.batch_sizes,
            segments.count,
            dropout,
            training,
            Whose(n, segments.members[: segments.count], segments.times[: segments.count]),
        )
        y = segments.unpack(y, n)
        if self.steps is not None:
            h, c = self.steps
            self.steps = _by_time(segments, h, n), c if c is None else _by_time(segments, c, n)
        h_n = segments.end(h_n, given[0])
        return y, h_n, c_n if c_n is None else segments.end(c_n, given[1])

    @property
    def _cuts(self) -> bool:
        return self._lengths is not None or self._resets is not None

    def cuts(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return lengths (N,) and resets (T, N), checked against x (T, N, I) but for values."""
        steps, n = x.shape[0], x.shape[1] if self._batched else None
        lengths, resets = self._lengths, self._resets
        return (
            lengths if lengths is None else check_lengths(lengths, n),
            resets if resets is None else check_resets(resets, steps, n, self._batch_first),
        )

    def check_ran(self) -> None:
        """Check that it was not torch.nn's own forward that ran.

        Raises:
            RuntimeError: if it was.
        """
        if not self._ran:
            raise RuntimeError(
                "lengths, resets and the states of every step need plain tensors of one dtype and "
                "device; these operands are for torch.nn's own forward, which knows of no options"
            )

    def anew(self, stack: Stack, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the state after a reset, h (L*D, 1, R) and c (L*D, 1, H), None for zeros.

        It comes in the dtype of x, which under autocast is not that of a parameter.

        Raises:
            RuntimeError: if it has another shape, or is on another device.
        """
        if all(state is None for state in self._initial):
            return None, None
        k, has_c = stack.layers * stack.directions, cell_of(stack.cell).has_cell_state
        sizes = stack.proj_size or stack.hidden_size, stack.hidden_size if has_c else None
        for i, (state, size) in enumerate(zip(self._initial, sizes, strict=True)):
            expected = None if size is None else ((k, 1, size), x.device)
            given = None if state is None else (tuple(state.shape), state.device)
            if given != expected:
                raise RuntimeError(
                    f"{stack.cell}: initial_state[{i}] should be {_described(expected)}, "
                    f"got: {_described(given)}"
                )
        h, c = (s if s is None else s.to(x.dtype) for s in self._initial)
        return h, c

    def _in_onnx(
        self,
        stack: Stack,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        rows: Sequence[Row],
        batch_sizes: Tensor | None,
        n: int,
        dropout: float,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run layers as nodes of ONNX, which have lengths and nothing else."""
        if (
            self._lengths is None
            or self._resets is not None
            or self._every_state
            or stack.proj_size
        ):
            raise RuntimeError(
                "ONNX has lengths, but no resets, no states of every step, and no lengths with a "
                "projection"
            )
        if transforms.jit_traces():
            with transforms.untraced():
                self.cuts(x)
            lengths: Tensor | None = self._lengths.view(-1)
        else:
            lengths, _ = self.cuts(x)
        return onnx_stack(stack, x, h0, c0, rows, n, dropout, training, lengths)

    def _in_graph(self, *operands: Any) -> tuple[Tensor, Tensor, Tensor | None] | str:
        """Run layers in a graph, where nothing can be packed: how many rows is not known there."""
        if not (self._cuts or self._every_state):
            return run_stack_in_graph(*operands, recompute=self._recompute)
        if torch_is_asked_for():
            raise RuntimeError(
                "torch.nn was asked for, which has neither lengths and resets in a graph nor every "
                "step's states"
            )
        names = choose_in_graph(
            *operands[:5], self._cuts, self._every_state, self._cuts, self._recompute
        )
        return self._marked([WHEN_RUN if name is None else name for name in names], *operands)

    def _marking(self, *operands: Any) -> list[str] | None:
        """Return the layers' backends where lengths and resets are not to be read, or None."""
        given = [t for t in (self._lengths, self._resets) if isinstance(t, Tensor)]
        if any(map(vmapped, given)):
            # They decide how many rows there are, which vmap needs to be the same for all.
            backends, _ = choose(*operands, every_state=self._every_state, cut=True)  # type: ignore[misc]
            if backends is None:
                raise RuntimeError(
                    "torch.nn was asked for, which takes no lengths and resets that vmap batches"
                )
            return list(map(way_of, backends))
        if all(t.device.type == "cpu" for t in given):
            return None
        backends, _ = choose(*operands, every_state=self._every_state, marked=True)  # type: ignore[misc]
        return None if backends is None else list(map(way_of, backends))

    def _marked(
        self,
        names: list[str],
        stack: Stack,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        rows: Sequence[Row],
        batch_sizes: Tensor | None,
        n: int,
        dropout: float,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run layers without reading lengths and resets, a node for each scan."""
        marks = None
        if self._cuts:
            lengths, resets = (on_device(t, x.device) for t in self.cuts(x))
            if lengths is not None:
                _check_unread(lengths, x.shape[0])
            # Not len(x), which a tracer takes for a constant.
            sizes = x.shape[0], n
            marks = [
                mark(lengths, resets, *sizes, reverse, x)
                for reverse in (False, True)[: stack.directions]
            ]
        scans = Nodes(not self._recompute, marks, self.anew(stack, x), self._every_state)
        result = run_stack(stack, x, h0, c0, rows, batch_sizes, n, dropout, training, names, scans)
        if self._every_state:
            self.steps = scans.steps()
        return result

    def _layers(
        self,
        stack: Stack,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        rows: Sequence[Row],
        batch_sizes: Tensor | None,
        n: int,
        dropout: float,
        training: bool,
        whose: Whose | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        operands = stack, x, h0, c0, rows, batch_sizes, n
        if not self._every_state:
            if not self._recompute:
                return run_stack(*operands, dropout, training, cut=self._cuts, whose=whose)
            scans = partial(autograd.scan, recompute=True)
            return run_stack(
                *operands, dropout, training, scan=scans, cut=self._cuts, recompute=True,
                whose=whose,
            )  # fmt: skip
        backends, _ = choose(*operands, every_state=True, cut=self._cuts, recompute=self._recompute)
        if backends is None:
            raise RuntimeError("torch.nn was asked for, and does not return every step's states")
        collector = Collector(self._recompute)
        result = run_stack(*operands, dropout, training, backends, collector, whose=whose)
        self.steps = collector.steps()
        return result


def _check_unread(lengths: Tensor, steps: int) -> None:
    """Check the values of lengths without waiting for them.

    Raises:
        ValueError: if they are wrong, and vmap batches them on the CPU.
        RuntimeError: if they are wrong: on a GPU, from the next call that waits for it.
    """
    if transforms.active() in transforms.ONLY_REFERENCE:
        # One assertion for each of a batch, which torch has no rule for, and in a graph no other.
        if torch.compiler.is_compiling():
            return
        lengths = unwrapped(lengths)
        if lengths.device.type == "cpu":
            check_within(lengths, steps)
            return
    within = ((lengths >= 0) & (lengths <= steps)).all()
    torch._assert_async(
        within, "lengths should be from 0 to the number of steps, got one that is not"
    )


def _described(expected: tuple[object, ...] | None) -> str:
    return "None" if expected is None else "{} on {}".format(*expected)


def _by_time(segments: Segments, states: Tensor, n: int) -> Tensor:
    """Return states of packed rows, or of no sequences at all, as (T, L*D, N, R)."""
    packed = states if segments.count else states.transpose(1, 2)
    return segments.unpack(packed, n).transpose(1, 2)

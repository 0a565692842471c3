"""Stacks of layers whose weights are int8 or bfloat16, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn.backends import ANY_SIZE, Inputs, Problem, note, transforms, way_of
from fused_rnn.backends.quantized import Scales, forward, select_quantized
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.scans.stack import run_stack

__all__ = ["QuantizedScans", "run_quantized"]


class QuantizedScans:
    """A way to scan, for :func:`fused_rnn.scans.stack.run_stack` to call: a direction per call.

    Args:
        scales: of each layer and direction
        every_state: whether every step's states are kept here
    """

    def __init__(self, scales: Sequence[Scales], every_state: bool = False) -> None:
        self._scales, self._every_state, self._count = scales, every_state, 0
        self.h: list[Tensor] = []
        self.c: list[Tensor] = []

    def __call__(
        self,
        backend: str,
        cell: str,
        inputs: Inputs,
        batch_sizes: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scales = self._scales[self._count]
        self._count += 1
        every_c = self._every_state and inputs.c0 is not None
        y, h_n, c_n, c = forward(backend, cell, inputs, scales, batch_sizes, reverse, every_c)
        if self._every_state:
            self.h.append(y)
        if every_c and c is not None:
            self.c.append(c)
        return y, h_n, c_n

    def steps(self) -> tuple[Tensor, Tensor | None]:
        """Return every step's h (T, L*D, N, R) | (rows, L*D, R), and c where the cell has one."""
        return torch.stack(self.h, 1), torch.stack(self.c, 1) if self.c else None


def run_quantized(
    scans: QuantizedScans,
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    batch_sizes: Tensor | None,
    n: int,
    dropout: float,
    training: bool,
    cut: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run layers on layers of float32 scans; see :func:`fused_rnn.scans.stack.run_stack`.

    Args:
        cut: whether the sequences are what lengths and resets have left of a padded batch
    """
    operands = stack, x, h0, c0, rows, batch_sizes, n, dropout, training
    stored = rows[0][1].dtype  # w_hh's: that of w_ih may be wider
    if torch.compiler.is_compiling():
        name = _in_graph(stack.cell, x.device, x.dtype, stored)
        return run_stack(*operands, [name] * stack.layers, scans)
    steps = x.shape[0] if batch_sizes is None else len(batch_sizes)
    ragged, i = batch_sizes is not None, stack.input_size
    names = []
    for layer in range(stack.layers):
        of_x = rows[layer * stack.directions][0].dtype
        problem = Problem(
            stack.cell, x.device, x.dtype, steps, n, i, stack.hidden_size,
            stack.proj_size, ragged, False, transforms.active(), cut=cut, layers=stack.layers,
            directions=stack.directions, width=stack.input_size, stored=stored,
            stored_ih=None if of_x == stored else of_x,
        )  # fmt: skip
        selection = select_quantized(problem)
        note(problem, selection, layer, stack.directions)
        names.append(way_of(selection.backend))
        i = (stack.proj_size or stack.hidden_size) * stack.directions
    return run_stack(*operands, names, scans)


@transforms.constant_in_graphs
def _in_graph(cell: str, device: torch.device, dtype: torch.dtype, stored: torch.dtype) -> str:
    """Return what runs a graph's layers: one op for each direction, or the reference, unrolled."""
    # An exporter's own modes are active then.
    transform = None if transforms.exporting() else transforms.active()
    problem = Problem(
        cell, device, dtype, ANY_SIZE, ANY_SIZE, 1, 1, 0, False, False, transform, stored=stored
    )
    return way_of(select_quantized(problem).backend)

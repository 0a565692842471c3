"""Stacks of layers in a graph, for torch.compile and torch.export: a node for each scan.

What is asked of a graph differs from a call: it is for many lengths and batches, runs later, and
has to be of operators that a tracer knows. ``node.py`` has the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import (
    ANY_SIZE,
    TORCH,
    Problem,
    asked_for,
    native,
    reference,
    select,
    select_kernels,
    transforms,
    way_of,
)
from fused_rnn.graph import earlier  # noqa: F401 (registers ops)
from fused_rnn.graph.collectors import Nodes
from fused_rnn.graph.flops import tell_counter
from fused_rnn.graph.onnx import onnx_stack
from fused_rnn.graph.running import WHEN_RUN
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.scans.stack import run_stack

__all__ = ["choose_in_graph", "run_stack_in_graph", "torch_is_asked_for"]

tell_counter()  # of all ops, which are registered by now


def run_stack_in_graph(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    *others: Any,
    recompute: bool = False,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None] | str:
    """Do as :func:`fused_rnn.scans.stack.run_stack`, or return the reason why no graph can.

    Args:
        others: batch_sizes (None), n, dropout and training
        recompute: whether the nodes save nothing for a backward, which makes it anew
        masks: recurrent dropout's, where they are given
    """
    if transforms.onnx_exports():
        if not stack.proj_size:
            return onnx_stack(stack, x, h0, c0, rows, *others[1:])
        backends = [reference] * stack.layers  # ONNX has no projections, but has matrix products
        return run_stack(stack, x, h0, c0, rows, *others, backends=backends)  # type: ignore[misc]
    names = choose_in_graph(stack, x, h0, c0, rows, recompute=recompute)
    if None in names:
        return "torch.nn runs it, which is no node of a graph"
    nodes = Nodes(keep=not recompute)
    how: dict[str, Any] = {"backends": names, "scan": nodes, "masks": masks}
    return run_stack(stack, x, h0, c0, rows, *others, **how)


def choose_in_graph(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    ragged: bool = False,
    every_state: bool = False,
    cut: bool = False,
    recompute: bool = False,
) -> list[str | None]:
    """Return for each layer the way of its nodes, None where torch.nn is to run it."""
    needs = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for row in ((x, h0, c0), *rows) for t in row
    )
    h, p, layers, directions = stack.hidden_size, stack.proj_size, stack.layers, stack.directions
    widths = [stack.input_size] + [(p or h) * directions] * (layers - 1)
    how = ragged, needs, every_state, cut, recompute, layers, directions, stack.input_size
    return [_choose(stack.cell, i, h, p, x.device, x.dtype, *how) for i in widths]


@transforms.constant_in_graphs
def torch_is_asked_for() -> bool:
    """Return whether torch.nn's own forward was chosen by name."""
    return asked_for() == TORCH


@transforms.constant_in_graphs
def _choose(
    cell: str,
    i: int,
    h: int,
    p: int,
    device: torch.device,
    dtype: torch.dtype,
    ragged: bool,
    training: bool,
    every_state: bool,
    cut: bool,
    recompute: bool,
    layers: int,
    directions: int,
    width: int,
) -> str | None:
    # A graph is for many lengths and batches, so that neither can have a say.
    transform = transforms.active()
    if transforms.exporting() and transform not in transforms.ONLY_REFERENCE:
        name = asked_for()
        if name != native.name or training or ragged:
            return None if name == TORCH else WHEN_RUN
        transform = None  # the tracer's own mode
    problem = Problem(
        cell, device, dtype, ANY_SIZE, ANY_SIZE, i, h, p, ragged, training, transform, every_state,
        False, cut, recompute, layers, directions, width,
    )  # fmt: skip
    backend = select(problem).backend
    if backend is None and not transforms.may_break():
        # Where the default leaves a graph for cuDNN, one that may not be left is what torch.nn
        # cannot do.
        backend = select_kernels(problem)
    return None if backend is None else way_of(backend)

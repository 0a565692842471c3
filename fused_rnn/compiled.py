"""One layer in one direction as one node of a graph: for torch.compile and torch.export.

Traced into, a scan would become thousands of nodes, and a new graph for every length. So the two
operators here are opaque to a tracer: it learns the sizes of their results and their derivatives,
and finds the backends again when the graph runs. They are met in graphs only; a call without a
compiler goes the shorter way through ``autograd.py``.

A node of :func:`torch.compile` names the backend that was chosen when the graph was made. One of
:func:`torch.export` names none: it runs on what is there when it runs, and keeps nothing for a
backward, which makes it again if it comes to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import (
    BACKENDS,
    TORCH,
    Backend,
    Inputs,
    Problem,
    asked_for,
    reference,
    select,
    transforms,
)
from fused_rnn.cells import CELLS
from fused_rnn.checks import Row, Stack
from fused_rnn.onnx_nodes import onnx_stack
from fused_rnn.stack import run_stack

__all__ = ["run_stack_in_graph", "scan"]

# The backend of a node that is chosen whenever it runs.
_WHEN_RUN = ""

_OPERANDS = (
    "str backend, str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, bool reverse"
)
# y, h_n, c_n and what is saved.
Results = tuple[Tensor, Tensor, Tensor, list[Tensor]]
# Where a node has to be made of torch's own operators when it runs.
_DIFFERENTIATED = transforms.ONLY_REFERENCE | {transforms.TORCH_FUNC}
# c_n, and a gradient that nobody needs, are empty where there is none.
torch.library.define(
    "fused_rnn::scan",
    f"({_OPERANDS}, bool training) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor[] saved)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fused_rnn::scan_backward",
    f"({_OPERANDS}, Tensor y, Tensor[] saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def run_stack_in_graph(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    *others: Any,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None] | str:
    """Do as :func:`fused_rnn.stack.run_stack`, or return the reason why no graph can.

    Args:
        others: batch_sizes (None), n, dropout and training
        recompute: whether the nodes save nothing for a backward, which makes it anew
    """
    needs = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for row in ((x, h0, c0), *rows) for t in row
    )
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        if not stack.proj_size:
            return onnx_stack(stack, x, h0, c0, rows, *others[1:])
        backends = [reference] * stack.layers  # ONNX has no projections, but has matrix products
        return run_stack(stack, x, h0, c0, rows, *others, backends=backends)
    h, p = stack.hidden_size, stack.proj_size
    widths = [stack.input_size] + [(p or h) * stack.directions] * (stack.layers - 1)
    names = [_choose(stack.cell, i, h, p, x.device, x.dtype, needs) for i in widths]
    if None in names:
        return "no kernel takes it"
    scans = partial(scan, keep=not recompute)
    return run_stack(stack, x, h0, c0, rows, *others, backends=names, scan=scans)


@transforms.constant_in_graphs
def _choose(
    cell: str, i: int, h: int, p: int, device: torch.device, dtype: torch.dtype, training: bool
) -> str | None:
    """Return the name of the backend of a node, or None where torch.nn has to run it all.

    A graph is for many lengths and batches, so that neither can have a say.
    """
    transform = transforms.active()
    if torch.compiler.is_exporting() and transform not in transforms.ONLY_REFERENCE:
        return None if asked_for() == TORCH else _WHEN_RUN
    backend = select(Problem(cell, device, dtype, 1, 1, i, h, p, False, training, transform))[0]
    return None if backend is None else backend.name


def scan(
    backend: str,
    cell: str,
    inputs: Inputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer in one direction in a graph; see :func:`fused_rnn.autograd.scan`.

    Args:
        batch_sizes: None, as graphs know nothing of packed data
        keep: whether to save for a backward if there may be one
    """
    if transforms.active() in transforms.ONLY_REFERENCE:
        return reference.forward(cell, inputs, None, reverse, True)[:3]
    training = (
        keep
        and backend != _WHEN_RUN
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in inputs)
    )
    y, h_n, c_n, _ = torch.ops.fused_rnn.scan(backend, cell, *inputs, reverse, training)
    return y, h_n, c_n if CELLS[cell].has_cell_state else None


def _find(name: str, cell: str, inputs: Inputs, training: bool) -> Backend:
    if name != _WHEN_RUN:
        return BACKENDS[name]
    x, (n, r), h = inputs.x, inputs.h0.shape, inputs.w_hh.shape[0] // CELLS[cell].gates
    p = 0 if inputs.w_hr is None else r
    problem = Problem(
        cell, x.device, x.dtype, x.shape[0], n, x.shape[-1], h, p, False, training, None
    )
    return select(problem).backend or reference


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.contiguous() for t in tensors]


def _scan(name: str, cell: str, *operands: Any) -> Results:
    *inputs, reverse, training = operands
    inputs = Inputs(*_dense(*inputs))
    backend = _find(name, cell, inputs, training)
    y, h_n, c_n, saved = backend.forward(cell, inputs, None, reverse, training)
    return y, h_n, inputs.x.new_empty(0) if c_n is None else c_n, list(saved) if training else []


def _scan_backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    *inputs, reverse, y, saved, dy, dh_n, dc_n, needs = operands
    inputs = Inputs(*_dense(*inputs))
    y, dy, dh_n, dc_n = _dense(y, dy, dh_n, dc_n)
    backend = _find(name, cell, inputs, True)
    if not saved and backend is not reference:  # which saves nothing ever
        saved = backend.forward(cell, inputs, None, reverse, True)[3]
    gradients = backend.backward(
        cell, inputs, None, reverse, y, tuple(saved), dy, dh_n, dc_n, tuple(needs)
    )
    return tuple(inputs.x.new_empty(0) if d is None else d for d in gradients)


torch.library.impl("fused_rnn::scan", "CompositeExplicitAutograd", _scan)
torch.library.impl("fused_rnn::scan_backward", "CompositeExplicitAutograd", _scan_backward)


@torch.library.register_fake("fused_rnn::scan")
def _fake_scan(name: str, cell: str, *operands: Any) -> Results:
    *inputs, _, training = operands
    x, h0, c0, *_ = inputs = Inputs(*inputs)
    saved = BACKENDS[name].saved(cell, inputs) if training else ()
    c_n = x.new_empty(0) if c0 is None else torch.empty_like(c0)
    return x.new_empty(*x.shape[:-1], h0.shape[-1]), torch.empty_like(h0), c_n, list(saved)


@torch.library.register_fake("fused_rnn::scan_backward")
def _fake_scan_backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    inputs, needs = operands[:8], operands[-1]
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if t is not None and need
        else inputs[0].new_empty(0)
        for t, need in zip(inputs, needs, strict=True)
    )


def _scan_by_reference(name: str, cell: str, *operands: Any) -> Results:
    return _scan(reference.name, cell, *operands)


def _backward_by_reference(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    return _scan_backward(reference.name, cell, *operands)


# Where operands are batched, by torch.func and by is_grads_batched=True of torch.autograd: every
# operator in there has a rule of its own. torch.library.register_vmap knows the former only.
torch.library.impl("fused_rnn::scan", "FuncTorchBatched", _scan_by_reference)
torch.library.impl("fused_rnn::scan_backward", "Batched", _backward_by_reference)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> tuple[Tensor, ...]:
        name, cell, *inputs, reverse, _ = operands
        with torch._C._AutoDispatchBelowAutograd():
            y, h_n, c_n, saved = torch.ops.fused_rnn.scan(*operands)
        ctx.save_for_backward(*inputs, y, *saved)
        ctx.set_materialize_grads(False)
        ctx.scan = name, cell, reverse
        return y, h_n, c_n, *saved

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        name, cell, reverse = ctx.scan
        *inputs, y = ctx.saved_tensors[:9]
        needs = list(ctx.needs_input_grad[2:10])
        given = y, list(ctx.saved_tensors[9:]), dy, dh_n, dc_n, needs
        if dy is None and dh_n is None and dc_n is None:
            gradients: tuple[Tensor | None, ...] = (None,) * len(needs)
        elif torch.is_grad_enabled() or transforms.active() in _DIFFERENTIATED:
            # A gradient of the gradient is wanted, or one along with it.
            gradients = reference.backward(cell, Inputs(*inputs), None, reverse, *given)
        else:
            found = torch.ops.fused_rnn.scan_backward(name, cell, *inputs, reverse, *given)
            gradients = tuple(d if need else None for d, need in zip(found, needs, strict=True))
        return None, None, *gradients, None, None


def _differentiable(*operands: Any) -> Results:
    # Not torch.library.register_autograd: that would drop tangents without a word, and raise
    # under the transforms of torch.func.
    # A compiled graph, which counts on what its nodes save, runs with forward-mode AD switched off.
    if transforms.active() in _DIFFERENTIATED and torch._C._is_fwd_grad_enabled():
        return _scan_by_reference(*operands)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands):
        y, h_n, c_n, *saved = _Node.apply(*operands)
        return y, h_n, c_n, saved
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fused_rnn.scan(*operands)


torch.library.impl("fused_rnn::scan", "Autograd", _differentiable)

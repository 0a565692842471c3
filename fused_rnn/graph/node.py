"""One layer in one direction as one node of a graph.

Traced into, a scan would become thousands of nodes, and a new graph for every length. So the two
operators here are opaque to a tracer: it learns the sizes of their results and their derivatives,
and finds the backends again when the graph runs. Where no sizes may depend on the data they serve
without a graph too: for padded sequences with marks on a GPU. Other calls without a compiler go the
shorter way through ``autograd.py``.

A node of :func:`torch.compile` names the backend that was chosen when the graph was made. One of
:func:`torch.export` names none: it runs on what is there when it runs, and keeps nothing for a
backward, which makes it again if it comes to that.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fused_rnn.backends import (
    BACKENDS,
    Backend,
    Inputs,
    Marked,
    Problem,
    reference,
    select,
    transforms,
)
from fused_rnn.cells import CELLS
from fused_rnn.scans import marks
from fused_rnn.scans.outputs import alias, changed, watch

__all__ = ["WHEN_RUN", "scan"]

# The backend of a node that is chosen whenever it runs.
WHEN_RUN = ""

# Inputs, then Marked; without marks all sequences have all steps.
_OPERANDS = (
    "str backend, str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? marks, Tensor? anew_h, Tensor? anew_c, "
    "bool reverse, bool every_c"
)
# y, h_n, c_n, every step's c, and what is saved.
Results = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]
# Where a node has to be made of torch's own operators when it runs.
_DIFFERENTIATED = transforms.ONLY_REFERENCE | {transforms.TORCH_FUNC}
# c_n and c, and a gradient that nobody needs, are empty where there is none.
torch.library.define(
    "fused_rnn::scan",
    f"({_OPERANDS}, bool training) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor[] saved)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fused_rnn::scan_backward",
    f"({_OPERANDS}, Tensor y, Tensor[] saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, "
    f"bool[] needs) -> ({', '.join(['Tensor'] * 10)})",
    tags=torch.Tag.pt2_compliant_tag,
)


def scan(
    backend: str,
    cell: str,
    inputs: Inputs,
    marked: Marked | None,
    reverse: bool,
    keep: bool,
    every_c: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run one layer in one direction as one node; see :func:`fused_rnn.scans.autograd.scan`.

    Args:
        backend: a key of BACKENDS, or ``WHEN_RUN``
        marked: of padded sequences; None where all have all steps
        keep: whether to save for a backward if there may be one
        every_c: whether every step's c is wanted, of a cell that has one

    Returns:
        y (T, N, R), h_n (N, R), c_n (N, H) | None, c (T, N, H) | None
    """
    if transforms.active() in transforms.ONLY_REFERENCE:
        y, h_n, c_n, c = _by_torch(cell, inputs, marked, reverse, every_c)
        return y, h_n, c_n, c if every_c else None
    tensors = *inputs, *(_NO_MARKS if marked is None else marked)
    training = (
        keep
        and backend != WHEN_RUN
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )
    y, h_n, c_n, c, _ = torch.ops.fused_rnn.scan(
        backend, cell, *tensors, reverse, every_c, training
    )
    return y, h_n, c_n if CELLS[cell].has_cell_state else None, c if every_c else None


_NO_MARKS = None, None, None


def _by_torch(
    cell: str, inputs: Inputs, marked: Marked | None, reverse: bool, every_c: bool
) -> tuple[Any, ...]:
    """Return y, h_n, c_n and c, made of torch's own operators."""
    if marked is not None:
        return reference.scan_marked(cell, inputs, marked, reverse)
    if every_c:
        return reference.scan_states(cell, inputs, None, reverse)
    return *reference.forward(cell, inputs, None, reverse, True)[:3], None


class _Scan(NamedTuple):
    """What the operators get beside names, and what only one of them gets."""

    inputs: Inputs
    marked: Marked | None
    reverse: bool
    every_c: bool

    @classmethod
    def of(cls, operands: tuple[Any, ...]) -> _Scan:
        tensors = [t if t is None else t.contiguous() for t in operands[:11]]
        marked = None if tensors[8] is None else Marked(*tensors[8:])
        return cls(Inputs(*tensors[:8]), marked, *operands[11:13])

    def backend(self, name: str, cell: str, training: bool) -> Backend:
        if name != WHEN_RUN:
            return BACKENDS[name]
        x, (n, r), w_hr = self.inputs.x, self.inputs.h0.shape, self.inputs.w_hr
        h, p = self.inputs.w_hh.shape[0] // CELLS[cell].gates, 0 if w_hr is None else r
        sizes = x.shape[0], n, x.shape[-1], h, p
        ragged = self.marked is not None
        problem = Problem(cell, x.device, x.dtype, *sizes, ragged, training, None, self.every_c)
        return select(problem).backend or BACKENDS[reference.name]


def _without_autocast(x: Tensor) -> Any:
    # Whatever is to be recast was, before there was a node: kernels take no notice of autocast, and
    # what is made of torch's operators must not either.
    on = torch._C._is_any_autocast_enabled()
    return torch.autocast(x.device.type, enabled=False) if on else nullcontext()


def _forward(name: str, cell: str, *operands: Any) -> Results:
    with _without_autocast(operands[0]):
        return _results(name, cell, *operands)


def _results(name: str, cell: str, *operands: Any) -> Results:
    scan, training = _Scan.of(operands), operands[13]
    backend = scan.backend(name, cell, training)
    inputs, marked, reverse, every_c = scan
    y: Any
    h_n: Any
    c_n: Any
    c: Tensor | None = None
    if marked is not None:
        y, h_n, c_n, saved, c = marks.forward(
            backend, cell, inputs, marked, reverse, training, every_c
        )
    elif backend is reference:
        y, h_n, c_n, c = _by_torch(cell, inputs, None, reverse, every_c)
        saved = ()
    elif every_c:
        y, h_n, c_n, saved, c = backend.scan_states(cell, inputs, None, reverse, training)
    else:
        y, h_n, c_n, saved = backend.forward(cell, inputs, None, reverse, training)
    c_n, c = (inputs.x.new_empty(0) if s is None else s for s in (c_n, c))
    return y, h_n, c_n, c, list(saved) if training else []


def _backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    scan = _Scan.of(operands)
    y, saved, *given, needs = operands[13:]
    y, *given = (t if t is None else t.contiguous() for t in (y, *given))
    gradients = _gradients(scan.backend(name, cell, True), cell, scan, y, saved, given, needs)
    return tuple(scan.inputs.x.new_empty(0) if d is None else d for d in gradients)


def _gradients(
    backend: Backend,
    cell: str,
    scan: _Scan,
    y: Tensor,
    saved: list[Tensor],
    given: list[Tensor | None],
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of Inputs and of the state after a reset, None where not needed."""
    with _without_autocast(y):
        return _gradients_on(backend, cell, scan, y, saved, given, needs)


def _gradients_on(
    backend: Backend,
    cell: str,
    scan: _Scan,
    y: Tensor,
    saved: list[Tensor],
    given: list[Tensor | None],
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    inputs, marked, reverse, every_c = scan
    dy, dh_n, dc_n, dc = given
    dc = dc if every_c else None  # of what is empty else
    if marked is not None:
        return marks.backward(
            backend, cell, inputs, marked, reverse, y, tuple(saved), dy, dh_n, dc_n, tuple(needs),
            dc,
        )  # fmt: skip
    if not saved and backend is not reference:  # which saves nothing ever
        saved = list(backend.forward(cell, inputs, None, reverse, True)[3])
    more = () if dc is None else (dc,)
    gradients = backend.backward(
        cell, inputs, None, reverse, y, tuple(saved), dy, dh_n, dc_n, tuple(needs[:8]), *more
    )
    return *gradients, None, None


torch.library.impl("fused_rnn::scan", "CompositeExplicitAutograd", _forward)
torch.library.impl("fused_rnn::scan_backward", "CompositeExplicitAutograd", _backward)


@torch.library.register_fake("fused_rnn::scan")
def _fake_forward(name: str, cell: str, *operands: Any) -> Results:
    x, h0, c0, *_ = inputs = Inputs(*operands[:8])
    every_c, training = operands[12:]
    saved = BACKENDS[name].saved(cell, inputs) if training else ()
    c_n = x.new_empty(0) if c0 is None else torch.empty_like(c0)
    c = x.new_empty(*x.shape[:-1], c0.shape[-1]) if every_c else x.new_empty(0)
    y = x.new_empty(*x.shape[:-1], h0.shape[-1])
    return y, torch.empty_like(h0), c_n, c, list(saved)


@torch.library.register_fake("fused_rnn::scan_backward")
def _fake_backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    differentiable, needs = _differentiable(operands), operands[-1]
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if t is not None and need
        else operands[0].new_empty(0)
        for t, need in zip(differentiable, needs, strict=True)
    )


def _differentiable(operands: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Return the operands that gradients are for: all tensors but the marks."""
    return *operands[:8], *operands[9:11]


def _forward_by_reference(name: str, cell: str, *operands: Any) -> Results:
    return _forward(reference.name, cell, *operands)


def _backward_by_reference(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    return _backward(reference.name, cell, *operands)


# Where operands are batched, by torch.func and by is_grads_batched=True of torch.autograd: every
# operator in there has a rule of its own. torch.library.register_vmap knows the former only.
torch.library.impl("fused_rnn::scan", "FuncTorchBatched", _forward_by_reference)
torch.library.impl("fused_rnn::scan_backward", "Batched", _backward_by_reference)


def _as_it_is(y: Tensor) -> Tensor:
    """Return y, in a graph that is being made, as it is before it is changed in place."""
    # It stands for what a tensor is by now; in the graph there is no change, but another tensor.
    if isinstance(y, FunctionalTensor):
        return FunctionalTensor.to_functional(y.from_functional())
    return y


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            y, h_n, c_n, c, saved = torch.ops.fused_rnn.scan(*operands)
        name, cell, *tensors = operands[:13]
        ctx.watch, y_saved = None, _as_it_is(y)
        # Not where a graph is being made, whose tensors are none that could be watched.
        if transforms.active() in (None, transforms.AUTOCAST):
            # What is given out is no view either, as operators return: none of several is allowed
            # to be changed in place.
            y, h_n, c_n, c = map(alias, (y, h_n, c_n, c))
            ctx.watch = watch(y)
        ctx.save_for_backward(*tensors, y_saved, *saved)
        ctx.set_materialize_grads(False)
        ctx.scan = name, cell, *operands[13:15]
        return y, h_n, c_n, c, *saved

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        name, cell, reverse, every_c = ctx.scan
        *tensors, y = ctx.saved_tensors[:12]
        needs, given = list(_differentiable(ctx.needs_input_grad[2:13])), given[:4]
        gradients: tuple[Tensor | None, ...] = (None,) * len(needs)
        if any(d is not None for d in given):
            saved = list(ctx.saved_tensors[12:])
            if torch.is_grad_enabled() or transforms.active() in _DIFFERENTIATED:
                # A gradient of the gradient is wanted, or one along with it.
                marked = None if tensors[8] is None else Marked(*tensors[8:])
                scan = _Scan(Inputs(*tensors[:8]), marked, reverse, every_c)
                gradients = _gradients(reference, cell, scan, y, saved, given, needs)
            else:
                if changed(ctx.watch):
                    y, _, _, _, saved = torch.ops.fused_rnn.scan(
                        name, cell, *tensors, reverse, every_c, True
                    )
                found = torch.ops.fused_rnn.scan_backward(
                    name, cell, *tensors, reverse, every_c, y, saved, *given, needs
                )
                gradients = tuple(d if need else None for d, need in zip(found, needs, strict=True))
        return None, None, *gradients[:8], None, *gradients[8:], None, None, None


def _with_autograd(*operands: Any) -> Results:
    # Not torch.library.register_autograd: that would drop tangents without a word, and raise
    # under the transforms of torch.func.
    # A compiled graph, which counts on what its nodes save, runs with forward-mode AD switched off.
    if transforms.active() in _DIFFERENTIATED and torch._C._is_fwd_grad_enabled():
        return _forward_by_reference(*operands)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands):
        y, h_n, c_n, c, *saved = _Node.apply(*operands)
        return y, h_n, c_n, c, saved
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fused_rnn.scan(*operands)


torch.library.impl("fused_rnn::scan", "Autograd", _with_autograd)

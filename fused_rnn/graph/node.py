"""One layer in one direction as one node of a graph.

Traced into, a scan would become thousands of nodes, and a new graph for every length. So the two
operators here are opaque to a tracer: it learns the sizes of their results and their derivatives,
and finds the backends again when the graph runs. Where no sizes may depend on the data they serve
without a graph too: for padded sequences with marks on a GPU. Other calls without a compiler go the
shorter way through ``autograd.py``. What then runs is in ``running.py``.

A node of :func:`torch.compile` names the backend that was chosen when the graph was made. One of
:func:`torch.export` names none: it runs on what is there when it runs, and keeps nothing for a
backward, which makes it again if it comes to that. Where the native backend is asked for by name,
and no gradient is, there is no node but its own op, which a program without Python knows too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fused_rnn.backends import (
    AnyInputs,
    Inputs,
    Marked,
    VariantInputs,
    inputs_of,
    native,
    reference,
    transforms,
    way_named,
)
from fused_rnn.graph.running import (
    WHEN_RUN,
    Results,
    Scan,
    backward,
    by_torch,
    differentiable,
    fixed,
    forward,
    gradients,
)
from fused_rnn.scans.outputs import alias, changed, watch
from fused_rnn.variants import cell_of

__all__ = ["OPERANDS", "scan"]

# Inputs, then Marked; without marks all sequences have all steps.
OPERANDS = (
    "str backend, str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? marks, Tensor? anew_h, Tensor? anew_c, "
    "bool reverse, bool every_c"
)
# Where a node has to be made of torch's own operators when it runs.
_DIFFERENTIATED = transforms.ONLY_REFERENCE | {transforms.TORCH_FUNC}
# c_n, c, what is saved, and a gradient that nobody needs, are empty where there is none.


def _define(name: str, operands: str, gradients: int) -> None:
    torch.library.define(
        f"fused_rnn::{name}_forward",
        f"({operands}, bool training) "
        "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor saved, Tensor saved_too)",
        tags=torch.Tag.pt2_compliant_tag,
    )
    torch.library.define(
        f"fused_rnn::{name}_backward",
        f"({operands}, Tensor y, Tensor saved, Tensor saved_too, Tensor? dy, Tensor? dh_n, "
        f"Tensor? dc_n, Tensor? dc, bool[] needs) -> ({', '.join(['Tensor'] * gradients)})",
        tags=torch.Tag.pt2_compliant_tag,
    )


# Of a plain cell, and of a variant, which has more operands.
_OPS = {len(Inputs._fields): "layer", len(VariantInputs._fields): "variant"}
_MORE = ", ".join(f"Tensor? {name}" for name in VariantInputs._fields[len(Inputs._fields) :])
_define("layer", OPERANDS, 10)
_define("variant", OPERANDS.replace("Tensor? w_hr", f"Tensor? w_hr, {_MORE}"), 13)


def _op(name: str, count: int) -> Any:
    """Return the op ``forward`` or ``backward`` for that many operands before the marks."""
    return getattr(torch.ops.fused_rnn, f"{_OPS[count]}_{name}")


def scan(
    backend: str,
    cell: str,
    inputs: AnyInputs,
    marked: Marked | None,
    reverse: bool,
    keep: bool,
    every_c: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run one layer in one direction as one node; see :func:`fused_rnn.scans.autograd.scan`.

    Args:
        backend: what ``way_named`` takes, or ``WHEN_RUN``
        marked: of padded sequences; None where all have all steps
        keep: whether to save for a backward if there may be one
        every_c: whether every step's c is wanted, of a cell that has one

    Returns:
        y (T, N, R), h_n (N, R), c_n (N, H) | None, c (T, N, H) | None
    """
    if transforms.active() in transforms.ONLY_REFERENCE:
        y, h_n, c_n, c = by_torch(cell, inputs, marked, reverse, every_c)
        return y, h_n, c_n, c if every_c else None
    if backend == native.name and transforms.exporting() and isinstance(inputs, Inputs):
        # Asked for by name: its ops are of C++, and a program of these needs no Python.
        dense = inputs_of([t if t is None else t.contiguous() for t in inputs])
        if every_c:
            y, h_n, c_n, _, c = native.scan_states(cell, dense, None, reverse, False)
            return y, h_n, c_n, c
        return *native.forward(cell, dense, None, reverse, False)[:3], None
    tensors = *inputs, *(_NO_MARKS if marked is None else marked)
    training = (
        keep
        and backend != WHEN_RUN
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )
    y, h_n, c_n, c, *_ = _op("forward", len(inputs))(
        backend, cell, *tensors, reverse, every_c, training
    )
    return y, h_n, c_n if cell_of(cell).has_cell_state else None, c if every_c else None


_NO_MARKS = None, None, None


def _fake_forward(name: str, cell: str, *operands: Any) -> Results:
    x, h0, c0, *_ = inputs = inputs_of(operands[:-6])
    every_c, training = operands[-2:]
    saved = way_named(name).saved(cell, inputs) if training else ()
    c_n = x.new_empty(0) if c0 is None else torch.empty_like(c0)
    c = x.new_empty(*x.shape[:-1], c0.shape[-1]) if every_c else x.new_empty(0)
    y = x.new_empty(*x.shape[:-1], h0.shape[-1])
    return y, torch.empty_like(h0), c_n, c, *fixed(saved, x)


def _fake_backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    needs = operands[-1]
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if t is not None and need
        else operands[0].new_empty(0)
        for t, need in zip(differentiable(operands, len(operands) - 13), needs, strict=True)
    )


def _forward_by_reference(name: str, cell: str, *operands: Any) -> Results:
    return forward(reference.name, cell, *operands)


def _backward_by_reference(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    return backward(reference.name, cell, *operands)


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
            results = _op("forward", len(operands) - 8)(*operands)
        name, cell, *tensors = operands[:-3]
        y, saved = results[0], results[4:]
        ctx.watch, y_saved = None, _as_it_is(y)
        # Not where a graph is being made, whose tensors are none that could be watched.
        if transforms.active() in transforms.BY_HAND:
            # What is given out is no view either, as operators return: none of several is allowed
            # to be changed in place.
            results = *map(alias, results[:4]), *saved
            ctx.watch = watch(results[0])
        ctx.save_for_backward(*tensors, y_saved, *saved)
        ctx.set_materialize_grads(False)
        ctx.scan = name, cell, *operands[-3:-1]
        return results

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        name, cell, reverse, every_c = ctx.scan
        count = len(ctx.needs_input_grad) - 8
        needs, given = list(differentiable(ctx.needs_input_grad[2:], count)), given[:4]
        found: tuple[Tensor | None, ...] = (None,) * len(needs)
        if any(d is not None for d in given):
            kept = ctx.saved_tensors  # once: activation checkpointing allows no second time
            *tensors, y = kept[: count + 4]
            saved = list(kept[count + 4 :])
            if torch.is_grad_enabled() or transforms.active() in _DIFFERENTIATED:
                # A gradient of the gradient is wanted, or one along with it.
                marked = None if tensors[count] is None else Marked(*tensors[count:])
                scan = Scan(inputs_of(tensors[:count]), marked, reverse, every_c)
                found = gradients(reference, cell, scan, y, saved, given, needs)
            else:
                if changed(ctx.watch):
                    y, _, _, _, *saved = _op("forward", count)(
                        name, cell, *tensors, reverse, every_c, True
                    )
                made = _op("backward", count)(
                    name, cell, *tensors, reverse, every_c, y, *saved, *given, needs
                )
                found = tuple(d if need else None for d, need in zip(made, needs, strict=True))
        return None, None, *found[:count], None, *found[count:], None, None, None


def _with_autograd(*operands: Any) -> Results:
    # Not torch.library.register_autograd: that would drop tangents without a word, and raise
    # under the transforms of torch.func.
    # A compiled graph, which counts on what its nodes save, runs with forward-mode AD switched off.
    if transforms.active() in _DIFFERENTIATED and torch._C._is_fwd_grad_enabled():
        return _forward_by_reference(*operands)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands):
        return _Node.apply(*operands)
    with torch._C._AutoDispatchBelowAutograd():
        return _op("forward", len(operands) - 8)(*operands)


for _name in _OPS.values():
    _forward, _backward = (f"fused_rnn::{_name}_{way}" for way in ("forward", "backward"))
    torch.library.impl(_forward, "CompositeExplicitAutograd", forward)
    torch.library.impl(_backward, "CompositeExplicitAutograd", backward)
    torch.library.register_fake(_forward, _fake_forward)
    torch.library.register_fake(_backward, _fake_backward)
    # Where operands are batched, by torch.func and by is_grads_batched=True of torch.autograd:
    # every operator in there has a rule of its own. torch.library.register_vmap knows the former
    # only.
    torch.library.impl(_forward, "FuncTorchBatched", _forward_by_reference)
    torch.library.impl(_backward, "Batched", _backward_by_reference)
    torch.library.impl(_forward, "Autograd", _with_autograd)

"""Differentiation, for every backend at once.

A backend knows a forward and a backward, both plain arithmetic. Here they become one node of
autograd's graph. Whatever asks for more than plain gradients (``create_graph=True``, vmap over the
backward) gets them from the reference backend, which is made of torch's own operators and so can be
differentiated and batched as often as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from fused_rnn.backends import AnyInputs, Backend, Inputs, inputs_of, reference, transforms
from fused_rnn.scans.outputs import alias, changed, watch

__all__ = ["scan", "scan_both", "scan_states", "step"]


def scan(
    backend: Backend,
    cell: str,
    inputs: AnyInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer in one direction on a backend, differentiably.

    Args:
        backend: one that supports the problem
        cell: a key of :data:`fused_rnn.cells.CELLS`
        inputs: the operands
        batch_sizes: (T,) int64 on the CPU for packed data, else None
        reverse: whether each sequence is scanned from its last step to its first
        recompute: whether backward makes what it needs by another forward, instead of keeping it

    Shape:
        - y: (T, N, R), or (rows, R) for packed data
        - h_n: (N, R), c_n: (N, H), or None for a cell without cell state
    """
    if backend is reference and not (recompute and _by_hand()):
        return reference.forward(cell, inputs, batch_sizes, reverse, True)[:3]
    if torch.is_grad_enabled():
        for t in inputs:
            if t is not None and t.requires_grad:
                return _Scan.apply(backend, cell, batch_sizes, reverse, recompute, *inputs)
    y, h_n, c_n, _ = backend.forward(cell, inputs, batch_sizes, reverse, False)
    return y, h_n, c_n


def scan_states(
    backend: Backend,
    cell: str,
    inputs: AnyInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do as :func:`scan` for a cell with a cell state, and return every step's c too.

    Shape:
        - c: (T, N, H), or (rows, H) for packed data
    """
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if backend is reference and not (training and recompute and _by_hand()):
        return reference.scan_states(cell, inputs, batch_sizes, reverse)
    if training:
        return _ScanStates.apply(backend, cell, batch_sizes, reverse, recompute, *inputs)
    y, h_n, c_n, _, c = backend.scan_states(cell, inputs, batch_sizes, reverse, False)
    return y, h_n, c_n, c


def scan_both(
    backend: Backend,
    cell: str,
    inputs: tuple[Inputs, Inputs],
    batch_sizes: Tensor | None,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], ...]:
    """Run one layer in both directions at once, differentiably.

    Args:
        backend: one that takes both
        inputs: the operands of the forward direction and of the reverse one, with the same x

    Returns:
        what :func:`scan` does, for the forward direction and for the reverse one
    """
    if torch.is_grad_enabled():
        operands = *inputs[0], *inputs[1][1:]
        if any(t is not None and t.requires_grad for t in operands):
            results = _ScanBoth.apply(backend, cell, batch_sizes, *operands)
            return results[:3], results[3:]
    forward, reverse = backend.forward_both(cell, inputs, batch_sizes, False)
    return forward[:3], reverse[:3]


def step(
    backend: Backend,
    cell: str,
    training: bool,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Run one step on a backend, differentiably: a scan of length one.

    Args:
        backend: one that supports the problem
        cell: a key of :data:`fused_rnn.cells.CELLS`
        training: whether grad mode is on and an operand needs a gradient
        x: (N, I)
        h, c: the states (N, H), None for a cell without cell state
        weights: w_ih, w_hh, b_ih and b_hh
    """
    if training and backend is not reference:
        return _Step.apply(backend, cell, x, h, c, *weights, None)
    alone = getattr(backend, "step", None)
    if alone is not None:
        return alone(cell, x, h, c, *weights)
    _, h_n, c_n, _ = backend.forward(cell, Inputs(x, h, c, *weights, None), None, False, False)
    return h_n, c_n


def _by_hand() -> bool:
    return transforms.active() in transforms.BY_HAND


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        cell: str,
        batch_sizes: Tensor | None,
        reverse: bool,
        recompute: bool,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        y, h_n, c_n, saved = backend.forward(
            cell, inputs_of(inputs), batch_sizes, reverse, not recompute
        )
        _keep(ctx, inputs, y, saved, recompute)
        ctx.scan = backend, cell, batch_sizes, reverse
        return y, h_n, c_n

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradients = _backward(ctx, *ctx.scan, dy, dh_n, dc_n, ctx.needs_input_grad[5:])
        return None, None, None, None, None, *gradients


class _ScanStates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        cell: str,
        batch_sizes: Tensor | None,
        reverse: bool,
        recompute: bool,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scan = cell, inputs_of(inputs), batch_sizes, reverse
        if backend is reference:
            y, h_n, c_n, c = reference.scan_states(*scan)
            saved: tuple[Tensor, ...] = ()
        else:
            y, h_n, c_n, saved, c = backend.scan_states(*scan, not recompute)
        _keep(ctx, inputs, y, saved, recompute)
        ctx.scan = backend, cell, batch_sizes, reverse
        return y, h_n, c_n, c

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dc: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradients = _backward(ctx, *ctx.scan, dy, dh_n, dc_n, ctx.needs_input_grad[5:], dc)
        return None, None, None, None, None, *gradients


class _ScanBoth(torch.autograd.Function):
    """Both directions of a layer. They have x in common, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, cell: str, batch_sizes: Tensor | None, *operands: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        results = backend.forward_both(cell, _of_each(operands), batch_sizes, True)
        (y, *states, saved), (y_reverse, *states_reverse, saved_reverse) = results
        ctx.save_for_backward(*operands, y, y_reverse, *saved, *saved_reverse)
        ctx.set_materialize_grads(False)
        ctx.scan = backend, cell, batch_sizes, len(saved)
        return y, *states, y_reverse, *states_reverse

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        backend, cell, batch_sizes, count = ctx.scan
        needs = ctx.needs_input_grad[3:]
        tensors = ctx.saved_tensors
        inputs, y, saved = _of_each(tensors[:15]), tensors[15:17], tensors[17:]
        if torch.is_grad_enabled() or not _by_hand():
            backend = reference
        dense = [d if d is None else d.contiguous() for d in given]
        scan = backend, cell, inputs, batch_sizes, y, (saved[:count], saved[count:])
        # As in _backward: matrix products must not be recast where backward() is called.
        recast = transforms.active() == transforms.AUTOCAST
        with torch.autocast(y[0].device.type, enabled=False) if recast else nullcontext():
            return None, None, None, *_gradients_of_both(*scan, (dense[:3], dense[3:]), needs)


class _Step(torch.autograd.Function):
    """A single step: as a scan, without an output that is the state over again."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, cell: str, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, h, c, saved = backend.forward(cell, Inputs(*inputs), None, False, True)
        ctx.save_for_backward(*inputs, y, *saved)
        ctx.set_materialize_grads(False)
        ctx.watch = None  # h is another tensor
        ctx.scan = backend, cell, None, False
        return h, c

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dc: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_backward(ctx, *ctx.scan, None, dh, dc, ctx.needs_input_grad[2:])


def _keep(
    ctx: Any, inputs: Sequence[Tensor | None], y: Tensor, saved: tuple[Tensor, ...], recompute: bool
) -> None:
    """Keep what :func:`_backward` reads: the inputs, and y and what is saved unless recomputed."""
    if recompute:
        ctx.watch = None
        ctx.save_for_backward(*inputs)
    else:
        ctx.watch = watch(y)
        ctx.save_for_backward(*inputs, alias(y), *saved)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    backend: Backend,
    cell: str,
    batch_sizes: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
    dc: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    if dy is None and dh_n is None and dc_n is None and dc is None:
        return (None,) * len(needs)
    tensors = ctx.saved_tensors
    # No more than the inputs where the rest is to be made anew.
    inputs = inputs_of(tensors[: len(needs)])
    states = () if changed(ctx.watch) else tensors[len(needs) :]
    active = transforms.active()
    if torch.is_grad_enabled() or active not in transforms.BY_HAND:
        backend = cast("Backend", reference)
    # Gradients of sums and of slices come expanded or strided; kernels take them dense.
    dy, dh_n, dc_n = [d if d is None else d.contiguous() for d in (dy, dh_n, dc_n)]
    scan = backend, cell, inputs, batch_sizes, reverse, states
    rest = (dy, dh_n, dc_n, needs) if dc is None else (dy, dh_n, dc_n, needs, dc.contiguous())
    if active != transforms.AUTOCAST:
        return _gradients(*scan, *rest)
    # The forward ran without autocast, or torch would have run it: its matrix products must not
    # be recast either where backward() is called inside an autocast block.
    with torch.autocast(inputs.x.device.type, enabled=False):
        return _gradients(*scan, *rest)


def _gradients(
    backend: Backend,
    cell: str,
    inputs: AnyInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    states: tuple[Tensor, ...],
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    if not states:
        if backend is reference:  # which reads nothing but the inputs
            states = (inputs.x,)
        else:
            y, _, _, saved = backend.forward(cell, inputs, batch_sizes, reverse, True)
            states = y, *saved
    return backend.backward(cell, inputs, batch_sizes, reverse, states[0], states[1:], *rest)


def _of_each(operands: Sequence[Any]) -> tuple[Inputs, Inputs]:
    """Return x with the next seven, which are the forward direction's, and with the last seven."""
    x, *others = operands
    return Inputs(x, *others[:7]), Inputs(x, *others[7:])


def _gradients_of_both(
    backend: Backend,
    cell: str,
    inputs: tuple[Inputs, Inputs],
    batch_sizes: Tensor | None,
    y: tuple[Tensor, Tensor],
    saved: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    given: tuple[list[Tensor | None], list[Tensor | None]],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    each = _of_each(needs)
    # A direction whose results nobody used has no gradients, as it had none in a node of its own.
    used = [any(each[k]) and any(d is not None for d in given[k]) for k in (0, 1)]
    if all(used) and backend is not reference:
        return backend.backward_both(cell, inputs, batch_sizes, y, saved, given, needs)
    dxs, others = [], []
    for k in (0, 1):
        dx: Tensor | None = None
        rest: list[Tensor | None] = [None] * 7
        if used[k]:
            scan = cell, inputs[k], batch_sizes, k == 1, y[k], saved[k]
            dx, *rest = backend.backward(*scan, *given[k], tuple(each[k]))
        dxs.append(dx)
        others += rest
    forward, reverse = dxs
    both = forward is not None and reverse is not None
    return forward + reverse if both else reverse if forward is None else forward, *others

"""What runs when a node of a graph does: the op's two halves, on the backend that it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn.backends import (
    AnyInputs,
    Backend,
    Marked,
    Problem,
    inputs_of,
    reference,
    select_kernels,
    way_named,
)
from fused_rnn.scans import marks
from fused_rnn.variants import cell_of

__all__ = [
    "WHEN_RUN",
    "Results",
    "Scan",
    "backward",
    "by_torch",
    "differentiable",
    "fixed",
    "forward",
    "gradients",
]

# The backend of a node that is chosen whenever it runs.
WHEN_RUN = ""
# As many tensors as any backend saves for a backward: ops are of a fixed arity, which is all that
# code generators for C++ take.
_SAVED = 2
# y, h_n, c_n, every step's c, and what is saved.
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def by_torch(
    cell: str, inputs: AnyInputs, marked: Marked | None, reverse: bool, every_c: bool
) -> tuple[Any, ...]:
    """Return y, h_n, c_n and c, made of torch's own operators."""
    if marked is not None:
        return reference.scan_marked(cell, inputs, marked, reverse)
    if every_c:
        return reference.scan_states(cell, inputs, None, reverse)
    return *reference.forward(cell, inputs, None, reverse, True)[:3], None


def differentiable(operands: tuple[Any, ...], count: int) -> tuple[Tensor | None, ...]:
    """Return the operands of an op that gradients are for: all tensors but the marks.

    Args:
        count: how many of them come before the marks, see :func:`inputs_of`
    """
    return *operands[:count], *operands[count + 1 : count + 3]


class Scan(NamedTuple):
    """What the operators get beside names, and what only one of them gets."""

    inputs: AnyInputs
    marked: Marked | None
    reverse: bool
    every_c: bool

    @classmethod
    def of(cls, operands: tuple[Any, ...], count: int) -> Scan:
        tensors = [t if t is None else t.contiguous() for t in operands[: count + 3]]
        marked = None if tensors[count] is None else Marked(*tensors[count:])
        return cls(inputs_of(tensors[:count]), marked, *operands[count + 3 : count + 5])

    def backend(self, name: str, cell: str, training: bool) -> Backend:
        if name != WHEN_RUN:
            return way_named(name)
        x, (n, r), w_hr = self.inputs.x, self.inputs.h0.shape, self.inputs.w_hr
        h, p = self.inputs.w_ih.shape[0] // cell_of(cell).gates, 0 if w_hr is None else r
        sizes = x.shape[0], n, x.shape[-1], h, p
        ragged = self.marked is not None
        problem = Problem(cell, x.device, x.dtype, *sizes, ragged, training, None, self.every_c)
        return select_kernels(problem) or way_named(reference.name)


def _without_autocast(x: Tensor) -> Any:
    # Whatever is to be recast was, before there was a node: kernels take no notice of autocast, and
    # what is made of torch's operators must not either.
    on = torch._C._is_any_autocast_enabled()
    return torch.autocast(x.device.type, enabled=False) if on else nullcontext()


_AUTOGRAD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
_AUTOGRAD |= torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


@contextmanager
def _recorded() -> Iterator[None]:
    # The reference finds gradients by autograd, which is left behind where a TorchDispatchMode
    # hands on an op.
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set() - _AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.no_grad():
        yield


def forward(name: str, cell: str, *operands: Any) -> Results:
    with _without_autocast(operands[0]):
        scan, training = Scan.of(operands, len(operands) - 6), operands[-1]
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
            y, h_n, c_n, c = by_torch(cell, inputs, None, reverse, every_c)
            saved = ()
        elif every_c:
            y, h_n, c_n, saved, c = backend.scan_states(cell, inputs, None, reverse, training)
        else:
            y, h_n, c_n, saved = backend.forward(cell, inputs, None, reverse, training)
        c_n, c = (inputs.x.new_empty(0) if s is None else s for s in (c_n, c))
        return y, h_n, c_n, c, *fixed(saved if training else (), inputs.x)


def fixed(saved: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a backend saves as that many tensors, empty where there are no more of them."""
    first, second = *saved, *(like.new_empty(0) for _ in range(_SAVED - len(saved)))
    return first, second


def backward(name: str, cell: str, *operands: Any) -> tuple[Tensor, ...]:
    count = len(operands) - 13
    scan = Scan.of(operands, count)
    y, *saved, dy, dh_n, dc_n, dc, needs = operands[count + 5 :]
    y, *given = (t if t is None else t.contiguous() for t in (y, dy, dh_n, dc_n, dc))
    backend = scan.backend(name, cell, True)
    with _recorded() if backend is reference else nullcontext():
        found = gradients(backend, cell, scan, y, saved, given, needs)
    return tuple(
        y.new_empty(0) if t is None or not need else _zeros(t) if d is None else d
        for t, need, d in zip(differentiable(operands, count), needs, found, strict=True)
    )


def _zeros(t: Tensor) -> Tensor:
    """Return the gradient of an operand that no result which was used depends on."""
    return torch.zeros_like(t, memory_format=torch.contiguous_format)


def gradients(
    backend: Backend,
    cell: str,
    scan: Scan,
    y: Tensor,
    saved: list[Tensor],
    given: list[Tensor | None],
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of Inputs and of the state after a reset, None where not needed."""
    with _without_autocast(y):
        inputs, marked, reverse, every_c = scan
        dy, dh_n, dc_n, dc = given
        # Of what is empty else.
        dc_n, dc = None if inputs.c0 is None else dc_n, dc if every_c else None
        if all(d is None for d in (dy, dh_n, dc_n, dc)):
            return (None,) * len(needs)
        saved = [t for t in saved if t.numel()]
        if marked is not None:
            kept, wanted = tuple(saved), tuple(needs)
            return marks.backward(
                backend, cell, inputs, marked, reverse, y, kept, dy, dh_n, dc_n, wanted, dc
            )
        if not saved and backend is not reference:  # which saves nothing ever
            saved = list(backend.forward(cell, inputs, None, reverse, True)[3])
        more = () if dc is None else (dc,)
        wanted = tuple(needs[: len(inputs)])
        of_inputs = backend.backward(
            cell, inputs, None, reverse, y, tuple(saved), dy, dh_n, dc_n, wanted, *more
        )
        return *of_inputs, None, None

"""The compiled kernels: C++ on the CPU, by PyTorch's dispatcher whatever else is registered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs, Problem
from fused_rnn.cells import CELLS

try:
    import fused_rnn._C  # noqa: F401 (loading it registers the ops)

    _missing: str | None = None
except ImportError as error:
    _missing = f"the native module was not built ({error}); install fused_rnn with a C++17 compiler"

__all__ = ["available", "backward", "checks_operands", "forward", "name", "simd_level", "supports"]

name = "native"
checks_operands = True

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FORWARD: dict[str, Any] = {}
_BACKWARD: dict[str, Any] = {}


def available() -> str | None:
    """Return None, or why the native module is not there."""
    return _missing


def simd_level() -> str:
    """Return the vector instructions in use: 'avx512', 'avx2' or 'portable'."""
    return torch.ops.fused_rnn.simd_level()


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this problem."""
    if problem.device.type != "cpu":
        return f"no kernel for device type {problem.device.type!r}"
    if problem.dtype not in _DTYPES:
        return f"no kernel for {problem.dtype}"
    if problem.transform is not None:
        return f"{problem.transform} needs torch's own operators"
    return None


def forward(
    cell: str, inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """See :meth:`fused_rnn.backends.Backend.forward`."""
    if cell == "lstm":
        y, h_n, c_n, saved = _FORWARD[cell](*inputs, batch_sizes, reverse, training)
        return y, h_n, c_n, (saved,)
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    y, h_n, saved = _FORWARD[cell](x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, training)
    return y, h_n, None, (saved,)


def backward(
    cell: str,
    inputs: Inputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    y: Tensor,
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """See :meth:`fused_rnn.backends.Backend.backward`."""
    if cell == "lstm":
        mask = sum(need << bit for bit, need in enumerate(needs))
        given = _BACKWARD[cell](*inputs, batch_sizes, reverse, y, *saved, dy, dh_n, dc_n, mask)
        return tuple(d if need else None for d, need in zip(given, needs, strict=True))
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    needed = (*needs[:2], *needs[3:7])
    mask = sum(need << bit for bit, need in enumerate(needed))
    given = _BACKWARD[cell](
        x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, y, *saved, dy, dh_n, mask
    )
    dx, dh0, *dweights = (d if need else None for d, need in zip(given, needed, strict=True))
    return dx, dh0, None, *dweights, None


def _register() -> None:
    """Find the ops, and tell torch's tracers the shapes they return."""
    ops = torch.ops.fused_rnn
    for cell in CELLS:
        _FORWARD[cell] = getattr(ops, f"{cell}_forward").default
        _BACKWARD[cell] = getattr(ops, f"{cell}_backward").default
        torch.library.register_fake(f"fused_rnn::{cell}_forward", _fake_forward)
        torch.library.register_fake(f"fused_rnn::{cell}_backward", _fake_backward)


def _fake_forward(x: Tensor, h0: Tensor, *others: Any) -> tuple[Tensor, ...]:
    training = others[-1]
    c_n = (others[0].new_empty(others[0].shape),) if len(others) > 7 else ()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # How much is saved is the kernel's own affair: a size only it knows, seen as such by tracers.
    saved = x.new_empty(torch.library.get_ctx().new_dynamic_size() if training else 0, dtype=dtype)
    return (
        x.new_empty((*x.shape[:-1], h0.shape[-1])),
        h0.new_empty(h0.shape),
        *c_n,
        saved,
    )


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    mask = args[-1]
    operands = args[:8] if len(args) == 16 else args[:6]
    return tuple(
        t.new_empty(t.shape) if t is not None and mask >> bit & 1 else operands[0].new_empty(0)
        for bit, t in enumerate(operands)
    )


if _missing is None:
    _register()

"""Scans of the CUDA kernels over padded batches whose lengths and resets stand on the GPU.

No number is read by the host, which therefore waits for nothing and can capture it all in a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs, Marked
from fused_rnn.backends.native import fakes
from fused_rnn.backends.native.errors import raise_out_of_memory

__all__ = ["marked_backward", "marked_forward", "register"]

_OPS: dict[str, Any] = {}


def marked_forward(
    cell: str, inputs: Inputs, marked: Marked, reverse: bool, training: bool, every_c: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...], Tensor | None]:
    """Scan one layer in one direction.

    Args:
        cell: a key of :data:`fused_rnn.cells.CELLS`
        inputs: the operands, x (T, N, I), without a projection
        marked: where each step takes its state from
        reverse: whether each sequence is scanned from its own last step to its first
        training: whether backward will need something
        every_c: whether every step's c is wanted, of an LSTM

    Returns:
        y (T, N, R), zero where there is no step; h_n (N, R) and c_n (N, H) | None after each
        sequence's last step, the initial ones where it has none; what to save; every step's
        c (T, N, H) | None.

    Raises:
        ValueError: if there is a projection.
        RuntimeError: if an operand has the wrong shape, dtype or device, or is not on a GPU.
    """
    try:
        y, h_n, c_n, c, saved = _OPS["forward"](
            *_operands(cell, inputs, marked), reverse, training, every_c
        )
    except RuntimeError as error:
        raise_out_of_memory(error, inputs.x.device)
        raise
    return y, h_n, c_n if cell == "lstm" else None, (saved,), c if every_c else None


def marked_backward(
    cell: str,
    inputs: Inputs,
    marked: Marked,
    reverse: bool,
    y: Tensor,
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
    dc: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of Inputs, then those of ``marked.h`` and ``marked.c``.

    Args:
        cell: as for :func:`marked_forward`, and so are the next three
        inputs: the operands
        marked: where each step takes its state from
        reverse: the direction
        y: as forward returned it (T, N, R)
        saved: likewise
        dy: (T, N, R)
        dh_n: (N, R)
        dc_n: (N, H)
        needs: which of the ten gradients are wanted; the others come as None
        dc: (T, N, H), of every step's c
    """
    needed = (*needs[:7], *needs[8:])  # there is no w_hr
    mask = sum(need << bit for bit, need in enumerate(needed))
    try:
        given = _OPS["backward"](
            *_operands(cell, inputs, marked), reverse, y, *saved, dy, dh_n, dc_n, dc, mask
        )
    except RuntimeError as error:
        raise_out_of_memory(error, inputs.x.device)
        raise
    found = [d if need else None for d, need in zip(given, needed, strict=True)]
    return *found[:7], None, *found[7:]


def _operands(cell: str, inputs: Inputs, marked: Marked) -> tuple[Any, ...]:
    if inputs.w_hr is not None:
        shape = tuple(inputs.w_hr.shape)
        raise ValueError(f"w_hr should be None with marks, got a tensor of shape {shape}")
    return cell, *inputs[:7], *marked


def register() -> None:
    """Find the ops, and tell torch's tracers the shapes they return."""
    for way in ("forward", "backward"):
        _OPS[way] = getattr(torch.ops.fused_rnn, f"marked_{way}").default
    fakes.register("fused_rnn::marked")

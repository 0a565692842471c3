"""Scans of variants of the cells on a CPU: the kernels take what goes from step to step.

The product with the input, and the gradients of the weights, are products of all steps at once,
which torch makes. In half precision all of it is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Problem, VariantInputs
from fused_rnn.backends.native.errors import raise_out_of_memory
from fused_rnn.variants import Variant, variant_of

__all__ = ["backward", "forward", "saved", "supports"]

_HALF = (torch.float16, torch.bfloat16)


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this variant."""
    if problem.device.type != "cpu":
        return f"no kernel for variants of the cells on {problem.device.type!r}"
    return None


def forward(
    cell: str,
    inputs: VariantInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    training: bool,
    every_c: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...], Tensor]:
    """Do as :meth:`fused_rnn.backends.Backend.scan_states`; without ``every_c`` c is empty."""
    variant, (dtype, wide) = _variant(cell), _widened(inputs)
    rows = wide.x.flatten(0, -2)
    with torch.no_grad():
        projected = rows @ wide.w_ih.t()
        y, h_n, c_n, c, kept = _call("variant_scan", cell, projected, wide, batch_sizes, reverse)(
            training, every_c
        )
    y, c = (t.view(*inputs.x.shape[:-1], t.shape[1]) if t.dim() == 2 else t for t in (y, c))
    saved: tuple[Tensor, ...] = ()
    if training:
        saved = (kept,) if variant.layer_norm is None else (kept, projected)
    state = c_n.to(dtype) if inputs.c0 is not None else None
    return y.to(dtype), h_n.to(dtype), state, saved, c.to(dtype)


def saved(cell: str, inputs: VariantInputs) -> tuple[Tensor, ...]:
    """See :meth:`fused_rnn.backends.Backend.saved`."""
    variant, x = _variant(cell), inputs.x
    size = int(inputs.w_ih.shape[0]) // variant.gates
    projected = 0 if inputs.w_hr is None else int(inputs.w_hr.shape[0])
    per_row = torch.ops.fused_rnn.variant_kept_per_row(cell, size, projected)
    dtype = torch.float32 if x.dtype in _HALF else x.dtype
    rows = 1
    for n in x.shape[:-1]:
        rows *= n
    kept = x.new_empty(rows, per_row, dtype=dtype)
    if variant.layer_norm is None:
        return (kept,)
    return kept, x.new_empty(rows, int(inputs.w_ih.shape[0]), dtype=dtype)


def backward(
    cell: str,
    inputs: VariantInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    saved: tuple[Tensor, ...],
    given: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of ``inputs``, None where ``needs`` is False.

    Args:
        given: dy, dh_n, dc_n and dc
    """
    variant, (dtype, wide) = _variant(cell), _widened(inputs)
    kept = saved[0]
    of_kept = kept.dtype
    dy, dh_n, dc_n, dc = (d if d is None else d.to(of_kept) for d in given)
    with torch.no_grad():
        rows = wide.w_ih.shape[0]
        # Without norms for its sizes alone.
        projected = saved[1] if len(saved) > 1 else kept.new_empty(len(kept), rows)
        dgates, dsums, dproj, dh0, dc0, dextra, dbias = _call(
            "variant_scan_backward", cell, projected, wide, batch_sizes, reverse
        )(kept, _flat(dy), dh_n, dc_n, _flat(dc))
        sums = dsums if len(dsums) == len(dgates) and dsums.dim() == 2 else dgates
        size = wide.h0.shape[1]
        found = VariantInputs(
            x=(dgates @ wide.w_ih).view_as(inputs.x) if needs[0] else None,
            h0=dh0,
            c0=dc0,
            w_ih=dgates.t() @ wide.x.flatten(0, -2) if needs[3] else None,
            w_hh=_of_recurrent(variant, sums, kept, size, wide.w_hh) if needs[4] else None,
            b_ih=dbias[:rows],
            b_hh=_of_bias(dbias, rows) if needs[6] else None,
            w_hr=dproj.t() @ kept[:, size : size + wide.w_hr.shape[1]]
            if wide.w_hr is not None and needs[7]
            else None,
            extra=dextra,
            mask=None,
            draws=None,
        )
    return tuple(
        d.to(dtype) if need and d is not None else None
        for d, need in zip(found, needs, strict=True)
    )


def _variant(cell: str) -> Variant:
    variant = variant_of(cell)
    if variant is None:
        raise ValueError(f"cell should be a variant's name, got: {cell!r}")
    return variant


def _widened(inputs: VariantInputs) -> tuple[torch.dtype, VariantInputs]:
    """Return the dtype, and the operands in that of the arithmetic."""
    dtype = inputs.x.dtype
    if dtype not in _HALF:
        return dtype, inputs
    wide = [t if t is None or t.dtype != dtype else t.float() for t in inputs]
    return dtype, VariantInputs(*wide)


def _flat(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.flatten(0, -2)


def _call(
    name: str,
    cell: str,
    gates_x: Tensor,
    wide: VariantInputs,
    batch_sizes: Tensor | None,
    reverse: bool,
) -> Any:
    op = getattr(torch.ops.fused_rnn, name).default
    operands = (
        cell, gates_x, wide.h0, wide.c0, wide.w_hh, wide.b_ih, wide.b_hh, wide.w_hr, wide.extra,
        wide.mask, wide.draws, batch_sizes, reverse,
    )  # fmt: skip

    def call(*more: Any) -> tuple[Tensor, ...]:
        try:
            return op(*operands, *more)
        except RuntimeError as error:
            raise_out_of_memory(error, gates_x.device)
            raise

    return call


def _of_recurrent(variant: Variant, sums: Tensor, kept: Tensor, size: int, w_hh: Tensor) -> Tensor:
    """Return the gradient of w_hh, from that of what it gave and from what it took."""
    heads, heard = variant.num_heads, kept[:, :size]
    late = 2 * size
    if heads == 1:
        if variant.reset_after:
            return sums.t() @ heard
        reset = kept[:, size : 2 * size]
        return torch.cat([sums[:, :late].t() @ heard, sums[:, late:].t() @ reset])
    by_head = sums.unflatten(1, (variant.gates, heads, -1)).permute(2, 1, 3, 0)  # (k, G, u, rows)
    heard = heard.unflatten(1, (heads, -1)).transpose(0, 1)  # (k, rows, R/k)
    if variant.reset_after:
        return by_head.flatten(1, 2) @ heard
    reset = kept[:, size : 2 * size].unflatten(1, (heads, -1)).transpose(0, 1)
    return torch.cat([by_head[:, :2].flatten(1, 2) @ heard, by_head[:, 2] @ reset], 1)


def _of_bias(dbias: Tensor, rows: int) -> Tensor:
    """Return the gradient of b_hh: that of b_ih, but for a GRU's last third of its own."""
    own = dbias.shape[0] - rows
    return torch.cat([dbias[: rows - own], dbias[rows:]]) if own else dbias.clone()

"""The Triton backend: fused kernels on a GPU that need no compiler but Triton's own.

The kernels' modules are imported when a scan first runs: Triton may be missing, and importing
fused_rnn does not wait for it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module, util
from math import prod
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs, Problem
from fused_rnn.backends.triton.scan import (
    Gradients,
    Scan,
    factor,
    product,
    step_backward,
    step_forward,
)
from fused_rnn.backends.triton.whole import plan, whole_backward, whole_forward
from fused_rnn.cells import CELLS

__all__ = ["available", "backward", "checks_operands", "forward", "name", "saved", "supports"]

name = "triton"
checks_operands = False

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OLDEST = (3, 6)
_OLDEST_GPU = (8, 0)


def available() -> str | None:
    """Return None, or the reason why no Triton kernel can run."""
    if util.find_spec("triton") is None:
        return "Triton is not installed; torch's builds for GPUs bring it"
    if not _interpreting() and not torch.cuda.is_available() and not torch.xpu.is_available():
        return "there is no GPU that torch can use"
    return _unusable()


@cache
def _unusable() -> str | None:
    try:
        version = import_module("triton").__version__
    except Exception as error:  # whatever a broken installation raises
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return "Triton {} is too old: it takes {}.{}".format(version, *_OLDEST)
    return None


def _interpreting() -> bool:
    """Return whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this problem."""
    kind = problem.device.type
    if kind not in (("cpu",) if _interpreting() else ("cuda", "xpu")):
        return f"no kernel for device type {kind!r}"
    if problem.cell not in CELLS:
        return "no kernel for variants of the cells"
    if problem.dtype not in _DTYPES:
        return f"no kernel for {problem.dtype}"
    if problem.transform is not None:
        return f"{problem.transform} needs torch's own operators"
    if problem.states and CELLS[problem.cell].has_cell_state:
        return "it keeps the cell states of the steps in between to itself"
    if kind == "cuda" and torch.version.cuda is not None:
        capability = torch.cuda.get_device_capability(problem.device)
        if capability < _OLDEST_GPU:
            return "no kernel for sm_{}{}: the oldest is sm_{}{}".format(*capability, *_OLDEST_GPU)
    return None


@cache
def _step_kernels() -> Any:
    return import_module("fused_rnn.backends.triton.gates")


@cache
def _whole_kernels() -> Any:
    return import_module("fused_rnn.backends.triton.sequence")


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(tensor.device).device_of(tensor)


@torch.no_grad()
def forward(
    cell: str, inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """See :meth:`fused_rnn.backends.Backend.forward`."""
    scan = Scan(cell, inputs, batch_sizes, reverse)
    x, R = inputs.x, inputs.h0.shape[1]
    y = scan.empty(*x.shape[:-1], R)
    h_n = torch.empty_like(inputs.h0)
    c_n = None if inputs.c0 is None else torch.empty_like(inputs.c0)
    gates = scan.empty(scan.rows, scan.G * scan.H, dtype=scan.real)
    extra = scan.empty(scan.rows, scan.H, dtype=scan.real) if training and scan.G > 1 else None
    if scan.N > 0:
        with _on_device(x):
            product(x.view(scan.rows, -1), factor(inputs.w_ih, scan.real).t(), gates)
            results = gates, extra, y.view(scan.rows, R), h_n, c_n, training
            whole = plan(scan)
            if whole is None:
                step_forward(_step_kernels(), scan, *results)
            else:
                whole_forward(_whole_kernels(), scan, whole, *results)
    saved = (gates,) if extra is None else (gates, extra)
    return y, h_n, c_n, saved if training else ()


def saved(cell: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """See :meth:`fused_rnn.backends.Backend.saved`."""
    scan, rows = Scan(cell, inputs, None, False), prod(inputs.x.shape[:-1])
    gates = scan.empty(rows, scan.G * scan.H, dtype=scan.real)
    return (gates, scan.empty(rows, scan.H, dtype=scan.real)) if scan.G > 1 else (gates,)


@torch.no_grad()
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
    scan = Scan(cell, inputs, batch_sizes, reverse)
    if scan.N == 0:
        return tuple(
            torch.zeros_like(t) if need else None for t, need in zip(inputs, needs, strict=True)
        )
    y = y.view(scan.rows, -1)
    dy = None if dy is None else dy.view(y.shape)
    gates, extra = saved if len(saved) > 1 else (*saved, None)
    with _on_device(y):
        given = gates, extra, y, dy, dh_n, dc_n
        whole = plan(scan)
        if whole is None:
            found = step_backward(_step_kernels(), scan, *given)
        else:
            found = whole_backward(_whole_kernels(), scan, whole, *given)
        return _operand_gradients(scan, y, found, needs)


def _operand_gradients(
    scan: Scan, y: Tensor, found: Gradients, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    x, _, _, w_ih, _, _, _, _ = scan.inputs
    dgates_x, dgates_h, dh0, dc0, dprojected, unprojected = found
    made = (
        lambda: torch.mm(dgates_x, w_ih).view(x.shape),
        lambda: dh0.to(x.dtype),
        lambda: dc0.to(x.dtype),
        lambda: torch.mm(dgates_x.t(), x.view(scan.rows, -1)),
        lambda: torch.mm(dgates_h.t(), _hidden_before(scan, y)),
        lambda: dgates_x.sum(0),
        lambda: dgates_h.sum(0),
        lambda: torch.mm(dprojected.t(), unprojected),
    )
    return tuple(make() if need else None for make, need in zip(made, needs, strict=True))


def _hidden_before(scan: Scan, y: Tensor) -> Tensor:
    """Return (rows, R): h of the step before each row's, in the order of time."""
    h0 = scan.inputs.h0
    if scan.batch_sizes is None:
        pieces = [y[scan.N :], h0] if scan.reverse else [h0, y[: scan.rows - scan.N]]
    else:
        steps = sorted(scan.steps())
        pieces = []
        for _, n, before, inner, _ in steps:
            pieces += [y[before : before + inner], h0[inner:n]]
    return torch.cat(pieces)

"""Scans whose weights are int8, or bfloat16: their arithmetic, its specification, and the choice.

int8: a row of weights, and a row of x or h when it is multiplied, is a scale times integers from
-127 to 127, symmetric about zero: the largest magnitude of the row, divided by 127, is the scale,
and an element is divided by it and rounded, half to even. Zero stays zero, no row is troubled by
another, and a sum of products of integers is the same in whatever order it is added up. The sums
times both scales, the biases, gates and states are float32.

A symmetric scale costs up to a bit where all elements of a row have one sign, as after a ReLU; an
offset for each row would cost sums of weights and a subtraction for each gate. The states, which
are what comes again and again, are about symmetric.

bfloat16: the weights alone are stored so, and all arithmetic is float32.

Beside int8, the weights of a narrow input are bfloat16 (:func:`is_narrow`). What a model is given
is often of very different sizes, as a spectrum is, and one scale for a row of it loses the small
ones; what a layer gives on is bounded. The bytes of these weights are few.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from fused_rnn.backends import Inputs, Problem, Selection, asked_for, native, reference
from fused_rnn.cells import CELLS, State, Weights

__all__ = [
    "LARGEST",
    "MOST_COLUMNS",
    "Scales",
    "forward",
    "is_narrow",
    "quantize_rows",
    "scan_reference",
    "select_quantized",
]

MOST_COLUMNS = 1 << 17  # of a weight: more products could go beyond 32 bits
LARGEST = 127  # the magnitude of an integer that stands for a weight, an input or a state
_TINY = torch.finfo(torch.float32).tiny


class Scales(NamedTuple):
    """What the integers of a weight are multiplied with, row by row; None for bfloat16."""

    w_ih: Tensor | None  # (G*H,)
    w_hh: Tensor | None  # (G*H,)
    w_hr: Tensor | None = None  # (P,)


def is_narrow(i: int, r: int) -> bool:
    """Return whether w_ih (G*H, I) is bfloat16 beside an int8 w_hh (G*H, R).

    All weights together are at most a fifth larger by it.
    """
    return 4 * i <= r


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers, as float32, and the scales (..., 1) that they stand for x (..., K) with.

    A row with a NaN or an infinity has zeros, and NaN for its scale, so that all that it is
    multiplied with becomes NaN, and nothing else. A scale is a normal number, for rows of zeros and
    of denormals too.
    """
    largest = x.abs().amax(-1, keepdim=True)
    finite = largest.isfinite()
    scale = torch.where(finite, (largest / LARGEST).clamp(min=_TINY), torch.nan)
    return torch.where(finite, (x / scale).round(), 0), scale


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """Return x as the product with a weight has it, in float64."""
    if weight.dtype != torch.int8:
        return x.double()
    q, scale = quantize_rows(x)
    return q.double() * scale.double()


def _step(cell: str, weights: Weights, numbers: Weights, x: Tensor, state: State, t: int) -> State:
    """Apply one step to float32 x and states.

    Args:
        numbers: in float64, what ``weights`` stand for
    """
    of = CELLS[cell]
    assert of.after is not None
    rounded = _rounded(x, weights.w_ih), _rounded(state.h, weights.w_hh)
    before = State(*(s if s is None else s.double() for s in state))
    h, c = of.after(of.gates_of(*rounded, numbers), before)
    if weights.w_hr is not None:
        h = linear(_rounded(h.float(), weights.w_hr), numbers.w_hr)
    return State(h.float(), c if c is None else c.float())


def scan_reference(
    cell: str, inputs: Inputs, scales: Scales, batch_sizes: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Scan one layer in one direction by torch's operators: the specification of the kernels.

    Args:
        inputs: float32 operands, the weights among them int8, or bfloat16; w_ih may be that alone

    Shape:
        - y: (T, N, R) or (rows, R); h_n: (N, R), c_n: (N, H) or None; c: every step's, or None
    """
    numbers = [w if w is None else w.double() for w in inputs[3:]]
    for i, scale in zip((0, 1, 4), scales, strict=True):
        if scale is not None:
            numbers[i] = numbers[i] * scale.double().unsqueeze(1)
    step = partial(_step, cell, Weights(*inputs[3:]), Weights(*numbers))
    steps, final = reference.scan_steps(step, inputs, batch_sizes, reverse)
    y = reference.in_time([step.h for step in steps], batch_sizes)
    if final.c is None:
        return y, final.h.clone(), None, None
    c = reference.in_time([step.c for step in steps if step.c is not None], batch_sizes)
    return y, final.h.clone(), final.c.clone(), c


def select_quantized(problem: Problem) -> Selection:
    """Return which backend runs a problem of a quantized layer.

    Raises:
        RuntimeError: if the one chosen by name cannot, with its reason.
    """
    name, reason = asked_for(), native.quantized_missing(problem)
    if name not in (None, native.name, reference.name):
        reason = f"{name!r} has no layers with weights of {problem.stored}"
    elif name == reference.name or (name is None and reason is not None):
        return Selection(reference, {} if reason is None else {native.name: reason})
    if reason is not None:
        raise RuntimeError(
            f"fused_rnn: the backend asked for cannot run a quantized layer: {reason}"
        )
    return Selection(native, {})


def forward(
    backend: str,
    cell: str,
    inputs: Inputs,
    scales: Scales,
    batch_sizes: Tensor | None,
    reverse: bool,
    every_c: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Scan one layer in one direction; see :func:`scan_reference`. c may be missing, unasked."""
    if backend == native.name:
        return native.quantized_forward(cell, inputs, scales, batch_sizes, reverse, every_c)
    return scan_reference(cell, inputs, scales, batch_sizes, reverse)

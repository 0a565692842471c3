"""The cells' arithmetic for Triton: one step, after the matrix products; shared by all kernels.

As in ``csrc/cells.h``. A cell has up to four pre-activations, in torch's order of the gates:

    LSTM   a_i  a_f  a_g  a_o
    GRU    a_r  a_z  a_nx a_nh     x's and h's part of n stay apart: r stands between them
    RNN    a

Where a cell has less than four, another value of the same shape stands in their place.
"""

# Triton's own values have no types to annotate with.
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["cell_backward", "cell_forward", "preactivations", "tanh"]


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Near zero 1 - exp(-2x) cancels; there a Pade approximant is good to the last digit, of a
    # double too. One division serves both.
    square = x * x
    e = tl.exp(-2 * tl.abs(x))
    near = tl.abs(x) < 0.3
    over = x * (135135 + square * (17325 + square * (378 + square)))
    under = 135135 + square * (62370 + square * (3150 + 28 * square))
    over = tl.where(near, over, tl.where(x < 0, e - 1, 1 - e))
    return over / tl.where(near, under, 1 + e)


@triton.jit
def preactivations(x0, x1, x2, x3, h0, h1, h2, h3, CELL: tl.constexpr):
    """Add the gates' parts from the input and from the past, each with its bias."""
    p0, p1, p2, p3 = x0 + h0, x1 + h1, x2, h2
    if CELL == "lstm":
        p2, p3 = x2 + h2, x3 + h3
    return p0, p1, p2, p3


@triton.jit
def cell_forward(p0, p1, p2, p3, prev, CELL: tl.constexpr):
    """Return the activated gates, what else backward needs (LSTM c', GRU a_nh), and h'.

    ``prev`` is the elementwise state before: LSTM c, GRU h.
    """
    if CELL == "lstm":
        s0, s1, s2, s3 = sigmoid(p0), sigmoid(p1), tanh(p2), sigmoid(p3)
        extra = s1 * prev + s0 * s2
        h = s3 * tanh(extra)
    elif CELL == "gru":
        s0, s1 = sigmoid(p0), sigmoid(p1)
        s2 = tanh(p2 + s0 * p3)
        s3, extra = s2, p3
        h = s2 + s1 * (prev - s2)
    else:
        h = tanh(p0) if CELL == "rnn_tanh" else tl.where(p0 <= 0, 0, p0)  # a NaN stays one
        s0, s1, s2, s3, extra = h, h, h, h, h
    return s0, s1, s2, s3, extra, h


@triton.jit
def cell_backward(s0, s1, s2, s3, extra, prev, dh, carry, CELL: tl.constexpr):
    """Return the gradients of the pre-activations, and the state's for the step before.

    The first six are those of forward; ``dh`` comes from y and from the next step's products,
    ``carry`` is the state's gradient from the next step.
    """
    if CELL == "lstm":
        tanh_c = tanh(extra)
        d = carry + dh * s3 * (1 - tanh_c * tanh_c)
        d0 = d * s2 * s0 * (1 - s0)
        d1 = d * prev * s1 * (1 - s1)
        d2 = d * s0 * (1 - s2 * s2)
        d3 = dh * tanh_c * s3 * (1 - s3)
        carry = d * s1
    elif CELL == "gru":
        d = dh + carry
        d2 = d * (1 - s1) * (1 - s2 * s2)
        d0 = d2 * extra * s0 * (1 - s0)
        d1 = d * (prev - s2) * s1 * (1 - s1)
        d3 = d2 * s0
        carry = d * s1
    else:
        # ReLU as torch has it: no gradient at zero, and a NaN passes it on.
        d0 = dh * (1 - s0 * s0) if CELL == "rnn_tanh" else tl.where(s0 <= 0, 0, dh)
        d1, d2, d3 = d0, d0, d0
    return d0, d1, d2, d3, carry

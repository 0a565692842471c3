"""The fused gate kernels: all gates, states and outputs of one step, or all their gradients.

A program has a tile of BN sequences by BH hidden units, with all their gates. Arrays of all steps
come whole, with the first row of this step (``r_``) apart: pointers into their middle would be
aligned differently from step to step, and Triton compiles a kernel anew for every alignment. What
the user brings may be aligned in any way, and is read without a claim about it.

N counts the sequences of this step; S is the tensors' type, T the arithmetic's: float32, or
float64. A pointer that is None stands for what a cell or a call has not; gradients are zero then.
"""

# Triton's own values have no types to annotate with.
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import triton
import triton.language as tl

from fused_rnn.backends.triton.cells import cell_backward, cell_forward, preactivations, tanh

__all__ = [
    "backward_step",
    "forward_step",
    "gates_of",
    "hidden_step",
    "load",
    "load_biases",
    "load_gates",
    "store",
    "store_gates",
]


@triton.constexpr_function
def gates_of(cell: str) -> int:
    """Return G."""
    return {"lstm": 4, "gru": 3}.get(cell, 1)


@triton.jit
def load(p, row, columns, column, mask):
    """Return rows of an array (rows, columns), zero where there are none."""
    return tl.load(p + (row[:, None] * columns + column[None, :]), mask, other=0)


@triton.jit
def store(p, row, columns, column, value, mask):
    value = value.to(p.dtype.element_ty)
    tl.store(p + (row[:, None] * columns + column[None, :]), value, mask)


@triton.jit
def load_gates(p, row, H, i_h, mask, G: tl.constexpr):
    """Return G values of an array (rows, G*H)."""
    g0 = load(p, row, G * H, i_h, mask)
    g1, g2, g3 = g0, g0, g0
    if G > 1:
        g1 = load(p, row, G * H, H + i_h, mask)
        g2 = load(p, row, G * H, 2 * H + i_h, mask)
    if G > 3:
        g3 = load(p, row, G * H, 3 * H + i_h, mask)
    return g0, g1, g2, g3


@triton.jit
def store_gates(p, row, H, i_h, g0, g1, g2, g3, mask, G: tl.constexpr):
    store(p, row, G * H, i_h, g0, mask)
    if G > 1:
        store(p, row, G * H, H + i_h, g1, mask)
        store(p, row, G * H, 2 * H + i_h, g2, mask)
    if G > 3:
        store(p, row, G * H, 3 * H + i_h, g3, mask)


@triton.jit
def load_biases(p, H, i_h, G: tl.constexpr, T: tl.constexpr):
    """Return G values (1, columns)."""
    b0 = tl.zeros([1, i_h.shape[0]], T)
    b1, b2, b3 = b0, b0, b0
    if p is not None:
        row = tl.zeros([1], tl.int64)
        b0, b1, b2, b3 = load_gates(p, row, H, i_h, (i_h < H)[None, :], G)
    return b0.to(T), b1.to(T), b2.to(T), b3.to(T)


@triton.jit
def _tile(N, H, BN: tl.constexpr, BH: tl.constexpr):
    """Return the tile's rows and columns, and which of them there are."""
    i_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i_h = tl.program_id(1) * BH + tl.arange(0, BH)
    return i_n, i_h, (i_n < N)[:, None] & (i_h < H)[None, :]


@triton.jit
def _load_prev(p_prev, p_initial, r_prev, i_n, i_h, mask, inner, H, T: tl.constexpr):
    """Return the elementwise state before; sequences from `inner` on begin with this step."""
    begun = (i_n < inner)[:, None]
    prev = load(p_prev, r_prev + i_n, H, i_h, mask & begun).to(T)
    initial = load(p_initial, i_n, H, i_h, mask & (i_n >= inner)[:, None]).to(T)
    return tl.where(begun, prev, initial)


@triton.jit(
    do_not_specialize=["r_gates", "r_extra", "r_prev", "r_h", "N", "inner", "outer"],
    do_not_specialize_on_alignment=["p_b_ih", "p_b_hh", "p_initial"],
)
def forward_step(
    p_gates,  # (rows, G*H)  T  x W_ih^T; with TRAINING becomes the activated gates
    p_recurrent,  # (N, G*H)  T  h W_hh^T
    p_b_ih,  # (G*H,)  S
    p_b_hh,  # (G*H,)  S
    p_prev,  # (rows, H)  LSTM: c before, T; GRU: h before, S
    p_initial,  # (N, H)  S  LSTM: c0; GRU: h0
    p_extra,  # (rows, H)  T  LSTM: c', may be p_prev; GRU in training: a_nh
    p_h,  # (rows, H)  S  h', before a projection
    p_h_again,  # (N, H)  S  None, or h' once more; may be p_prev
    p_h_n,  # (N, H)  S  None, or h' of the sequences that end
    p_c_n,  # (N, H)  S  LSTM: c' of the sequences that end
    r_gates,
    r_extra,
    r_prev,
    r_h,
    N,
    inner,  # sequences [inner, N) begin with this step
    outer,  # sequences [outer, N) end with this step
    H,
    CELL: tl.constexpr,
    TRAINING: tl.constexpr,
    BN: tl.constexpr,
    BH: tl.constexpr,
):
    T: tl.constexpr = p_gates.dtype.element_ty
    G: tl.constexpr = gates_of(CELL)
    i_n, i_h, mask = _tile(N, H, BN, BH)
    x0, x1, x2, x3 = load_gates(p_gates, r_gates + i_n, H, i_h, mask, G)
    b0, b1, b2, b3 = load_biases(p_b_ih, H, i_h, G, T)
    x0, x1, x2, x3 = x0 + b0, x1 + b1, x2 + b2, x3 + b3
    h0, h1, h2, h3 = load_gates(p_recurrent, i_n, H, i_h, mask, G)
    b0, b1, b2, b3 = load_biases(p_b_hh, H, i_h, G, T)
    h0, h1, h2, h3 = h0 + b0, h1 + b1, h2 + b2, h3 + b3
    p0, p1, p2, p3 = preactivations(x0, x1, x2, x3, h0, h1, h2, h3, CELL)
    prev = p0
    if G > 1:
        prev = _load_prev(p_prev, p_initial, r_prev, i_n, i_h, mask, inner, H, T)

    s0, s1, s2, s3, extra, h = cell_forward(p0, p1, p2, p3, prev, CELL)

    ends = mask & (i_n >= outer)[:, None]
    store(p_h, r_h + i_n, H, i_h, h, mask)
    if p_h_again is not None:
        store(p_h_again, i_n, H, i_h, h, mask)
    if p_h_n is not None:
        store(p_h_n, i_n, H, i_h, h, ends)
    if p_c_n is not None:
        store(p_c_n, i_n, H, i_h, extra, ends)
    if p_extra is not None:
        store(p_extra, r_extra + i_n, H, i_h, extra, mask)
    if TRAINING:
        store_gates(p_gates, r_gates + i_n, H, i_h, s0, s1, s2, s3, mask, G)


@triton.jit
def _hidden_gradient(p_recurrent, p_dy, p_dh_n, r_dy, i_n, i_h, mask, outer, H, T: tl.constexpr):
    """Return h's gradient: from y, and from the later step or, where the sequence ends, h_n."""
    dh = load(p_recurrent, i_n, H, i_h, mask & (i_n < outer)[:, None])
    if p_dh_n is not None:
        ends = (i_n >= outer)[:, None]
        dh = tl.where(ends, load(p_dh_n, i_n, H, i_h, mask & ends).to(T), dh)
    if p_dy is not None:
        dh += load(p_dy, r_dy + i_n, H, i_h, mask).to(T)
    return dh


@triton.jit(
    do_not_specialize=["r_gates", "r_prev", "N", "inner", "outer"],
    do_not_specialize_on_alignment=["p_initial", "p_dy", "p_dh_n", "p_dc_n"],
)
def backward_step(
    p_gates,  # (rows, G*H)  T  activated, as forward left them
    p_extra,  # (rows, H)  T  LSTM c', GRU a_nh
    p_prev,  # (rows, H)  as in forward_step
    p_initial,  # (N, H)  S
    p_dh,  # (N, H)  T  h's whole gradient; None: the sum of the next three
    p_recurrent,  # (outer, H)  T  what the later step's gates pass back
    p_dy,  # (rows, H)  S
    p_dh_n,  # (N, H)  S  of the sequences that end
    p_dc_n,  # (N, H)  S  likewise
    p_carry,  # (N, H)  T  gradient of the state: in of those that go on, out of all
    p_dgates_x,  # (rows, G*H)  S  gradients of x W_ih^T
    p_dgates_h,  # (rows, G*H)  S  GRU: gradients of h W_hh^T
    p_h,  # (rows, H)  S  None, or LSTM's h' before a projection, made again
    r_gates,  # the first row of this step in the other arrays of all rows, too
    r_prev,
    N,
    inner,
    outer,
    H,
    CELL: tl.constexpr,
    BN: tl.constexpr,
    BH: tl.constexpr,
):
    T: tl.constexpr = p_gates.dtype.element_ty
    G: tl.constexpr = gates_of(CELL)
    i_n, i_h, mask = _tile(N, H, BN, BH)
    row = r_gates + i_n
    s0, s1, s2, s3 = load_gates(p_gates, row, H, i_h, mask, G)
    extra, prev, carry = s0, s0, s0
    if G > 1:
        extra = load(p_extra, row, H, i_h, mask)
        prev = _load_prev(p_prev, p_initial, r_prev, i_n, i_h, mask, inner, H, T)
        carry = load(p_carry, i_n, H, i_h, mask & (i_n < outer)[:, None])
    if p_dc_n is not None:
        ends = (i_n >= outer)[:, None]
        carry = tl.where(ends, load(p_dc_n, i_n, H, i_h, mask & ends).to(T), carry)
    if p_dh is not None:
        dh = load(p_dh, i_n, H, i_h, mask)
    else:
        dh = _hidden_gradient(p_recurrent, p_dy, p_dh_n, r_gates, i_n, i_h, mask, outer, H, T)

    d0, d1, d2, d3, carry = cell_backward(s0, s1, s2, s3, extra, prev, dh, carry, CELL)

    if G > 1:
        store(p_carry, i_n, H, i_h, carry, mask)
    if p_h is not None:
        store(p_h, row, H, i_h, s3 * tanh(extra), mask)
    store_gates(p_dgates_x, row, H, i_h, d0, d1, d2, d3, mask, G)
    if CELL == "gru":
        store_gates(p_dgates_h, row, H, i_h, d0, d1, d3, d3, mask, G)


@triton.jit(
    do_not_specialize=["r_dy", "N", "outer"],
    do_not_specialize_on_alignment=["p_dy", "p_dh_n"],
)
def hidden_step(
    p_dy,  # (rows, P)  S
    p_recurrent,  # (outer, P)  T
    p_dh_n,  # (N, P)  S  of the sequences that end
    p_dh,  # (rows, P)  S  the whole gradient of h
    r_dy,  # first row of this step in p_dy and p_dh
    N,
    outer,
    P,
    BN: tl.constexpr,
    BH: tl.constexpr,
):
    """Add up the gradient of h, where a projection stands between it and the gates."""
    T: tl.constexpr = p_recurrent.dtype.element_ty
    i_n, i_h, mask = _tile(N, P, BN, BH)
    dh = _hidden_gradient(p_recurrent, p_dy, p_dh_n, r_dy, i_n, i_h, mask, outer, P, T)
    store(p_dh, r_dy + i_n, P, i_h, dh, mask)

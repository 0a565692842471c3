"""The whole-sequence kernels for small hidden sizes: all steps of some sequences in one launch.

A program has BN sequences and all their hidden units, padded to HP, a power of two. It reads W_hh
once and keeps it on chip, and carries the states from step to step in registers. What the next step
needs from memory is asked for before this step's products. Padding is zero wherever it enters a
product, and is never stored.

T and N are numbers at run time. Letters and arrays as in ``gates.py``; here S is float32 or
narrower and the arithmetic's type is float32.
"""

# Triton's own values have no types to annotate with.
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import triton
import triton.language as tl

from fused_rnn.backends.triton.cells import cell_backward, cell_forward, preactivations
from fused_rnn.backends.triton.gates import (
    gates_of,
    load,
    load_biases,
    load_gates,
    store,
    store_gates,
)

__all__ = ["backward_sequence", "forward_sequence"]


@triton.jit
def _rows_of(p_starts, k, T, N, i_n, REVERSE: tl.constexpr):
    """Return the rows of the k-th step of the scan, and which of them there are; none for -1, T."""
    k = tl.zeros([], tl.int32) + k  # in the interpreter it may be a plain number
    t = T - 1 - k if REVERSE else k
    exists = (k >= 0) & (k < T)
    if p_starts is None:
        begin, n = t.to(tl.int64) * N, N
    else:
        begin = tl.load(p_starts + t, exists, other=0)
        n = tl.load(p_starts + t + 1, exists, other=0) - begin
    return begin + i_n, i_n < tl.where(exists, n, 0)


@triton.jit
def _load_weight(p_w_hh, g, H, i_h, i_k):
    """Return W_hh of one gate; i_h along one axis, i_k along the other."""
    return tl.load(p_w_hh + ((g * H + i_h) * H + i_k), (i_h < H) & (i_k < H), other=0)


@triton.jit
def _load_weights(p_w_hh, H, i_h, i_k, G: tl.constexpr):
    w0 = _load_weight(p_w_hh, 0, H, i_h, i_k)
    w1, w2, w3 = w0, w0, w0
    if G > 1:
        w1 = _load_weight(p_w_hh, 1, H, i_h, i_k)
        w2 = _load_weight(p_w_hh, 2, H, i_h, i_k)
    if G > 3:
        w3 = _load_weight(p_w_hh, 3, H, i_h, i_k)
    return w0, w1, w2, w3


@triton.jit(
    do_not_specialize=["T", "N"],
    do_not_specialize_on_alignment=["p_w_hh", "p_b_ih", "p_b_hh", "p_h0", "p_c0", "p_starts"],
)
def forward_sequence(
    p_gates,  # (rows, G*H)  T  x W_ih^T; with TRAINING becomes the activated gates
    p_w_hh,  # (G*H, H)  S
    p_b_ih,  # (G*H,)  S
    p_b_hh,  # (G*H,)  S
    p_h0,  # (N, H)  S
    p_c0,  # (N, H)  S  LSTM
    p_starts,  # (T+1,)  int64  None, or the first row of each time where sequences are ragged
    p_extra,  # (rows, H)  T  in training: LSTM c', GRU a_nh
    p_y,  # (rows, H)  S
    p_h_n,  # (N, H)  S
    p_c_n,  # (N, H)  S  LSTM
    T,
    N,
    H,
    CELL: tl.constexpr,
    REVERSE: tl.constexpr,
    TRAINING: tl.constexpr,
    PRECISION: tl.constexpr,
    BN: tl.constexpr,
    HP: tl.constexpr,
):
    F: tl.constexpr = p_gates.dtype.element_ty
    S: tl.constexpr = p_y.dtype.element_ty
    G: tl.constexpr = gates_of(CELL)
    i_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i_h = tl.arange(0, HP)
    units = (i_h < H)[None, :]
    mine = (i_n < N)[:, None] & units
    w0, w1, w2, w3 = _load_weights(p_w_hh, H, i_h[None, :], i_h[:, None], G)
    h = load(p_h0, i_n, H, i_h, mine)
    c = h.to(F)
    if CELL == "lstm":
        c = load(p_c0, i_n, H, i_h, mine).to(F)
    row, running = _rows_of(p_starts, 0, T, N, i_n, REVERSE)
    x0, x1, x2, x3 = load_gates(p_gates, row, H, i_h, running[:, None] & units, G)
    for k in range(T):
        next_row, next_running = _rows_of(p_starts, k + 1, T, N, i_n, REVERSE)
        y0, y1, y2, y3 = load_gates(p_gates, next_row, H, i_h, next_running[:, None] & units, G)

        # Biases are read anew in each step, from the cache: registers are scarce.
        b0, b1, b2, b3 = load_biases(p_b_ih, H, i_h, G, F)
        x0, x1, x2, x3 = x0 + b0, x1 + b1, x2 + b2, x3 + b3
        b0, b1, b2, b3 = load_biases(p_b_hh, H, i_h, G, F)
        h0 = tl.dot(h, w0, input_precision=PRECISION, out_dtype=F) + b0
        h1, h2, h3 = h0, h0, h0
        if G > 1:
            h1 = tl.dot(h, w1, input_precision=PRECISION, out_dtype=F) + b1
            h2 = tl.dot(h, w2, input_precision=PRECISION, out_dtype=F) + b2
        if G > 3:
            h3 = tl.dot(h, w3, input_precision=PRECISION, out_dtype=F) + b3
        p0, p1, p2, p3 = preactivations(x0, x1, x2, x3, h0, h1, h2, h3, CELL)
        prev = c if CELL == "lstm" else h.to(F)
        s0, s1, s2, s3, extra, new = cell_forward(p0, p1, p2, p3, prev, CELL)

        mask = running[:, None] & units
        store(p_y, row, H, i_h, new, mask)
        if TRAINING:
            store_gates(p_gates, row, H, i_h, s0, s1, s2, s3, mask, G)
            if G > 1:
                store(p_extra, row, H, i_h, extra, mask)
        # Sequences that have ended, or not begun, keep their state.
        h = tl.where(running[:, None], new.to(S), h)
        if CELL == "lstm":
            c = tl.where(running[:, None], extra, c)
        row, running = next_row, next_running
        x0, x1, x2, x3 = y0, y1, y2, y3
    store(p_h_n, i_n, H, i_h, h, mine)
    if CELL == "lstm":
        store(p_c_n, i_n, H, i_h, c, mine)


@triton.jit
def _load_step(p_gates, p_extra, p_dy, row, mask, H, i_h, G: tl.constexpr):
    """Return what forward left of a step, and y's gradient."""
    s0, s1, s2, s3 = load_gates(p_gates, row, H, i_h, mask, G)
    extra, dy = s0, tl.zeros_like(s0)
    if G > 1:
        extra = load(p_extra, row, H, i_h, mask)
    if p_dy is not None:
        dy = load(p_dy, row, H, i_h, mask).to(s0.dtype)
    return s0, s1, s2, s3, extra, dy


@triton.jit(
    do_not_specialize=["T", "N"],
    do_not_specialize_on_alignment=[
        "p_w_hh", "p_initial", "p_starts", "p_dy", "p_dh_n", "p_dc_n",
    ],
)  # fmt: skip
def backward_sequence(
    p_gates,  # (rows, G*H)  T  activated, as forward left them
    p_extra,  # (rows, H)  T  LSTM c', GRU a_nh
    p_y,  # (rows, H)  S
    p_w_hh,  # (G*H, H)  S
    p_initial,  # (N, H)  S  LSTM c0, GRU h0
    p_starts,  # (T+1,)  int64
    p_dy,  # (rows, H)  S
    p_dh_n,  # (N, H)  S
    p_dc_n,  # (N, H)  S
    p_dgates_x,  # (rows, G*H)  S
    p_dgates_h,  # (rows, G*H)  S  GRU
    p_dh0,  # (N, H)  S
    p_dc0,  # (N, H)  S  LSTM
    T,
    N,
    H,
    CELL: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BN: tl.constexpr,
    HP: tl.constexpr,
):
    F: tl.constexpr = p_gates.dtype.element_ty
    S: tl.constexpr = p_dgates_x.dtype.element_ty
    G: tl.constexpr = gates_of(CELL)
    i_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i_h = tl.arange(0, HP)
    units = (i_h < H)[None, :]
    mine = (i_n < N)[:, None] & units
    w0, w1, w2, w3 = _load_weights(p_w_hh, H, i_h[:, None], i_h[None, :], G)
    # Until a sequence's own last step these hold what the final states' gradients are.
    dh = tl.zeros([BN, HP], F)
    carry = tl.zeros([BN, HP], F)
    if p_dh_n is not None:
        dh = load(p_dh_n, i_n, H, i_h, mine).to(F)
    if p_dc_n is not None:
        carry = load(p_dc_n, i_n, H, i_h, mine).to(F)
    row, running = _rows_of(p_starts, T - 1, T, N, i_n, REVERSE)
    mask = running[:, None] & units
    s0, s1, s2, s3, extra, dy = _load_step(p_gates, p_extra, p_dy, row, mask, H, i_h, G)
    for back in range(T):
        earlier, begun = _rows_of(p_starts, T - 2 - back, T, N, i_n, REVERSE)
        before = begun[:, None] & units
        n0, n1, n2, n3, n_extra, n_dy = _load_step(
            p_gates, p_extra, p_dy, earlier, before, H, i_h, G
        )
        prev = s0
        if G > 1:
            begins = mask & (begun == 0)[:, None]
            prev = load(p_initial, i_n, H, i_h, begins).to(F)
            if CELL == "lstm":
                prev = tl.where(before, n_extra, prev)
            else:
                prev = tl.where(before, load(p_y, earlier, H, i_h, before).to(F), prev)

        d0, d1, d2, d3, new_carry = cell_backward(s0, s1, s2, s3, extra, prev, dh + dy, carry, CELL)

        store_gates(p_dgates_x, row, H, i_h, d0, d1, d2, d3, mask, G)
        if CELL == "gru":
            d2 = d3
            store_gates(p_dgates_h, row, H, i_h, d0, d1, d2, d3, mask, G)
        new = tl.dot(d0.to(S), w0, input_precision=PRECISION, out_dtype=F)
        if G > 1:
            new = tl.dot(d1.to(S), w1, new, input_precision=PRECISION, out_dtype=F)
            new = tl.dot(d2.to(S), w2, new, input_precision=PRECISION, out_dtype=F)
        if G > 3:
            new = tl.dot(d3.to(S), w3, new, input_precision=PRECISION, out_dtype=F)
        dh = tl.where(running[:, None], new, dh)
        if G > 1:
            carry = tl.where(running[:, None], new_carry, carry)
        row, running, mask = earlier, begun, before
        s0, s1, s2, s3, extra, dy = n0, n1, n2, n3, n_extra, n_dy
    if CELL == "gru":
        dh += carry
    store(p_dh0, i_n, H, i_h, dh, mine)
    if CELL == "lstm":
        store(p_dc0, i_n, H, i_h, carry, mine)

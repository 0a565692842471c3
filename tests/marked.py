"""Padded batches with lengths and resets: their marks, and what the specification makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fused_rnn.backends import Inputs
from fused_rnn.backends.base import Marked
from fused_rnn.backends.native import marked as native_marked
from fused_rnn.cells import CELLS, State, Weights
from tests.operands import Shape, as_double, make_inputs, needing, present

DEAD, GOES_ON, BEGINS, ANEW = range(4)
NAMES = (*Inputs._fields, "anew_h", "anew_c")
ALL = (True,) * len(NAMES)


class Case(NamedTuple):
    """Sizes; each sequence's length, None for T; the steps (t, n) that are reset before."""

    shape: Shape
    lengths: tuple[int, ...] | None = None
    resets: tuple[tuple[int, int], ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Each sequence's length."""
        return self.lengths or (self.shape.T,) * self.shape.N


CASES = {
    "lengths": Case(Shape(5, 4, 3, 7), (5, 0, 3, 1)),
    "resets": Case(Shape(5, 3, 3, 7), None, ((0, 0), (2, 0), (3, 1), (4, 1), (1, 1), (4, 2))),
    "both": Case(
        Shape(6, 4, 3, 5), (4, 6, 0, 1), ((0, 1), (3, 0), (4, 0), (2, 1), (2, 2), (0, 3), (1, 3))
    ),
    "resets-everywhere": Case(
        Shape(4, 3, 2, 3), (4, 2, 3), tuple((t, n) for t in range(4) for n in range(3))
    ),
    "neither": Case(Shape(4, 3, 5, 6)),
    "no-steps-at-all": Case(Shape(3, 2, 3, 4), (0, 0), ((1, 1),)),
    "one-step": Case(Shape(1, 4, 3, 8), (1, 0, 1, 0), ((0, 2), (0, 3))),
    "one-sequence": Case(Shape(7, 1, 5, 3), (6,), ((2, 0), (5, 0))),
    "one-unit-no-bias": Case(Shape(4, 3, 2, 1, bias=False), (1, 4, 2), ((2, 1), (1, 2))),
    # On the host bench these take wide accesses, the one before the last in x alone.
    "wide": Case(
        Shape(4, 21, 8, 32),
        tuple(n % 5 for n in range(21)),
        tuple((t, n) for t in range(4) for n in range(t, 21, 3)),
    ),
    "wide-x": Case(Shape(3, 4, 16, 3), (3, 1, 0, 2), ((1, 3),)),
    "empty-batch": Case(Shape(4, 0, 3, 5)),
}


def marks_of(case: Case, reverse: bool) -> torch.Tensor:
    """Return the marks (T, N)."""
    marks = torch.full((case.shape.T, case.shape.N), DEAD, dtype=torch.uint8)
    for n, end in enumerate(case.ends):
        for t in range(end):
            given = t == end - 1 if reverse else t == 0
            anew = (t + 1, n) in case.resets if reverse else (t, n) in case.resets
            if reverse:
                marks[t, n] = BEGINS if given else ANEW if anew else GOES_ON
            else:
                marks[t, n] = ANEW if anew else BEGINS if given else GOES_ON
    return marks


def make_marked(cell, case, reverse, anew, dtype=torch.float64, device="cpu"):
    """Return random operands, NaN in x where there is no step, and marks; ``anew``: a state."""
    inputs, _ = make_inputs((cell, False), case.shape, dtype, device)
    marks = marks_of(case, reverse).to(device)
    x = inputs.x.clone()
    x[marks == DEAD] = torch.nan
    x[:, :, -1][marks == DEAD] = torch.inf
    h, c = None, None
    if anew:
        # As far from the kink of a ReLU as the given state.
        draw = torch.rand if (inputs.h0 >= 0).all() else torch.randn
        h = draw(case.shape.H).to(device, dtype)
        c = torch.randn(case.shape.H).to(device, dtype) if CELLS[cell].has_cell_state else None
    return inputs._replace(x=x), Marked(marks, h, c)


def expected_scan(cell, inputs, anew, case, reverse):
    """Apply the specification, sequence by sequence; return y, h_n, c_n and every step's c.

    ``anew``: the state after a reset, h (H,) and c (H,) or None. It knows of no marks.
    """
    T, N, _, H = case.shape[:4]
    weights, lstm = Weights(*inputs[3:]), CELLS[cell].has_cell_state
    zeros = inputs.h0.new_zeros(1, H)
    fresh = State(*(zeros if s is None else s[None] for s in anew))
    fresh = fresh if lstm else State(fresh.h, None)
    y = [[zeros] * N for _ in range(T)]
    c = [[zeros] * N for _ in range(T)]
    finals = []
    for n, end in enumerate(case.ends):
        state = State(inputs.h0[n : n + 1], inputs.c0[n : n + 1] if lstm else None)
        for t in range(end - 1, -1, -1) if reverse else range(end):
            before = t + 1 if reverse else t  # a reset stands between two steps
            if (before, n) in case.resets and before < end:
                state = fresh
            state = CELLS[cell].step(inputs.x[t, n][None], state, weights)
            y[t][n], c[t][n] = state
        finals.append(state)
    empty = inputs.h0.new_zeros(0, H)
    last = [torch.cat([empty, *(f[i] for f in finals)]) for i in range(2 if lstm else 1)]
    stacked = [
        torch.stack([torch.cat([empty, *row]) for row in rows])
        for rows in ([y, c] if lstm else [y])
    ]
    return (stacked[0], last[0], last[1], stacked[1]) if lstm else (stacked[0], last[0])


def expected_gradients(cell, inputs, marked, case, reverse, draw):
    """Return the results in float64, what is fed back, and the ten gradients by name."""
    oracle = needing(as_double(inputs))
    anew = [s if s is None else s.double().requires_grad_() for s in marked[1:]]
    results = expected_scan(cell, oracle, anew, case, reverse)
    fed = [draw(r).to(r.device) for r in results]
    leaves = (*oracle, *anew)
    of = [t for t in leaves if t is not None]
    # With no step at all, or no reset, results may hang on some of the operands, or on none.
    total = sum((r * d).sum() for r, d in zip(results, fed, strict=True))
    total = total + sum(0 * t.nan_to_num().sum() for t in of)
    found = iter(torch.autograd.grad(total, of))
    gradients = [None if t is None else next(found) for t in leaves]
    return results, fed, dict(zip(NAMES, gradients, strict=True))


def run(cell, inputs, marked, reverse, fed, needs=ALL, every_c=None):
    """Scan and go back; return results, gradients by name and what was saved."""
    every_c = cell == "lstm" if every_c is None else every_c
    y, h_n, c_n, saved, c = native_marked.marked_forward(
        cell, inputs, marked, reverse, True, every_c
    )
    dy, dh_n, dc_n, dc = (*fed, *[None] * (4 - len(fed)))
    needs = [n and t is not None for n, t in zip(needs, (*inputs, *marked[1:]), strict=True)]
    found = native_marked.marked_backward(
        cell, inputs, marked, reverse, y, saved, dy, dh_n, dc_n, tuple(needs), dc
    )
    return present((y, h_n, c_n, c)), dict(zip(NAMES, found, strict=True)), saved


def fed_for(results, marked, dtype, device):
    """Return what is fed back on the device: NaN for steps that are none."""
    moved = [g.to(device, dtype) for g in results]
    for g in moved:
        if g.dim() == 3:
            g[marked.marks == DEAD] = torch.nan
    return moved


def draw_in(dtype):
    """Return a function that draws a cotangent, representable in a dtype."""
    return lambda r: torch.randn(r.shape, dtype=torch.float64).to(dtype).double()

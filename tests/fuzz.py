"""Calls layers, cells and functions with operands that mostly do not fit together.

    python -m tests.fuzz KIND [SEED] [CALLS]

What returns is held against a loop over the equations, which takes what is legal and nothing else.
A process of its own: what reads past an end may kill it.
"""

from __future__ import annotations

import random
import sys
import warnings
from itertools import chain

import torch
from torch import Tensor

import fused_rnn
from fused_rnn import functional
from fused_rnn.cells import CELLS, State, Weights

KINDS = ("cell", "function", "layer")
I, H = 3, 2  # noqa: E741
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
# The legal shapes come more often than their number says.
X = [(2, I)] * 6 + [(I,)] * 3 + [(0, I), (2, I + 1), (I + 1,), (), (1, 2, I), (2, 0), (1, I)]
X3 = [(4, 2, I)] * 6 + [(4, I)] * 3 + [(0, 2, I), (4, 2, I + 1), (I,), (4, 0, I), (1, 1, 4, 2, I)]
STATE = [(2, H)] * 6 + [(H,)] * 3 + [(2, H + 1), (1, H), (3, H), (), (1, 2, H), (2, 1, H), (H, H)]
STATE3 = [(1, 2, H)] * 6 + [(1, H)] * 3 + [(2, 2, H), (1, 3, H), (1, 2, H + 1), (H,), (2, H)]
DTYPES = [torch.float32] * 8 + [torch.float64, torch.int64, torch.bfloat16]


class Fuzz:
    """Operands by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)

    def one_of(self, values):
        """Return one of these."""
        return self.random.choice(values)

    def tensor(self, shapes):
        """Return a tensor of one of the shapes."""
        dtype, shape = self.one_of(DTYPES), self.one_of(shapes)
        if self.random.random() < 0.05:
            return self.one_of([None, 3, "x", [], [torch.zeros(H)], torch.zeros(2, H).to_sparse()])
        return torch.randn(shape).to(dtype)

    def state(self, cell, shapes):
        """Return initial states, or what should have been."""
        if self.random.random() < 0.2:
            return None
        if not CELLS[cell].has_cell_state:
            return self.tensor(shapes)
        shape = self.one_of(shapes)
        first = [shape] * 4 + shapes
        pair = self.tensor(first), self.tensor(first)
        stacked = torch.randn(self.one_of([2, 3]), *shape)
        return self.one_of([pair] * 6 + [list(pair), pair[:1], (*pair, pair[0]), stacked, pair[0]])

    def weights(self, cell):
        """Return w_ih, w_hh, b_ih and b_hh, one of which may be wrong."""
        rows = CELLS[cell].gates * H
        shapes = [(rows, I), (rows, H), (rows,), (rows,)]
        if self.random.random() < 0.3:
            k = self.random.randrange(4)
            wrong = [(1,), (2, 1), (rows + H,), (rows, 1), (1, I), (1, H), (rows + 1, H), (rows, I)]
            shapes[k] = self.one_of(wrong)
        return [torch.randn(shape) for shape in shapes]


def expected(cell, x, hx, weights, steps):
    """Return output and states by a loop over the equations, or None where that is not legal.

    Shape:
        - x: (N, I) or (I,), or with ``steps`` (T, N, I) or (T, I)
        - hx, or each of a pair: (N, H) or (H,), or with ``steps`` one more in front, of 1
    """
    rows = CELLS[cell].gates * H
    if [w.shape for w in weights] != [(rows, I), (rows, H), (rows,), (rows,)]:
        return None
    rank = 1 + steps
    if not isinstance(x, Tensor) or x.dim() not in (rank, rank + 1) or x.shape[-1] != I:
        return None
    if steps and not len(x):
        return None
    batch = x.shape[steps:-1]
    shape = (1,) * steps + (*batch, H)
    count = 1 + CELLS[cell].has_cell_state
    given = [torch.zeros(shape)] * count
    if hx is not None:
        if count == 1:
            given = [hx]
        elif isinstance(hx, Tensor) and x.dim() > rank:
            return None
        else:
            given = list(hx)  # without a batch, a stacked tensor serves as a pair
        fitting = (isinstance(s, Tensor) and s.shape == shape for s in given)
        if len(given) != count or not all(fitting):
            return None
    wide = Weights(*(w.double() for w in weights), None)
    state = State(*(s.to_dense().double().reshape(-1, H) for s in given), *[None] * (2 - count))
    outputs = []
    for x_t in x.to_dense().double().reshape(len(x) if steps else 1, -1, I):
        state = CELLS[cell].step(x_t, state, wide)
        outputs.append(state.h)
    last = [s.reshape(shape) for s in state if s is not None]
    return [torch.stack(outputs).reshape(*x.shape[:-1], H), *last] if steps else last


def call(fuzz, kind, cell):
    """Return a function that makes a call, and its operands."""
    weights = fuzz.weights(cell)
    x = fuzz.tensor(X3 if kind == "layer" else X)
    hx = fuzz.state(cell, STATE3 if kind == "layer" else STATE)
    if kind == "function":
        run = getattr(functional, f"{cell.removesuffix('_tanh')}_cell")
        return lambda: run(x, hx, *weights), x, hx, weights
    name = NAMES[cell] + "Cell" * (kind == "cell")
    module = getattr(fused_rnn, name)(I, H)
    suffix = "_l0" * (kind == "layer")
    for label, w in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True):
        setattr(module, label + suffix, torch.nn.Parameter(w))
    run = torch.compile(module, backend="eager") if fuzz.random.random() < 0.03 else module
    return lambda: run(x, hx), x, hx, weights


def main(kind: str, seed: int = 0, calls: int = 2000) -> None:
    """Make the calls; print how many returned and how many raised, and every wrong one."""
    warnings.simplefilter("ignore")
    fuzz, returned, raised = Fuzz(seed), 0, 0
    for number in range(calls):
        cell = fuzz.one_of(list(NAMES))
        run, x, hx, weights = call(fuzz, kind, cell)
        by = fuzz.one_of(["native", "reference", "torch", None, None, None])
        try:
            with torch.set_grad_enabled(fuzz.one_of([True, False])):
                if by is None:
                    found = run()
                else:
                    with fused_rnn.use_backend(by):
                        found = run()
        except Exception:  # which of torch's it is, others test
            raised += 1
            continue
        returned += 1
        legal = expected(cell, x, hx, weights, kind == "layer")
        flat = [found] if isinstance(found, Tensor) else list(found)
        flat = list(chain.from_iterable(f if isinstance(f, tuple) else (f,) for f in flat))
        if legal is None:
            states = hx if isinstance(hx, (tuple, list)) else [hx]
            shapes = [getattr(t, "shape", t) for t in (x, *states, *weights)]
            print(f"wrong: call {number} of {cell} by {by} takes what no equation does: {shapes}")
            continue
        for a, b in zip(flat, legal, strict=True):
            loose = 2e-5 if a.dtype in (torch.float32, torch.float64) else 2e-2
            near = a.shape == b.shape and torch.allclose(
                a.to_dense().double(), b, rtol=0, atol=loose
            )
            if not near:
                print(f"wrong: call {number} of {cell} by {by}: {a} is not {b}")
    print(returned, raised)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

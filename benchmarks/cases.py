"""What is measured: the table of cases, and how much work each case is.

A case is a cell, a kind of call and a shape. To measure another shape, add a row to one of the
tables below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

GATES = {"lstm": 4, "gru": 3, "rnn": 1}

#: Every kind of call, in the order of the report, with its heading there.
KINDS = {
    "inference": "inference",
    "training": "training step: forward and backward",
    "ragged-inference": "ragged inference: lengths uniform in [T/2, T]",
    "ragged-training": "ragged training step: lengths uniform in [T/2, T]",
    "step-nograd": "sequence of one step from a given state, under no_grad",
    "step-training": "sequence of one step from a given state, and its backward",
    "cell-nograd": "single cell call under no_grad",
    "cell-grad": "single cell call that records its graph",
    "cell-training": "single cell call and its backward",
}

#: What tensors are stored in; tf32 is float32 with rounded operands of matrix products.
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of one problem: steps, batch, input and hidden features, layers, directions."""

    T: int
    N: int
    I: int  # noqa: E741 - named as in the equations
    H: int
    layers: int = 1
    bidirectional: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def __str__(self) -> str:
        text = f"T{self.T}-N{self.N}-H{self.H}" if self.T > 1 else f"N{self.N}-H{self.H}"
        if self.I != self.H:
            text += f"-I{self.I}"
        if self.layers > 1:
            text += f"-L{self.layers}"
        return text + ("-bi" if self.bidirectional else "")


@dataclass(frozen=True)
class Case:
    """One row of the report."""

    cell: str
    kind: str
    shape: Shape
    quick: bool = False  # measured under --quick too
    dtype: str = "fp32"  # a key of DTYPES

    @property
    def id(self) -> str:
        return f"{self.cell}-{self.kind}-{self.label}"

    @property
    def label(self) -> str:
        """The shape, and the dtype where it is not float32."""
        return str(self.shape) + (f"-{self.dtype}" if self.dtype != "fp32" else "")

    @property
    def ragged(self) -> bool:
        return self.kind.startswith("ragged")

    @property
    def single_cell(self) -> bool:
        return self.kind.startswith("cell")

    @property
    def one_step(self) -> bool:
        """Whether a layer runs a sequence of one step, from a state that it is given."""
        return self.kind.startswith("step")

    @property
    def backward(self) -> bool:
        return self.kind.endswith("training")

    @property
    def grad(self) -> bool:
        """Whether the call runs with grad mode on."""
        return self.backward or self.kind == "cell-grad"

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Length of each sequence, (N,) int64; one is T, so that the padded shape is as stated."""
        T, N = self.shape.T, self.shape.N
        if not self.ragged:
            return torch.full((N,), T)
        lengths = torch.randint(T // 2, T + 1, (N,), generator=torch.Generator().manual_seed(N))
        lengths[N // 2] = T
        return lengths

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def _scans(self) -> Iterator[tuple[int, int]]:
        """Rows and columns of each scan's joined input and recurrent weights."""
        s = self.shape
        for layer in range(s.layers):
            for _ in range(s.directions):
                width = s.I if layer == 0 else s.H * s.directions
                yield GATES[self.cell] * s.H, width + s.H

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products alone.

        For each product of the forward pass the backward has two: for the inputs, for the weights.
        """
        forward = sum(2 * self.tokens * rows * columns for rows, columns in self._scans())
        return forward * (3 if self.backward else 1)

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that have to move if everything else stayed in cache.

        Inference reads x and the weights and writes y. A training step also reads dy, x, y and the
        weights for the backward pass, and writes dx and the weights' gradients.
        """
        s = self.shape
        x, y = self.tokens * s.I, self.tokens * s.H * s.directions
        weights = sum(rows * columns for rows, columns in self._scans())
        total = x + y + weights
        if self.backward:
            total += (x + y + weights) + (x + y + weights)
        return total * DTYPES[self.dtype].itemsize


_BI = Shape(100, 16, 256, 256, layers=2, bidirectional=True)

# (shape, whether --quick measures it too)
_DENSE = [
    (Shape(50, 1, 128, 128), True),
    (Shape(200, 1, 512, 512), False),
    (Shape(100, 32, 256, 256), True),
    (Shape(35, 20, 650, 650), False),
    (Shape(100, 64, 512, 512), False),
    (Shape(50, 16, 1024, 1024), False),
    (Shape(1000, 4, 64, 64), True),
    (Shape(20, 256, 128, 128), True),
    (_BI, False),
]
_RAGGED = [
    (Shape(100, 32, 256, 256), True),
    (Shape(35, 20, 650, 650), False),
    (Shape(100, 64, 512, 512), False),
    (Shape(1000, 4, 64, 64), False),
    (Shape(20, 256, 128, 128), True),
    (_BI, False),
]
_ONE_STEP = [
    (Shape(1, 1, 64, 64), False),
    (Shape(1, 1, 512, 512), False),
    (Shape(1, 32, 256, 256), True),
]
_CELL = [(Shape(1, 1, 16, 16), True), (Shape(1, 32, 256, 256), True)]

# The plain RNN has no bar: two ragged shapes say what there is to say.
_RAGGED_RNN = {Shape(100, 32, 256, 256), Shape(20, 256, 128, 128)}


def all_cases() -> list[Case]:
    """Every case in running order: a training step's oracle serves the cases after it."""
    cases = []
    for table, kinds in (
        (_DENSE, ("training", "inference")),
        (_RAGGED, ("ragged-training", "ragged-inference")),
        (_ONE_STEP, ("step-training", "step-nograd")),
        (_CELL, ("cell-training", "cell-grad", "cell-nograd")),
    ):
        for shape, quick in table:
            for cell in GATES:
                if table is _RAGGED and cell == "rnn" and shape not in _RAGGED_RNN:
                    continue
                for kind in kinds:
                    cases.append(Case(cell, kind, shape, quick and cell != "rnn"))
    return cases


def choose(cases: list[Case], pattern: str | None = None, quick: bool = False) -> list[Case]:
    """Return the cases whose id ``pattern`` (a substring or a regular expression) is found in."""
    found = [case for case in cases if case.quick or not quick]
    if pattern is None:
        return found
    expression = re.compile(pattern)
    return [case for case in found if pattern in case.id or expression.search(case.id)]

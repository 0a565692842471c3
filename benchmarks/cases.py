"""What a case is, how much work it is, and which cases a run takes.

A case is a cell, a kind of call, a shape, a dtype and a number of threads. The tables stand in
``cases_cpu`` and ``cases_cuda``.
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

#: What tensors are stored in; tf32 is float32 with rounded operands of matrix products, autocast
#: is float32 under torch.autocast in bfloat16.
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "autocast": torch.float32,
    "fp16": torch.float16,
}
#: The dtypes as headings say them.
DTYPE_TITLES = {
    "fp32": "float32",
    "tf32": "float32 with TF32",
    "bf16": "bfloat16",
    "autocast": "float32 under autocast to bfloat16",
    "fp16": "float16",
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
    threads: int | None = None  # None: the run's
    full: bool = False  # measured under --full alone

    @property
    def id(self) -> str:
        return f"{self.cell}-{self.kind}-{self.label}"

    @property
    def label(self) -> str:
        """The shape, and the dtype and the threads where they are not float32 and the run's."""
        text = str(self.shape) + (f"-{self.dtype}" if self.dtype != "fp32" else "")
        return text + (f"-{self.threads}thread" if self.threads else "")

    @property
    def autocast(self) -> bool:
        """Whether the forward runs under torch.autocast."""
        return self.dtype == "autocast"

    @property
    def products_dtype(self) -> str:
        """The dtype that matrix products run in, a key of DTYPES."""
        return "bf16" if self.autocast else self.dtype

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


def choose(
    cases: list[Case], pattern: str | None = None, quick: bool = False, full: bool = True
) -> list[Case]:
    """Return the cases whose id ``pattern`` (a substring or a regular expression) is found in.

    Args:
        cases: All there are.
        pattern: None takes every case.
        quick: Whether to take those of --quick alone.
        full: Whether to take those of --full too.
    """
    found = [case for case in cases if (case.quick or not quick) and (full or not case.full)]
    if pattern is None:
        return found
    expression = re.compile(pattern)
    return [case for case in found if pattern in case.id or expression.search(case.id)]

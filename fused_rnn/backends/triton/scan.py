"""What a scan by Triton needs on the host: the order of the steps, products, and the step loop.

The input product is made once for all steps; then each step takes one matrix product and one fused
gate kernel; the weights' gradients are products over all steps afterwards. All is enqueued: nothing
here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs
from fused_rnn.cells import CELLS

__all__ = ["Gradients", "Scan", "Step", "factor", "product", "step_backward", "step_forward"]

# Elements of a program's tile: four for each of its 128 threads, 16 bytes of float32.
_TILE = 512
_WIDEST = 256
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


class Step(NamedTuple):
    """One step, in the order of the scan; its sequences stand first in every array."""

    begin: int  # its first row, in the order of time
    n: int  # sequences
    before: int  # first row of the step before; 0 for the first
    inner: int  # sequences [inner, n) begin with this step
    outer: int  # sequences [outer, n) end with this step


@dataclass(frozen=True)
class Scan:
    """One problem: what forward and backward share."""

    cell: str
    inputs: Inputs
    batch_sizes: Tensor | None
    reverse: bool

    @property
    def real(self) -> torch.dtype:
        """The arithmetic's type."""
        return torch.float64 if self.inputs.x.dtype == torch.float64 else torch.float32

    @property
    def G(self) -> int:
        return CELLS[self.cell].gates

    @property
    def N(self) -> int:
        return self.inputs.h0.shape[0]

    @property
    def H(self) -> int:
        return self.inputs.w_hh.shape[0] // self.G

    @property
    def T(self) -> int:
        if self.batch_sizes is not None:
            return len(self.batch_sizes)
        return self.inputs.x.shape[0] if self.inputs.x.dim() == 3 else 1

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return self.inputs.x.shape[:-1].numel()

    @property
    def initial(self) -> Tensor:
        """(N, H): the elementwise state before the first step; a plain RNN does not look at it."""
        return self.inputs.h0 if self.inputs.c0 is None else self.inputs.c0

    @property
    def joins(self) -> bool:
        """Whether sequences begin at different steps."""
        return self.reverse and self.batch_sizes is not None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.inputs.x.new_empty(shape, dtype=dtype)

    def starts(self) -> list[int]:
        """Return the first row of each time, and the number of rows."""
        if self.batch_sizes is None:
            return [t * self.N for t in range(self.T + 1)]
        return [0, *accumulate(self.batch_sizes.tolist())]

    def steps(self) -> list[Step]:
        """Return the steps in the order of the scan."""
        starts = self.starts()
        spans = [(a, b - a) for a, b in pairwise(starts)]
        if self.reverse:
            spans.reverse()
        around = [(0, 0), *spans, (0, 0)]
        return [
            Step(begin, n, before[0], min(before[1], n), min(after[1], n))
            for before, (begin, n), after in zip(around, spans, around[2:], strict=False)
        ]


class Gradients(NamedTuple):
    """What the backward scan leaves for the products that follow it."""

    dgates_x: Tensor  # (rows, G*H)
    dgates_h: Tensor  # (rows, G*H), for all but the GRU the same tensor
    dh0: Tensor  # (N, R), of the arithmetic's type
    dc0: Tensor | None  # (N, H), likewise, LSTM only
    dprojected: Tensor | None  # (rows, P), with a projection
    unprojected: Tensor | None  # (rows, H), likewise


def factor(matrix: Tensor, real: torch.dtype) -> Tensor:
    """Return a matrix as ``product`` takes it.

    cuBLAS makes float32 sums of narrower factors; elsewhere both are widened, so that the sums are
    not rounded before the gates see them.
    """
    return matrix if matrix.is_cuda and torch.version.cuda is not None else matrix.to(real)


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a b to ``out``, which may be of a wider type; b comes from ``factor``."""
    if b.dtype == out.dtype:
        return torch.mm(a.to(out.dtype), b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def _tile(columns: int) -> dict[str, int]:
    """Return the sizes of a tile: by the columns alone, so that no batch size is compiled for."""
    width = min(_WIDEST, 1 << (columns - 1).bit_length())
    return {"BN": _TILE // width, "BH": width}


def _grid(n: int, columns: int, tile: dict[str, int]) -> tuple[int, int]:
    return -(-n // tile["BN"]), -(-columns // tile["BH"])


def step_forward(
    kernels: Any,
    scan: Scan,
    gates: Tensor,  # (rows, G*H); in training the activated gates are left in it
    extra: Tensor | None,  # (rows, H), in training, where the cell has one
    y: Tensor,  # (rows, R)
    h_n: Tensor,  # (N, R)
    c_n: Tensor | None,  # (N, H)
    training: bool,
) -> None:
    """Run all steps forward, each a product and a kernel."""
    inputs, H = scan.inputs, scan.H
    lstm, projected = scan.cell == "lstm", inputs.w_hr is not None
    recurrent = torch.empty_like(gates[: scan.N])
    w_hh = factor(inputs.w_hh, scan.real).t()
    # Where sequences join late, a product's rows lie in two arrays; here they stand together.
    carried = inputs.h0.clone() if scan.joins else inputs.h0
    unprojected = scan.empty(scan.N, H) if projected else None
    c = scan.empty(scan.N, H, dtype=scan.real) if lstm and extra is None else None
    tile = _tile(H)
    for k, (begin, n, before, inner, outer) in enumerate(scan.steps()):
        here = y[begin : begin + n]
        past = carried[:n] if scan.joins or k == 0 else y[before : before + n]
        product(past, w_hh, recurrent[:n])
        prev, r_prev = (extra, before) if lstm else (carried, 0) if scan.joins else (y, before)
        kernels.forward_step[_grid(n, H, tile)](
            gates,
            recurrent,
            inputs.b_ih,
            inputs.b_hh,
            (prev if c is None else c) if scan.G > 1 else None,
            scan.initial if scan.G > 1 else None,
            extra if c is None else c,
            y if unprojected is None else unprojected,
            carried if scan.joins and not projected else None,
            None if projected else h_n,
            c_n,
            begin,
            begin if c is None else 0,
            r_prev if c is None else 0,
            0 if projected else begin,
            n,
            inner,
            outer,
            H,
            CELL=scan.cell,
            TRAINING=training,
            **tile,
            **_OPTIONS,
        )
        if unprojected is not None:
            torch.mm(unprojected[:n], inputs.w_hr.t(), out=here)
            h_n[outer:n] = here[outer:]
            if scan.joins:
                carried[:n] = here


def step_backward(
    kernels: Any,
    scan: Scan,
    gates: Tensor,
    extra: Tensor | None,
    y: Tensor,  # (rows, R)
    dy: Tensor | None,  # (rows, R)
    dh_n: Tensor | None,  # (N, R)
    dc_n: Tensor | None,  # (N, H)
) -> Gradients:
    """Run all steps backward, each a kernel and a product."""
    inputs, N, H, R = scan.inputs, scan.N, scan.H, scan.inputs.h0.shape[1]
    lstm, gru, projected = scan.cell == "lstm", scan.cell == "gru", inputs.w_hr is not None
    recurrent = scan.empty(N, R, dtype=scan.real)
    carry = None if extra is None else scan.empty(N, H, dtype=scan.real)
    dgates_x = scan.empty(scan.rows, scan.G * H)
    dgates_h = torch.empty_like(dgates_x) if gru else dgates_x
    dprojected = scan.empty(scan.rows, R) if projected else None
    unprojected = scan.empty(scan.rows, H) if projected else None
    dh = scan.empty(N, H, dtype=scan.real) if projected else None
    w_hh = factor(inputs.w_hh, scan.real)
    w_hr = None if inputs.w_hr is None else factor(inputs.w_hr, scan.real)
    tile, tile_h = _tile(H), _tile(R)
    for begin, n, before, inner, outer in reversed(scan.steps()):
        if dprojected is not None:
            kernels.hidden_step[_grid(n, R, tile_h)](
                dy, recurrent, dh_n, dprojected, begin, n, outer, R, **tile_h, **_OPTIONS
            )
            product(dprojected[begin : begin + n], w_hr, dh[:n])
        kernels.backward_step[_grid(n, H, tile)](
            gates,
            extra,
            (extra if lstm else y) if scan.G > 1 else None,
            scan.initial if scan.G > 1 else None,
            dh,
            recurrent,
            None if projected else dy,
            None if projected else dh_n,
            dc_n,
            carry,
            dgates_x,
            dgates_h if gru else None,
            unprojected,
            begin,
            before,
            n,
            inner,
            outer,
            H,
            CELL=scan.cell,
            **tile,
            **_OPTIONS,
        )
        product(dgates_h[begin : begin + n], w_hh, recurrent[:n])
    dh0 = recurrent + carry if gru else recurrent
    return Gradients(dgates_x, dgates_h, dh0, carry if lstm else None, dprojected, unprojected)

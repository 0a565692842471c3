"""Operands for scans, and what the specification makes of them."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch

from fused_rnn.backends import Inputs, Problem, reference
from fused_rnn.cells import CELLS
from fused_rnn.scans import autograd

# What of an op's promises hangs on its operands: the other parts of opcheck, whether autograd and a
# trace with symbolic sizes take it, take seconds and are asked once of each op.
OF_OPERANDS = "test_schema", "test_faketensor"


class Shape(NamedTuple):
    """The sizes of a scan; ``lengths`` for ragged ones, longest first."""

    T: int
    N: int
    I: int  # noqa: E741
    H: int
    bias: bool = True
    lengths: tuple[int, ...] | None = None


SHAPES = {
    "tiny": Shape(1, 1, 1, 1),
    "odd": Shape(5, 3, 7, 17),
    "one-sequence": Shape(7, 1, 5, 16),
    "one-step": Shape(1, 4, 3, 8),
    "one-unit-no-bias": Shape(4, 3, 2, 1, bias=False),
    "many-rows-no-bias": Shape(3, 13, 4, 24, bias=False),
    "wide": Shape(3, 21, 40, 130),
    "empty-batch": Shape(4, 0, 3, 5),
}


def ragged(lengths, I, H, bias=True):  # noqa: E741
    """Return the shape of packed sequences."""
    lengths = tuple(sorted(lengths, reverse=True))
    return Shape(lengths[0], len(lengths), I, H, bias, lengths)


RAGGED = {
    "ragged": ragged((5, 1, 3, 3, 2), 7, 17),
    "ragged-one-sequence": ragged((4,), 3, 8),
    "ragged-equal": ragged((3, 3), 1, 5, bias=False),
    "ragged-many": ragged([random.Random(0).randint(1, 6) for _ in range(19)], 5, 9),
}


SMALL = Shape(3, 2, 3, 4)
SMALL_RAGGED = ragged((3, 1, 2), 3, 4)


def shifted(t):
    """Return a copy that does not stand at the beginning of its storage, between NaNs."""
    if t is None:
        return None
    around = t.new_full((t.numel() + 6,), torch.nan)
    copy = around[3:-3].view(t.shape)
    return copy.copy_(t.detach())


def present(tensors):
    """Return those that are not None."""
    return [t for t in tensors if t is not None]


def make_inputs(variant, shape, dtype=torch.float64, device="cpu"):
    """Return random operands, and the batch sizes of ragged ones or None."""
    cell, projected = variant
    T, N, I, H, bias, lengths = shape  # noqa: E741
    G, P = CELLS[cell].gates, max(1, H // 2)
    R = P if projected else H

    def draw(*size):
        # Rounded to the dtype first: the oracle sees the same numbers.
        return torch.randn(*size, dtype=torch.float64).to(device, dtype)

    def weight(*size):
        return ((2 * torch.rand(*size, dtype=torch.float64) - 1) * H**-0.5).to(device, dtype)

    batch_sizes = None
    if lengths is not None:
        batch_sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
    inputs = Inputs(
        draw(T, N, I) if lengths is None else draw(sum(lengths), I),
        draw(N, R),
        draw(N, H) if CELLS[cell].has_cell_state else None,
        weight(G * H, I),
        weight(G * H, R),
        weight(G * H) if bias else None,
        weight(G * H) if bias else None,
        weight(P, H) if projected else None,
    )
    if cell == "rnn_relu" and dtype in (torch.float16, torch.bfloat16):
        inputs = away_from_the_kink(inputs)
    return inputs, batch_sizes


def away_from_the_kink(inputs):
    """Return operands that leave half of the units of an RNN with ReLU on, and half off.

    Close to zero a gradient is there or not by a rounding of the half types.
    """
    sign = torch.ones(len(inputs.w_hh), dtype=inputs.x.dtype, device=inputs.x.device)
    sign[1::2] = -1
    changed = {
        name: t if t is None else t.abs() * (sign[:, None] if t.dim() == 2 else sign)
        for name, t in inputs._asdict().items()
        if name[0] in "wb"
    }
    changed["w_ih"] += 0.2 * sign[:, None]
    return inputs._replace(x=inputs.x.abs() + 0.5, h0=inputs.h0.abs(), **changed)


def needing(inputs, needs=None):
    """Return copies of the operands that require a gradient, all or those that ``needs`` says."""
    needs = needs or [True] * len(inputs)
    return Inputs(
        *(
            t if t is None else t.detach().clone().requires_grad_(need)
            for t, need in zip(inputs, needs, strict=True)
        )
    )


def as_double(inputs):
    """Return the operands as the oracle takes them."""
    return Inputs(*(t if t is None else t.detach().double() for t in inputs))


def skip_unless_supported(kernel, cell, inputs, batch_sizes, training=True, states=False):
    """Skip the running test where the kernel refuses the problem, with its reason."""
    x, H = inputs.x, inputs.w_hh.shape[0] // CELLS[cell].gates
    T = x.shape[0] if batch_sizes is None else len(batch_sizes)
    P = 0 if inputs.w_hr is None else len(inputs.w_hr)
    N, I = inputs.h0.shape[0], x.shape[-1]  # noqa: E741
    ragged = batch_sizes is not None
    problem = Problem(cell, x.device, x.dtype, T, N, I, H, P, ragged, training, None, states)
    reason = kernel.supports(problem)
    if reason is not None:
        pytest.skip(reason)


def cotangents(results):
    """Return gradients to feed back, one for each result, in float64."""
    return [r if r is None else torch.randn(r.shape, dtype=torch.float64) for r in results]


def differentiate(backend, cell, inputs, batch_sizes, reverse, gradients):
    """Scan and go back; return the results and the gradients of the operands that need one.

    ``gradients`` has one element for each result, None where the result is not used.
    """
    results = autograd.scan(backend, cell, inputs, batch_sizes, reverse)
    used = [(r, g.to(r)) for r, g in zip(results, gradients, strict=True) if g is not None]
    of = [t for t in inputs if t is not None and t.requires_grad]
    found = torch.autograd.grad([r for r, _ in used], of, [g for _, g in used], allow_unused=True)
    return results, found


class Stub:
    """A kernel that cannot be wrong: the reference, with autograd kept out.

    What is around the kernels is tested with it where none has been built.
    """

    name = "stub"
    checks_operands = False

    def available(self):
        return None

    def supports(self, problem):
        return problem.transform

    def forward(self, cell, inputs, batch_sizes, reverse, training):
        assert all(t is None or t.is_contiguous() for t in inputs)
        with torch.no_grad():
            y, h_n, c_n, _ = reference.forward(cell, inputs, batch_sizes, reverse, training)
        return y, h_n, c_n, ()

    def saved(self, cell, inputs):
        return ()

    def backward(self, cell, inputs, *others):
        assert not torch.is_grad_enabled()
        assert all(t.is_contiguous() for t in others if isinstance(t, torch.Tensor))
        detached = Inputs(*(t if t is None else t.detach() for t in inputs))
        return reference.backward(cell, detached, *others)


def assert_near(actual, expected, tolerance):
    """Assert that numbers are within a tolerance relative to the largest one expected."""
    expected = expected.to(torch.float64)
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.detach().to("cpu", torch.float64),
        expected.detach().cpu(),
        rtol=tolerance,
        atol=tolerance * max(scale, 1e-3),
    )

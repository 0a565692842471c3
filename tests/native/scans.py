"""The scans that the tests of the kernels run, and what the specification makes of them."""

from __future__ import annotations

import hashlib

import torch

from fused_rnn.backends import reference
from tests.operands import (
    RAGGED,
    SHAPES,
    Shape,
    as_double,
    differentiate,
    make_inputs,
    needing,
    ragged,
)

from .core import GRADIENTS, Results, Scan

VARIANTS = ["lstm", "lstm-projected", "gru", "rnn_tanh", "rnn_relu"]

# Beside those of every backend: what the kernels cut or compute in another way.
OWN_SHAPES = {
    "dots": Shape(2, 4, 19, 9),
    "turned": Shape(1, 9, 5, 18),
    "turned-wide": Shape(1, 90, 21, 37, bias=False),
    "chunks": Shape(70, 9, 3, 5),
    "large-weights": Shape(3, 4, 700, 395),
    "more-rows-than-a-chunk": Shape(2, 530, 2, 3),
    "ragged-chunks": ragged([(7 * n) % 60 + 1 for n in range(40)], 3, 20),
    "ragged-one-row-steps": ragged((30, 1, 1), 2, 3),
    # Few rows in a step and many in a chunk, and slices that do not come out even in wide tiles.
    "one-sequence-of-many-steps": Shape(40, 1, 5, 100),
    "two-sequences-of-many-steps": Shape(40, 2, 5, 44),
    "streamed-blocks-of-rows": Shape(1, 150, 21, 37),
    "panels": Shape(1, 300, 1100, 270),
    "streamed-ragged": ragged((2, 2, 1, 2, 1, 2, 1), 7, 40),
    # Wide inputs, so that some hundred sequences are cut into bands, or a thousand ragged ones,
    # with steps that the first band has for itself.
    "bands": Shape(3, 300, 1030, 70),
    "ragged-bands": ragged([1 + (n % 2) + 3 * (n % 50 == 0) for n in range(1030)], 1030, 70),
}
ALL_SHAPES = {name: shape for name, shape in (SHAPES | RAGGED | OWN_SHAPES).items() if shape.N > 0}
FEW_SHAPES = {
    name: ALL_SHAPES[name] for name in ("odd", "ragged", "dots", "turned", "large-weights")
}


def make_scan(
    variant: str, shape: Shape, reverse: bool = False, dtype: torch.dtype = torch.float32
) -> Scan:
    """Return a scan with random operands and gradients."""
    cell = variant.removesuffix("-projected")
    inputs, batch_sizes = make_inputs((cell, cell != variant), shape, dtype)
    y = (*inputs.x.shape[:-1], inputs.h0.shape[1])
    c_n = None if inputs.c0 is None else inputs.c0.shape
    gradients = tuple(
        size if size is None else torch.randn(size).to(dtype) for size in (y, inputs.h0.shape, c_n)
    )
    return Scan(cell, inputs, batch_sizes, reverse, gradients)


def expected_of(scan: Scan) -> Results:
    """Return what the reference makes of a scan, in float64: once, for all levels."""
    key = _key_of(scan)
    if key not in _EXPECTED:
        _EXPECTED[key] = _expected(scan)
    return {name: tensor.clone() for name, tensor in _EXPECTED[key].items()}


_EXPECTED: dict[bytes, Results] = {}


def _key_of(scan: Scan) -> bytes:
    """Return a digest of all that the result depends on."""
    digest = hashlib.sha256(f"{scan.cell} {scan.reverse}".encode())
    for t in (*scan.inputs, scan.batch_sizes, *scan.gradients):
        digest.update(f"{None if t is None else (t.dtype, tuple(t.shape))}".encode())
        if t is not None:
            digest.update(t.contiguous().view(torch.uint8).numpy())
    return digest.digest()


def _expected(scan: Scan) -> Results:
    oracle = needing(as_double(scan.inputs))
    gradients = [None if g is None else g.double() for g in scan.gradients]
    results, grads = differentiate(
        reference, scan.cell, oracle, scan.batch_sizes, scan.reverse, gradients
    )
    given = [name for name, t in zip(GRADIENTS, scan.inputs, strict=True) if t is not None]
    named = [*zip(("y", "h_n", "c_n"), results, strict=True), *zip(given, grads, strict=True)]
    return {name: tensor.detach() for name, tensor in named if tensor is not None}

"""Faults of the Triton kernels."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "triton-third-gate",
        "fused_rnn/backends/triton_gates.py",
        "store(p, row, G * H, 2 * H + i_h, g2, mask)",
        "store(p, row, G * H, H + i_h, g2, mask)",
        ("tests/test_triton_kernels.py",),
    ),
    Mutant(
        "triton-state-of-late-sequences",
        "fused_rnn/backends/triton_gates.py",
        "    begun = (i_n < inner)[:, None]",
        "    begun = (i_n <= inner)[:, None]",
        ("tests/test_triton_kernels.py",),
    ),
    Mutant(
        "triton-b-hh-forgotten",
        "fused_rnn/backends/triton_gates.py",
        "    h0, h1, h2, h3 = h0 + b0, h1 + b1, h2 + b2, h3 + b3\n    p0",
        "    h0, h1, h2, h3 = h0 + b0, h1 + b1, h2, h3 + b3\n    p0",
        ("tests/test_triton_kernels.py",),
    ),
)

"""Faults of the Triton kernels."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "triton-third-gate",
        "fused_rnn/backends/triton/gates.py",
        "store(p, row, G * H, 2 * H + i_h, g2, mask)",
        "store(p, row, G * H, H + i_h, g2, mask)",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-state-of-late-sequences",
        "fused_rnn/backends/triton/gates.py",
        "    begun = (i_n < inner)[:, None]",
        "    begun = (i_n <= inner)[:, None]",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-b-hh-forgotten",
        "fused_rnn/backends/triton/gates.py",
        "    h0, h1, h2, h3 = h0 + b0, h1 + b1, h2 + b2, h3 + b3\n    p0",
        "    h0, h1, h2, h3 = h0 + b0, h1 + b1, h2, h3 + b3\n    p0",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-steps-of-reverse",
        "fused_rnn/backends/triton/scan.py",
        "            spans.reverse()",
        "            spans.sort()",
        ("tests/backends/triton/test_triton.py", "tests/backends/triton/test_kernels.py"),
    ),
    Mutant(
        "triton-ends-of-a-step",
        "fused_rnn/backends/triton/scan.py",
        "min(before[1], n), min(after[1], n))",
        "min(before[1], n), min(before[1], n))",
        ("tests/backends/triton/test_triton.py", "tests/backends/triton/test_kernels.py"),
    ),
    Mutant(
        "triton-projection-of-late-sequences",
        "fused_rnn/backends/triton/scan.py",
        "                carried[:n] = here",
        "                carried[outer:n] = here[outer:]",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-gru-dh0-without-carry",
        "fused_rnn/backends/triton/scan.py",
        "dh0 = recurrent + carry if gru else recurrent",
        "dh0 = recurrent",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-sequence-ended-state",
        "fused_rnn/backends/triton/sequence.py",
        "        h = tl.where(running[:, None], new.to(S), h)",
        "        h = new.to(S)",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-sequence-weights-transposed",
        "fused_rnn/backends/triton/sequence.py",
        "w0, w1, w2, w3 = _load_weights(p_w_hh, H, i_h[None, :], i_h[:, None], G)",
        "w0, w1, w2, w3 = _load_weights(p_w_hh, H, i_h[:, None], i_h[None, :], G)",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-sequence-gru-candidate-gradient",
        "fused_rnn/backends/triton/sequence.py",
        "            d2 = d3\n",
        "            d2 = d2\n",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-sequence-reverse-time",
        "fused_rnn/backends/triton/sequence.py",
        "t = T - 1 - k if REVERSE else k",
        "t = k",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-whole-second-program",
        "fused_rnn/backends/triton/whole.py",
        "    kernels.forward_sequence[(-(-scan.N // _ROWS),)](",
        "    kernels.forward_sequence[(max(1, scan.N // _ROWS),)](",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-whole-limit",
        "fused_rnn/backends/triton/whole.py",
        "size > LIMITS.get((scan.cell, x.itemsize), 0)",
        "size > 2 * LIMITS.get((scan.cell, x.itemsize), 0)",
        ("tests/backends/triton/test_triton.py",),
    ),
    Mutant(
        "triton-whole-padding",
        "fused_rnn/backends/triton/whole.py",
        "return max(16, 1 << (H - 1).bit_length())",
        "return max(16, 1 << H.bit_length())",
        ("tests/backends/triton/test_triton.py",),
    ),
    Mutant(
        "triton-cells-tanh-near-zero",
        "fused_rnn/backends/triton/cells.py",
        "near = tl.abs(x) < 0.3",
        "near = tl.abs(x) < 3.0",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-cells-nan-in-relu",
        "fused_rnn/backends/triton/cells.py",
        "tl.where(p0 <= 0, 0, p0)",
        "tl.where(p0 > 0, p0, 0)",
        ("tests/backends/triton/test_kernels.py",),
    ),
    Mutant(
        "triton-old-triton",
        "fused_rnn/backends/triton/__init__.py",
        "3, 6",
        "3, 7",
        ("tests/backends/triton/test_triton.py",),
    ),
)

"""What is measured on a GPU: the anchor, a spread of sizes, and the whole grid on request."""

from __future__ import annotations

from collections.abc import Iterable

from .cases import Case, Shape

_BOTH = ("training", "inference")
_WIDTHS = (128, 256, 512, 768, 1024, 1536, 2048)
_BATCHES = (1, 2, 8, 16, 20, 64, 128, 256)
_STEPS = (256, 1024)
_DTYPES = ("tf32", "bf16", "fp16")

# FlashRNN's published row: the one shape for which every rival has figures of its own.
_ANCHOR = Shape(1024, 16, 768, 768)


def cuda_cases() -> list[Case]:
    """The default cases in running order; a training step's oracle serves the inference after."""
    cases = _cases("lstm", _ANCHOR, ("bf16", "fp16", "fp32"), _BOTH, quick=True)
    cases += _cases("gru", _ANCHOR, ("bf16",), _BOTH, quick=True)
    cases += _cases("rnn", _ANCHOR, ("bf16",), _BOTH)
    for H in _WIDTHS:
        for cell in ("lstm", "gru"):
            quick = cell == "lstm" and H in (256, 2048)
            cases += _cases(cell, Shape(256, 16, H, H), ("bf16",), _BOTH, quick)
    for N in _BATCHES:
        if N != 16:
            cases += _cases("lstm", Shape(256, N, 512, 512), ("bf16",), _BOTH, N in (1, 128))
            cases += _cases("gru", Shape(256, N, 512, 512), ("bf16",), ("training",))
    for dtype in ("fp32", "tf32", "fp16"):
        quick = dtype == "tf32"
        cases += _cases("lstm", Shape(256, 64, 512, 512), (dtype,), _BOTH, quick)
        cases += _cases("gru", Shape(256, 64, 512, 512), (dtype,), _BOTH)
    stacked = Shape(256, 32, 512, 512, layers=2, bidirectional=True)
    ragged = ("ragged-training", "ragged-inference")
    for cell in ("lstm", "gru"):
        cases += _cases(cell, stacked, ("bf16",), _BOTH, cell == "lstm")
        cases += _cases(cell, Shape(256, 64, 512, 512), ("bf16",), ragged, cell == "lstm")
        cases += _cases(cell, stacked, ("bf16",), ("ragged-training",))
    calls = ("cell-training", "cell-grad", "cell-nograd")
    for shape in (Shape(1, 1, 64, 64), Shape(1, 64, 512, 512), Shape(1, 1024, 1024, 1024)):
        for cell in ("lstm", "gru", "rnn"):
            quick = cell == "lstm" and shape.N == 64
            cases += _cases(cell, shape, ("fp32", "bf16"), calls, quick)
    return cases


def grid_cases() -> list[Case]:
    """Every width, batch, length and dtype: an hour of a GPU's time."""
    return [
        case
        for cell in ("lstm", "gru")
        for T in _STEPS
        for H in _WIDTHS
        for N in _BATCHES
        for case in _cases(cell, Shape(T, N, H, H), _DTYPES, _BOTH)
    ]


def _cases(
    cell: str, shape: Shape, dtypes: Iterable[str], kinds: Iterable[str], quick: bool = False
) -> list[Case]:
    kinds = tuple(kinds)
    return [Case(cell, kind, shape, quick, dtype) for dtype in dtypes for kind in kinds]

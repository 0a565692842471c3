"""What is measured on a CPU: the default selection, and the whole product on request.

To measure another shape, add a row to one of the tables below. Every shape is measured in float32
on all of the run's threads; which are by default in other dtypes, or on one thread, the functions
below say. ``--full`` takes every shape in every dtype on one thread and on all.
"""

from __future__ import annotations

from collections.abc import Iterable

from .cases import GATES, Case, Shape

_BI = Shape(100, 16, 256, 256, layers=2, bidirectional=True)
_MIDDLE = Shape(100, 32, 256, 256)

# (shape, whether --quick measures it too)
_DENSE = [
    (Shape(50, 1, 128, 128), True),
    (Shape(200, 1, 512, 512), False),
    (_MIDDLE, True),
    (Shape(35, 20, 650, 650), False),
    (Shape(100, 64, 512, 512), False),
    (Shape(50, 16, 1024, 1024), False),
    (Shape(1000, 4, 64, 64), True),
    (Shape(20, 256, 128, 128), True),
    (_BI, False),
    # One sequence, a few steps at a time: streams.
    (Shape(10, 1, 256, 256), False),
    (Shape(4, 1, 512, 512), False),
]
# Batches of reinforcement learning: trained, by LSTM and GRU.
_LARGE = [
    (Shape(16, 512, 64, 64), False),
    (Shape(8, 512, 1024, 1024), False),
    (Shape(8, 1024, 256, 256), False),
    (Shape(8, 2048, 512, 512), False),
    (Shape(4, 8192, 128, 128), False),
]
_RAGGED = [
    (_MIDDLE, True),
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
_RAGGED_RNN = {_MIDDLE, Shape(20, 256, 128, 128)}
# Of what is dense, measured by default in every dtype.
_EVERY_DTYPE = {
    Shape(50, 1, 128, 128),
    _MIDDLE,
    Shape(35, 20, 650, 650),
    Shape(20, 256, 128, 128),
}
# And on one thread: those, and all of one sequence.
_ONE_THREAD = _EVERY_DTYPE | {shape for shape, _ in _DENSE if shape.N == 1}


def cpu_cases() -> list[Case]:
    """Every case in running order: a training step's oracle serves the cases after it."""
    cases = []
    for table, kinds in (
        (_DENSE, ("training", "inference")),
        (_LARGE, ("training",)),
        (_RAGGED, ("ragged-training", "ragged-inference")),
        (_ONE_STEP, ("step-training", "step-nograd")),
        (_CELL, ("cell-training", "cell-grad", "cell-nograd")),
    ):
        for shape, quick in table:
            for cell in GATES:
                if table is _RAGGED and cell == "rnn" and shape not in _RAGGED_RNN:
                    continue
                if table is _LARGE and cell == "rnn":
                    continue
                cases += _of_shape(cell, kinds, shape, quick and cell != "rnn", table is _DENSE)
    return cases


def _of_shape(
    cell: str, kinds: Iterable[str], shape: Shape, quick: bool, dense: bool
) -> list[Case]:
    """Return a shape's cases in every dtype, on all threads and on one."""
    kinds, cases = tuple(kinds), []
    for dtype, asked in (
        ("fp32", True),
        ("bf16", dense and (cell != "rnn" or shape in _EVERY_DTYPE)),
        ("autocast", dense and shape in _EVERY_DTYPE),
        ("fp16", dense and shape in _EVERY_DTYPE and cell != "rnn"),
    ):
        for threads in (None, 1):
            alone = dtype == "fp32" and shape in _ONE_THREAD and dense and cell != "rnn"
            usual = asked if threads is None else alone
            first = quick and threads is None and _is_quick(cell, shape, dtype)
            cases += [Case(cell, kind, shape, first, dtype, threads, not usual) for kind in kinds]
    return cases


def _is_quick(cell: str, shape: Shape, dtype: str) -> bool:
    return dtype == "fp32" or (cell == "lstm" and shape == _MIDDLE and dtype == "bf16")

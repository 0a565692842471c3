"""What the library has to reach, and whether a run reached it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .harness import CaseResult
from .memory import NOISE_BYTES
from .peers import BASELINE, OURS

_ERROR_BAR = 2e-6
# Below one step of float32 an error is luck: torch.nn's counts as at least that.
_EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Verdict:
    """One row of the bar, measured.

    Attributes:
        unit: How figures are written: "x" a factor, "%" a fraction, "e" a plain small number.
        at_most: Whether the bar is an upper limit.
    """

    title: str
    cases: int
    geomean: float | None = None
    geomean_bar: float | None = None
    worst: float | None = None
    worst_bar: float | None = None
    worst_case: str | None = None
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the row is reached; None where it has no bar or nothing was measured."""
        pairs = [(self.geomean, self.geomean_bar), (self.worst, self.worst_bar)]
        asked = [(value, bar) for value, bar in pairs if value is not None and bar is not None]
        if not asked:
            return None
        return all(value <= bar if self.at_most else value >= bar for value, bar in asked)


def judge(results: Sequence[CaseResult], sgemm_gflops: float) -> list[Verdict]:
    """Return every row of the bar, then the rows that are reported without one."""
    timed = [result for result in results if result.failure is None]

    def speed(
        title: str,
        cells: str,
        kinds: str,
        geomean: float | None = None,
        worst: float | None = None,
        over: str = BASELINE,
    ) -> Verdict:
        chosen = _choose(timed, cells, kinds)
        return verdict_of(title, chosen, lambda result: result.speedup(over), geomean, worst)

    calls, steps = "cell-nograd cell-grad", "step-nograd step-training"
    return [
        speed("LSTM inference", "lstm", "inference", 1.3, 1.0),
        speed("GRU inference", "gru", "inference", 2.0, 1.1),
        speed("LSTM training step", "lstm", "training", 1.3, 1.0),
        speed("GRU training step", "gru", "training", 2.5, 1.2),
        speed("ragged training step, LSTM and GRU", "lstm gru", "ragged-training", 3.5, 2.0),
        speed("LSTMCell and GRUCell call", "lstm gru", calls, 1.5, 1.0),
        speed("layer called for one step", "lstm gru rnn", steps, worst=1.0),
        speed("inference over onnxruntime", "lstm gru", "inference", 1.0, over="onnxruntime"),
        _of_sgemm(timed, sgemm_gflops),
        _memory(timed, "training", "training ragged-training", 1.0),
        *_accuracy(timed),
        speed("RNN inference", "rnn", "inference"),
        speed("RNN training step", "rnn", "training"),
        speed("RNN ragged training step", "rnn", "ragged-training"),
        speed("ragged inference", "lstm gru rnn", "ragged-inference"),
        speed("ragged inference over onnxruntime", "lstm gru rnn", "ragged-inference",
              over="onnxruntime"),
        _memory(timed, "inference", "inference ragged-inference"),
        speed("single cell and its backward", "lstm gru rnn", "cell-training"),
        speed("RNNCell call", "rnn", calls),
        speed("inference over the compiled loop", "lstm gru rnn", "inference",
              over="compiled loop"),
        speed("training step over the compiled loop", "lstm gru rnn", "training",
              over="compiled loop"),
    ]  # fmt: skip


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean, or None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def _choose(results: Sequence[CaseResult], cells: str, kinds: str) -> list[CaseResult]:
    return [
        result
        for result in results
        if result.case.cell in cells.split() and result.case.kind in kinds.split()
    ]


def verdict_of(
    title: str,
    results: Sequence[CaseResult],
    figure: Callable[[CaseResult], float | None],
    geomean_bar: float | None = None,
    worst_bar: float | None = None,
    unit: str = "x",
    at_most: bool = False,
    mean: bool = True,
) -> Verdict:
    """Return a row of the bar: the mean and the worst figure of some results."""
    figures = [(value, r.case.id) for r in results if (value := figure(r)) is not None]
    if not figures:
        return Verdict(title, 0, None, geomean_bar, None, worst_bar, None, unit, at_most)
    worst, case = max(figures) if at_most else min(figures)
    average = geometric_mean(value for value, _ in figures) if mean else None
    return Verdict(title, len(figures), average, geomean_bar, worst, worst_bar, case, unit, at_most)


def _of_sgemm(results: Sequence[CaseResult], sgemm_gflops: float) -> Verdict:
    def fraction(result: CaseResult) -> float | None:
        seconds = result.seconds(OURS)
        return result.case.flops / seconds / 1e9 / sgemm_gflops if seconds else None

    large = [
        result
        for result in _choose(results, "lstm gru", "inference")
        if result.case.shape.N >= 16 and result.case.shape.H >= 512
    ]
    title = "inference, of the sgemm rate, N >= 16, H >= 512"
    return verdict_of(title, large, fraction, worst_bar=0.75, unit="%")


def _memory(
    results: Sequence[CaseResult], title: str, kinds: str, bar: float | None = None
) -> Verdict:
    def ratio(result: CaseResult) -> float | None:
        ours, theirs = (result.peers[name].peak_bytes for name in (OURS, BASELINE))
        if ours is None or theirs is None:
            return None
        # Above torch.nn's by less than two runs differ is not above it.
        return ours / theirs if ours > theirs + NOISE_BYTES else min(ours / theirs, 1.0)

    chosen = _choose(results, "lstm gru rnn", kinds)
    title = f"peak memory of {title}, of torch.nn's"
    return verdict_of(title, chosen, ratio, worst_bar=bar, unit="%", at_most=True, mean=False)


def _accuracy(results: Sequence[CaseResult]) -> tuple[Verdict, Verdict]:
    def errors(result: CaseResult) -> tuple[float, float] | None:
        ours, theirs = (result.peers[name].error for name in (OURS, BASELINE))
        return None if ours is None or theirs is None else (ours, theirs)

    def where_torch_is_good(result: CaseResult) -> float | None:
        pair = errors(result)
        return pair[0] if pair and pair[1] <= _ERROR_BAR else None

    def ratio(result: CaseResult) -> float | None:
        pair = errors(result)
        return pair[0] / max(pair[1], _EPSILON) if pair else None

    return (
        verdict_of("error against float64, where torch.nn's is within 2e-6", results,
                 where_torch_is_good, worst_bar=_ERROR_BAR, unit="e", at_most=True, mean=False),
        verdict_of("error against float64, over torch.nn's (or epsilon)", results,
                 ratio, worst_bar=2.0, at_most=True, mean=False),
    )  # fmt: skip

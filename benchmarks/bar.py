"""What the library has to reach, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .cases import Shape
from .harness import CaseResult
from .memory import NOISE_BYTES
from .peers import BASELINE, OURS
from .verdicts import Verdict, geometric_mean, verdict_of

__all__ = ["Verdict", "geometric_mean", "has_tiles", "judge", "verdict_of"]

_ERROR_BAR = 2e-6
# Below one step of float32 an error is luck: torch.nn's counts as at least that.
_EPSILON = float(torch.finfo(torch.float32).eps)
_HALF = "bf16 autocast"
_SMALL, _LARGE = 8, 512  # sequences of a batch: below one tile's worth; reinforcement learning's
_NONE = (None, None)

Bar = tuple[float | None, float | None]  # the least geometric mean, and the least of any case


@dataclass(frozen=True)
class Asked:
    """What is asked of a group of cases, on a machine with tile registers and on one without.

    Attributes:
        cells, kinds, dtypes: Names of those in the group, apart by spaces.
        tiles, vectors: The bar with AMX, and without.
        threads: None for cases on the run's threads.
        sizes: Which shapes are in the group.
        tiles_from: With AMX, the bar is for batches from this on; smaller ones are reported.
    """

    title: str
    cells: str
    kinds: str
    tiles: Bar = _NONE
    vectors: Bar = _NONE
    dtypes: str = "fp32"
    over: str = BASELINE
    threads: int | None = None
    sizes: Callable[[Shape], bool] = lambda shape: True
    tiles_from: int = 1

    def takes(self, result: CaseResult) -> bool:
        case = result.case
        return (
            case.cell in self.cells.split()
            and case.kind in self.kinds.split()
            and case.dtype in self.dtypes.split()
            and case.threads == self.threads
            and self.sizes(case.shape)
        )


def _usual(shape: Shape) -> bool:
    return shape.N < _LARGE


_ALL = "lstm gru rnn"
_CALLS, _STEPS = "cell-nograd cell-grad", "step-nograd step-training"
_EVERY_KIND = f"inference training ragged-inference ragged-training cell-training {_CALLS} {_STEPS}"

# fmt: off
_ASKED = (
    Asked("LSTM float32 inference", "lstm", "inference", (1.5, 1.2), (1.2, 0.97),
          tiles_from=_SMALL),
    Asked("LSTM float32 training step", "lstm", "training", (1.9, 1.4), (1.25, 0.97),
          sizes=_usual, tiles_from=_SMALL),
    Asked("GRU and RNN float32 inference", "gru rnn", "inference", (3.0, 1.8), (2.0, 1.1)),
    Asked("GRU and RNN float32 training step", "gru rnn", "training", (4.0, 1.8), (2.5, 1.2),
          sizes=_usual),
    Asked("LSTM bfloat16 inference", "lstm", "inference", (2.0, 1.3), (1.3, 1.0), _HALF),
    Asked("LSTM bfloat16 training step", "lstm", "training", (2.1, 1.5), (1.3, 1.0), _HALF),
    Asked("GRU and RNN bfloat16 inference", "gru rnn", "inference", (4.0, 2.0), (2.0, 1.2), _HALF),
    Asked("GRU and RNN bfloat16 training step", "gru rnn", "training", (4.0, 2.0), (2.5, 1.2),
          _HALF),
    Asked("float16 inference and training step", _ALL, "inference training", (None, 1.0),
          (None, 1.0), "fp16"),
    Asked("float32 inference over onnxruntime", _ALL, "inference", (1.5, 1.0), (1.15, 0.95),
          over="onnxruntime"),
    Asked("float32 training step, N = 512 to 8192", "lstm gru", "training", (1.4, 1.1),
          (1.15, 1.0), sizes=lambda shape: shape.N >= _LARGE),
    Asked("float32 on one thread", _ALL, _EVERY_KIND, (None, 1.0), (None, 0.95), threads=1),
    Asked("ragged training step, LSTM and GRU", "lstm gru", "ragged-training", (3.5, 2.0),
          (3.5, 2.0)),
    Asked("LSTMCell and GRUCell call", "lstm gru", _CALLS, (1.5, 1.0), (1.5, 1.0)),
    Asked("layer called for one step", _ALL, _STEPS, (None, 1.0), (None, 1.0)),
)
_REPORTED = (
    Asked("RNN ragged training step", "rnn", "ragged-training"),
    Asked("ragged inference", _ALL, "ragged-inference"),
    Asked("ragged inference over onnxruntime", _ALL, "ragged-inference", over="onnxruntime"),
    Asked("ragged in bfloat16", _ALL, "ragged-inference ragged-training", dtypes=_HALF),
    Asked("bfloat16 on one thread", _ALL, _EVERY_KIND, dtypes=_HALF, threads=1),
    Asked("single cell and its backward", _ALL, "cell-training"),
    Asked("RNNCell call", "rnn", _CALLS),
    Asked("inference over the compiled loop", "lstm gru", "inference", over="compiled loop"),
    Asked("training step over the compiled loop", "lstm gru", "training", over="compiled loop"),
)
# fmt: on


def has_tiles(machine: dict[str, Any]) -> bool:
    """Return whether the bar is that of a machine with AMX, from a run's ``machine``."""
    return "amx_tile" in machine.get("simd", ())


def judge(results: Sequence[CaseResult], sgemm_gflops: float, tiles: bool = False) -> list[Verdict]:
    """Return every row of the bar, then the rows that are reported without one.

    Args:
        results: What was measured.
        sgemm_gflops: The rate of float32 products in the same run.
        tiles: Whether the machine has AMX, of which more is asked.
    """
    timed = [result for result in results if result.failure is None]
    return [
        *(verdict for asked in _ASKED for verdict in _judged(asked, timed, tiles)),
        _of_sgemm(timed, sgemm_gflops),
        _memory(timed, "training", "training ragged-training"),
        _memory(timed, "inference", "inference ragged-inference"),
        *_accuracy(timed),
        *(verdict for asked in _REPORTED for verdict in _judged(asked, timed, tiles)),
    ]


def _judged(asked: Asked, results: Sequence[CaseResult], tiles: bool) -> list[Verdict]:
    def speedup(result: CaseResult) -> float | None:
        return result.speedup(asked.over)

    chosen = [result for result in results if asked.takes(result)]
    if not tiles or asked.tiles_from == 1:
        bar = asked.tiles if tiles else asked.vectors
        return [verdict_of(asked.title, chosen, speedup, *bar)]
    small = [result for result in chosen if asked.tiles_from > result.case.shape.N]
    large = [result for result in chosen if result not in small]
    title = f"{asked.title}, N"
    return [
        verdict_of(f"{title} >= {asked.tiles_from}", large, speedup, *asked.tiles),
        verdict_of(f"{title} < {asked.tiles_from}", small, speedup),
    ]


def _choose(results: Sequence[CaseResult], cells: str, kinds: str) -> list[CaseResult]:
    """Return float32's results on the run's threads."""
    asked = Asked("", cells, kinds)
    return [result for result in results if asked.takes(result)]


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


def _memory(results: Sequence[CaseResult], title: str, kinds: str) -> Verdict:
    def ratio(result: CaseResult) -> float | None:
        ours, theirs = (result.peers[name].peak_bytes for name in (OURS, BASELINE))
        if ours is None or theirs is None:
            return None
        # Above torch.nn's by less than two runs differ is not above it.
        return ours / theirs if ours > theirs + NOISE_BYTES else min(ours / theirs, 1.0)

    chosen = [result for result in results if result.case.kind in kinds.split()]
    title = f"peak memory of {title}, of torch.nn's"
    return verdict_of(title, chosen, ratio, worst_bar=1.0, unit="%", at_most=True, mean=False)


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

    results = [result for result in results if result.case.dtype == "fp32"]
    return (
        verdict_of("error against float64, where torch.nn's is within 2e-6", results,
                 where_torch_is_good, worst_bar=_ERROR_BAR, unit="e", at_most=True, mean=False),
        verdict_of("error against float64, over torch.nn's (or epsilon)", results,
                 ratio, worst_bar=1.0, at_most=True, mean=False),
    )  # fmt: skip

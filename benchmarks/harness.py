"""Runs the cases: every peer's answer is checked, then all peers are timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .machine import DISTURBING, OtherWork, wait_for_idle_cores
from .machine_cuda import matmul_precision
from .memory import PeakMemory
from .memory_cuda import CudaMemory
from .peers import BASELINE, OURS, PEERS, Peer, Prepared, Settings, UnavailableError
from .peers_cuda import CUDA_PEERS
from .timing import Timing, time_interleaved
from .workload import Work, build

# Largest difference from torch.nn, relative to the largest element of the tensor: of outputs, of
# gradients. Rounding in sums over every step and row stays below (both sides round, and carry it
# from step to step), a wrong gate or a dropped step far above.
_TOLERANCE = {
    "fp32": (2e-5, 1e-4),
    "tf32": (5e-3, 2e-2),
    "fp16": (5e-3, 2e-2),
    "bf16": (4e-2, 1.5e-1),
    "autocast": (4e-2, 1.5e-1),
}

_CELL_SHARE = 0.4  # of the seconds of other cases: calls of microseconds settle sooner
# Of a CPU's cases in other dtypes or on one thread: two peers instead of four.
_PAIR_SHARE = 0.4


class WrongAnswerError(Exception):
    """A peer's answer is wrong; its figures would mean nothing."""


@dataclass
class PeerResult:
    """One peer in one case: its timing, or why there is none."""

    skipped: str | None = None
    timing: Timing | None = None
    error: float | None = None  # against float64, see relative_error
    peak_bytes: int | None = None
    activation_bytes: int | None = None  # kept from forward to backward; GPU only
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class CaseResult:
    """One case: every peer's result, or why the case failed."""

    case: Case
    peers: dict[str, PeerResult] = field(default_factory=dict)
    failure: str | None = None
    other_work: dict[str, float] = field(default_factory=dict)  # while it was timed

    @property
    def disturbed(self) -> bool:
        """Whether other work on the cores was enough to spoil the timing."""
        return sum(self.other_work.values()) > DISTURBING

    @property
    def level(self) -> str | None:
        """The SIMD level that ours ran at, where it was noted."""
        ours = self.peers.get(OURS)
        return ours.notes.get("level") if ours else None

    def seconds(self, peer: str) -> float | None:
        """Median seconds per call, or None where the peer was not timed."""
        result = self.peers.get(peer)
        return result.timing.median_s if result and result.timing else None

    def speedup(self, over: str = BASELINE, of: str = OURS) -> float | None:
        """How many times faster than ``over`` it is, or None where one of both was not timed."""
        ours, theirs = self.seconds(of), self.seconds(over)
        return theirs / ours if ours and theirs else None


def relative_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the worst tensor's largest difference relative to its largest expected element."""
    return max(
        _difference(actual[name], reference.double()) for name, reference in expected.items()
    )


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    difference = (actual.double() - expected).abs().max() / expected.abs().max()
    return difference.nan_to_num(nan=float("inf")).item()


class Harness:
    """Measures one case after the other."""

    def __init__(self, settings: Settings, memory: PeakMemory | CudaMemory) -> None:
        self._settings = settings
        self._peers = CUDA_PEERS if settings.device.type == "cuda" else PEERS
        self._memory = memory
        self._oracle: tuple[Case, dict[str, Tensor]] | None = None

    def run(self, case: Case) -> CaseResult:
        """Measure one case with every peer that takes it."""
        result = CaseResult(case)
        try:
            with matmul_precision(case.dtype), _threads(case.threads):
                self._measure(case, result)
        except WrongAnswerError as failure:
            result.failure = str(failure)
        except torch.OutOfMemoryError as failure:
            result.failure = f"out of memory: {str(failure).splitlines()[0]}"
            self._oracle = None
            torch.cuda.empty_cache()
        return result

    def _measure(self, case: Case, result: CaseResult) -> None:
        work = build(case, self._settings.device)
        with torch.set_grad_enabled(case.grad):
            prepared = self._prepare(work, result)
            calls = {name: ready.call for name, ready in prepared.items()}
            timings = self._time(calls, self._seconds(case), result) if calls else {}
        for name, timing in timings.items():
            result.peers[name].timing = timing
        for name in (BASELINE, OURS):
            if result.seconds(name) and self._takes_memory(case):
                result.peers[name].peak_bytes = self._memory.measure(case, name)
                if isinstance(self._memory, CudaMemory):
                    kept = self._memory.activations(case, name)
                    result.peers[name].activation_bytes = kept

    def _paired(self, case: Case) -> bool:
        return self._settings.device.type == "cpu" and (case.dtype != "fp32" or bool(case.threads))

    def _seconds(self, case: Case) -> float:
        share = _CELL_SHARE if case.single_cell else _PAIR_SHARE if self._paired(case) else 1.0
        return self._settings.seconds * share

    def _takes_memory(self, case: Case) -> bool:
        """Whether a process is started for each peak; a thread's is that of all."""
        if case.single_cell or case.threads:
            return False
        return self._settings.full or not self._paired(case)

    def _time(
        self, calls: Mapping[str, Callable[[], Any]], seconds: float, result: CaseResult
    ) -> dict[str, Timing]:
        """Time the calls; again, while waiting is left, if other work disturbed them."""
        start, left = time.perf_counter(), self._settings.wait_seconds
        while True:
            wait_for_idle_cores(left - (time.perf_counter() - start))
            watch, begin = OtherWork(), time.perf_counter()
            timings = time_interleaved(calls, self._settings.device, seconds)
            result.other_work = watch.shares()
            took = time.perf_counter() - begin
            waited = time.perf_counter() - start - took
            if not result.disturbed or waited >= left:
                break
        # What an undisturbed case takes is the run's own time, not waiting.
        self._settings.wait_seconds = max(left - waited, 0.0)
        return timings

    def _prepare(self, work: Work, result: CaseResult) -> dict[str, Prepared]:
        """Prepare the peers and check what they compute; fills in their errors."""
        prepared: dict[str, Prepared] = {}
        oracle, dtype = self._oracle_of(work), work.case.dtype
        expected: dict[str, Tensor] = {}
        for peer in self._peers:
            entry = result.peers[peer.name] = PeerResult()
            ready = self._prepare_peer(peer, work, entry)
            if ready is None:
                continue
            if ready.same_problem:
                answer = ready.named(ready.call())
                if peer.name == BASELINE:
                    expected, wrong = _trusted(answer, oracle, dtype)
                    entry.notes |= {"wrong": wrong} if wrong else {}
                elif not expected:  # torch.nn cannot run it
                    expected = {name: oracle[name] for name in answer}
                entry.error = relative_error(answer, {name: oracle[name] for name in expected})
                try:
                    if peer.name != BASELINE:
                        _check(peer.name, answer, expected, dtype)
                except WrongAnswerError as failure:
                    if not peer.foreign:
                        raise
                    entry.skipped = str(failure)
                    continue
            else:
                ready.call()
            prepared[peer.name] = ready
        return prepared

    def _prepare_peer(self, peer: Peer, work: Work, entry: PeerResult) -> Prepared | None:
        entry.skipped = peer.refuses(work.case, self._settings)
        if entry.skipped is not None:
            return None
        try:
            ready = peer.prepare(work, self._settings)
        except UnavailableError as reason:
            entry.skipped = str(reason)
            return None
        entry.notes = ready.notes
        return ready

    def _oracle_of(self, work: Work) -> dict[str, Tensor]:
        """Return torch.nn's answer in float64; a training step's serves the cases beside it too."""
        case = work.case
        if self._oracle is None or not _covers(self._oracle[0], case):
            double = work.double()
            call = double.caller(double.module, double.module.parameters())
            self._oracle = case, double.named(call())
        return self._oracle[1]


def _covers(known: Case, case: Case) -> bool:
    what = attrgetter("cell", "shape", "ragged", "dtype")
    return what(known) == what(case) and (known.backward or not case.backward)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Have torch use this many threads in this block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trusted(
    baseline: Mapping[str, Tensor], oracle: Mapping[str, Tensor], dtype: str
) -> tuple[dict[str, Tensor], str]:
    """Return what the others have to compute, and where torch.nn itself is wrong.

    That is torch.nn's own answer. Where one of its outputs is wrong it is float64's outputs, and
    likewise the gradients: the others of them are no yardstick either.
    """
    expected, wrong = {}, []
    for gradients in (False, True):
        names = [name for name in baseline if name.startswith("d") == gradients]
        off = [
            f"{name} is off by {difference:.2g} of its largest element"
            for name in names
            if not (difference := _difference(baseline[name], oracle[name].double()))
            <= _tolerance(name, dtype)
        ]
        expected |= {name: (oracle if off else baseline)[name] for name in names}
        wrong += off
    return expected, ", ".join(wrong)


def _tolerance(name: str, dtype: str) -> float:
    return _TOLERANCE[dtype][name.startswith("d")]


def _check(
    peer: str, answer: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: str
) -> None:
    missing = expected.keys() - answer.keys()
    if missing:
        raise WrongAnswerError(f"{peer} returns no {', '.join(sorted(missing))}")
    for name, tensor in expected.items():
        difference = _difference(answer[name], tensor.double())
        if not difference <= _tolerance(name, dtype):
            raise WrongAnswerError(
                f"{peer}: {name} is off by {difference:.2g} of its largest element"
            )

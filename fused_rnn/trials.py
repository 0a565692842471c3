"""Trying the ways to run one problem: operands made up for it, their errors, their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from fused_rnn import functional
from fused_rnn.backends import (
    BACKENDS,
    TORCH,
    Backend,
    Problem,
    reference,
    torch_can_run,
    use_way,
)
from fused_rnn.cells import CELLS

__all__ = [
    "LIMITS",
    "Errors",
    "Run",
    "Trial",
    "Workload",
    "allowed",
    "check",
    "clock",
    "refusal",
    "truth_of",
    "try_all",
]

# How far a way may be off from float64, relative to a tensor's largest element: its results, its
# gradients. Sums over every step and row stay below; a wrong gate or a step left out is far above.
LIMITS = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-5, 1e-4),
    torch.float16: (5e-3, 2e-2),
    torch.bfloat16: (4e-2, 1.5e-1),
}
_SECONDS = 1.0  # of samples for each problem, all ways together
_LEAST, _MOST = 4, 50  # samples of each way


class Run(NamedTuple):
    results: list[Tensor]
    gradients: list[Tensor]  # in training


class Errors(NamedTuple):
    results: float
    gradients: float


@dataclass
class Trial:
    """One way to run one problem.

    Attributes:
        way: ``"torch"``, or a backend and the way it goes
        seconds: median of a call, a training step with its backward; ``None`` if it was not timed
        error: the largest of results and gradients against float64, relative to a tensor's largest
            element; ``None`` if it did not run
        failure: why it is not to be chosen; ``None`` if it may be
    """

    way: str
    seconds: float | None = None
    error: float | None = None
    failure: str | None = None


class Workload:
    """A call that makes a problem: random operands of its sizes, the same ones every time.

    Ragged batches have lengths from all of T down to half of it, spread evenly.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = p = problem
        self._random = torch.Generator().manual_seed(0)
        gates, real = CELLS[p.cell].gates, p.P or p.H
        self._rows = []
        for layer in range(p.layers):
            width = p.I if layer == 0 else real * p.directions
            sizes = [(gates * p.H, width), (gates * p.H, real), (gates * p.H,), (gates * p.H,)]
            sizes += [(p.P, p.H)] if p.P else []
            for _ in range(p.directions):
                self._rows.append([self._draw(*size, scale=p.H**-0.5) for size in sizes])
        self._x = self._draw(*((p.N, p.I) if p.width == 0 else (p.T, p.N, p.I)))
        self._states = [self._draw(p.N, p.H) for _ in range(2)]
        self._lengths = torch.linspace(p.T, max(1, p.T // 2), p.N, device="cpu").round().long()
        self._given: list[Tensor] = []

    def _draw(self, *size: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(size, generator=self._random, dtype=torch.float32, device="cpu")
        return ((2 * values - 1) * scale).to(self.problem.device, self.problem.dtype)

    def _packed(self) -> Tensor:
        """Return the input as the call takes it."""
        packed = self.problem.ragged and not self.problem.cut
        return pack_padded_sequence(self._x, self._lengths).data if packed else self._x

    def caller(self, dtype: torch.dtype | None = None) -> Callable[[], Run]:
        """Return what makes the call, by the way that was asked for."""
        training = self.problem.training

        def leaf(t: Tensor) -> Tensor:
            return t.detach().to(dtype or t.dtype).requires_grad_(training)

        x, rows = leaf(self._packed()), [[leaf(w) for w in row] for row in self._rows]
        leaves = [x, *(w for row in rows for w in row)]
        forward = self._step(x, rows[0]) if self.problem.width == 0 else self._layers(x, rows)

        def call() -> Run:
            with torch.set_grad_enabled(training):
                results = list(_tensors(forward()))
                if not training:
                    return Run(results, [])
                for r in results[len(self._given) :]:
                    self._given.append(self._draw(*r.shape))
                given = [g.to(r.dtype) for g, r in zip(self._given, results, strict=True)]
                return Run(results, list(torch.autograd.grad(results, leaves, given)))

        return call

    def _step(self, x: Tensor, row: list[Tensor]) -> Callable[[], Any]:
        p, (h, c) = self.problem, (t.to(x.dtype) for t in self._states)
        if p.cell == "lstm":
            return partial(functional.lstm_cell, x, (h, c), *row)
        if p.cell == "gru":
            return partial(functional.gru_cell, x, h, *row)
        w_ih, w_hh, b_ih, b_hh = row
        return partial(functional.rnn_cell, x, h, w_ih, w_hh, b_ih, b_hh, _nonlinearity(p))

    def _layers(self, x: Tensor, rows: list[list[Tensor]]) -> Callable[[], Any]:
        p = self.problem
        options: dict[str, Any] = {"bidirectional": p.directions == 2}
        if p.cut:
            options["lengths"] = self._lengths
        elif p.ragged:
            options["batch_sizes"] = pack_padded_sequence(self._x, self._lengths).batch_sizes
        options |= {"recompute": p.recompute, "return_states": p.states}
        if p.cell in ("lstm", "gru"):
            return partial(getattr(functional, p.cell), x, None, rows, **options)
        return partial(functional.rnn, x, None, rows, nonlinearity=_nonlinearity(p), **options)


def _nonlinearity(p: Problem) -> Any:
    return p.cell.removeprefix("rnn_")


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    else:
        for part in found:
            yield from _tensors(part)


def refusal(problem: Problem) -> str | None:
    """Return None, or why the ways to run a problem are not measured."""
    if problem.transform is not None:
        return f"{problem.transform} needs torch's own operators"
    if problem.cell not in CELLS:
        return "variants of the cells have one kernel at most"
    if problem.stored is not None:
        return "layers with int8 or bfloat16 weights have one kernel"
    if problem.marked:
        return "one way alone goes by lengths and resets that the host has not read"
    if problem.dtype not in LIMITS:
        return f"no kernel for {problem.dtype}"
    if min(problem.T, problem.N, problem.I, problem.H) < 1:
        return "there is nothing to compute"
    return None


@torch.inference_mode(False)
def try_all(problem: Problem) -> list[Trial]:
    """Check every way to run a problem, and time those that are right, in turns."""
    work = Workload(problem)
    truth = truth_of(work)
    trials: dict[str, Trial] = {}
    if torch_can_run(problem):
        trials[TORCH], _ = check(work, TORCH, truth)
    kernels = [b for b in BACKENDS.values() if b is not reference and b.available() is None]
    for backend in kernels:
        reason = backend.supports(problem)
        if reason is not None:
            trials[backend.name] = Trial(backend.name, failure=f"refused: {reason}")
            continue
        for way in _ways(backend, problem, {}) or [backend.name]:
            trials[way], _ = check(work, way, truth)
    _time(work, trials.values())
    for backend in kernels:
        while True:
            seconds = {t.way: t.seconds for t in _right(trials.values())}
            further = [w for w in _ways(backend, problem, seconds) if w not in trials]
            if not seconds or not further:
                break
            for way in further:
                trials[way], _ = check(work, way, truth)
            best = min(_right(trials.values()), key=_seconds)
            _time(work, [best, *(trials[way] for way in further)])
    return list(trials.values())


def truth_of(work: Workload) -> Run:
    """Return what a problem comes to in float64, by torch.nn or else by the reference."""
    with use_way(TORCH if torch_can_run(work.problem) else reference.name):
        return work.caller(torch.float64)()


def _right(trials: Iterable[Trial]) -> list[Trial]:
    return [t for t in trials if t.seconds is not None]


def _seconds(trial: Trial) -> float:
    return trial.seconds or float("inf")


def _ways(backend: Backend, problem: Problem, seconds: dict[str, Any]) -> list[str]:
    """Return the ways of a backend that there are beside those which took so many seconds."""
    ask = getattr(backend, "ways", None)
    if ask is None:
        return []
    prefix = f"{backend.name} "
    own = {w.removeprefix(prefix): s for w, s in seconds.items() if w.startswith(prefix)}
    return [prefix + way for way in ask(problem, own)] if own or not seconds else []


def allowed(problem: Problem, way: str) -> Errors:
    """Return how far a way may be off; TF32 rounds the operands of products as float16 would."""
    dtype = problem.dtype
    if dtype is torch.float32 and problem.device.type == "cuda":
        cuda = torch.backends.cuda.matmul.fp32_precision == "tf32"
        settings: Any = torch.backends.cudnn.rnn
        cudnn = way == TORCH and settings.fp32_precision == "tf32"
        dtype = torch.float16 if cuda or cudnn else dtype
    return Errors(*LIMITS[dtype])


def check(work: Workload, way: str, truth: Run) -> tuple[Trial, Errors | None]:
    """Run a problem by a way, and hold it against the truth; also return by how much it is off."""
    trial = Trial(way)
    try:
        with use_way(way):
            found = work.caller()()
        errors = Errors(*(_error(a, b) for a, b in zip(found, truth, strict=True)))
    except Exception as error:  # whatever a way raises is a finding
        said = str(error).strip().splitlines() or [""]
        trial.failure = f"failed: {type(error).__name__}: {said[0]}"
        _check_alive(work.problem.device, way)
        return trial, None
    trial.error = max(errors)
    limits = allowed(work.problem, way)
    if not all(error <= limit for error, limit in zip(errors, limits, strict=True)):
        trial.failure = f"WRONG: results off by {errors[0]:.0e}, gradients by {errors[1]:.0e}"
    return trial, errors


def _check_alive(device: torch.device, way: str) -> None:
    """Raise where a failure has taken the device with it: then all that follows would fail too."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise RuntimeError(
            f"fused_rnn.tune: {device} is lost to this process since {way!r} ran on it, and "
            f"nothing was kept: {error}"
        ) from error


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Return the largest difference, of a tensor's largest element; infinite where it is NaN."""
    worst = 0.0
    for a, b in zip(found, truth, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            off = (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)
            worst = max(worst, off.nan_to_num(nan=float("inf"), posinf=float("inf")).item())
    return worst


def _time(work: Workload, trials: Iterable[Trial]) -> None:
    """Fill in the median times of those that may be chosen, taken in turns."""
    chosen = [t for t in trials if t.failure is None]
    samples: dict[str, list[float]] = {t.way: [] for t in chosen}
    calls = {t.way: work.caller() for t in chosen}
    end = time.perf_counter() + _SECONDS
    for round_ in range(_MOST):
        if round_ >= _LEAST and time.perf_counter() > end:
            break
        for way, call in calls.items():
            with use_way(way):
                samples[way].append(clock(call, work.problem.device))
    for trial in chosen:
        trial.seconds = statistics.median(samples[trial.way][1:])  # the first fills caches


def clock(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

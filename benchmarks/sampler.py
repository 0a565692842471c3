"""Random shapes against torch.nn, the slowest first: slow spots that no table thought of.

A case that looks slow is timed twice more, and counts with the median of the three, so that what is
listed is no noise.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn

from .baseline import refusal
from .document import heading, write
from .draws import DTYPES, Draw, draws, make_arguments, make_call, make_layer
from .peers import BASELINE, OURS, Settings
from .text import BOLD, RED, Paint, duration, ratio
from .timing import time_interleaved
from .units import level_of
from .verdicts import Verdict, geometric_mean

_SECONDS, _AGAIN_SECONDS = 0.2, 0.6  # of samples, at first and where it looks slow
_LOOKS_SLOW, _TRIES = 1.0, 3
_SLOW, _VERY_SLOW = 0.97, 0.9
_SLOW_SHARE = 0.02
_PATIENCE = 3.0  # seconds of one call, beyond which it is not repeated
_LISTED = 20
# Largest difference from torch.nn of y, relative to its largest element, before float64 is asked.
_TOLERANCE = {"fp64": 1e-10, "fp32": 5e-5}
_HALF_TOLERANCE = 5e-2


@dataclass
class Sample:
    """One drawn problem, timed.

    Attributes:
        attempts: Seconds of torch.nn and of ours: medians of each time that it was timed.
        ran: The backends and the SIMD level that ran.
        wrong: Empty, or what is wrong with our answer.
    """

    draw: Draw
    attempts: list[tuple[float, float]] = field(default_factory=list)
    ran: str = ""
    wrong: str = ""

    @property
    def speedup(self) -> float:
        """How many times faster than torch.nn: the median of the attempts."""
        return statistics.median(theirs / ours for theirs, ours in self.attempts)


def measure(draw: Draw, settings: Settings) -> Sample:
    """Check one problem's output, then time it in turns with torch.nn's."""
    arguments = make_arguments(draw)
    layers = {name: make_layer(draw, of) for name, of in ((BASELINE, nn), (OURS, fused_rnn))}
    calls = {name: make_call(draw, layer, arguments) for name, layer in layers.items()}
    sample = Sample(draw, ran=_what_ran(draw, layers[OURS], arguments))
    answers, once = {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        answers[name] = call()
        once[name] = time.perf_counter() - start
    sample.wrong = _wrong(draw, answers, arguments)
    if max(once.values()) > _PATIENCE:
        sample.attempts.append((once[BASELINE], once[OURS]))
        return sample
    for attempt in range(_TRIES):
        seconds = _AGAIN_SECONDS if attempt else _SECONDS
        timings = time_interleaved(calls, settings.device, seconds)
        sample.attempts.append((timings[BASELINE].median_s, timings[OURS].median_s))
        if attempt == 0 and sample.speedup >= _LOOKS_SLOW:
            break
    return sample


def _refused(draw: Draw) -> str | None:
    return refusal(draw.cell, draw.dtype, draw.proj_size > 0, draw.ragged)


def _what_ran(draw: Draw, layer: nn.Module, arguments: tuple[Any, ...]) -> str:
    recast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=draw.dtype == "autocast")
    with torch.set_grad_enabled(draw.training), recast:
        rows = list(fused_rnn.explain(layer, *arguments))
    backends = sorted({str(row.backend) for row in rows})
    return ", ".join([*backends, *filter(None, [level_of(rows)])])


def _wrong(draw: Draw, answers: dict[str, Tensor], arguments: tuple[Any, ...]) -> str:
    """Return what is wrong with our y; where both differ, the one nearer to float64 is right."""
    tolerance = _TOLERANCE.get(draw.dtype, _HALF_TOLERANCE)
    ours, theirs = answers[OURS].double(), answers[BASELINE].double()
    if _difference(ours, theirs) <= tolerance:
        return ""
    double = Draw(**(asdict(draw) | {"dtype": "fp64", "training": False}))
    layer = make_layer(draw, nn).double()
    widened = [_double(argument) for argument in arguments]
    oracle = make_call(double, layer, tuple(widened))()
    error, other = _difference(ours, oracle), _difference(theirs, oracle)
    if error <= max(tolerance, other):
        return ""
    return f"y is off by {error:.2g} of its largest element, torch.nn's by {other:.2g}"


def _double(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "batch_sizes"):
        return tuple(part.double() for part in value)
    return value.double()


def _difference(actual: Tensor, expected: Tensor) -> float:
    difference = (actual - expected).abs().max() / expected.abs().max()
    return difference.nan_to_num(nan=float("inf")).item()


def run(settings: Settings, seconds: float, seed: int, path: Path | None) -> bool:
    """Sample for so many seconds, print and write what was found; return whether all are right."""
    samples: list[Sample] = []
    passed_over: set[str] = set()
    end = time.perf_counter() + seconds
    try:
        for number, draw in enumerate(draws(seed), start=1):
            refused = _refused(draw)
            if refused is not None:
                passed_over.add(f"passed over: {draw.cell} {draw.dtype}: {refused}")
                continue
            samples.append(measure(draw, settings))
            if number % 25 == 0:
                left = max(end - time.perf_counter(), 0.0)
                print(f"{number} samples, {left:.0f} s left", file=sys.stderr, flush=True)
            if time.perf_counter() >= end:
                break
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    for line in sorted(passed_over):
        print(line)
    print("\n".join(render(samples, seed, Paint(sys.stdout.isatty()))))
    if path is not None:
        write(heading(settings, sample_seconds=seconds, seed=seed) | as_json(samples), path)
    return not any(sample.wrong for sample in samples)


def as_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the samples as a result file has them, in the order in which they were drawn."""
    return {
        "samples": [
            {
                "label": sample.draw.label,
                "speedup": sample.speedup,
                "attempts": [list(attempt) for attempt in sample.attempts],
                "flops": sample.draw.flops,
                "ran": sample.ran,
                "wrong": sample.wrong,
                "draw": asdict(sample.draw),
            }
            for sample in samples
        ]
    }


def read(document: dict[str, Any]) -> list[Sample]:
    """Return the samples that :func:`as_json` wrote."""
    return [
        Sample(
            Draw(**entry["draw"]),
            [(theirs, ours) for theirs, ours in entry["attempts"]],
            entry["ran"],
            entry["wrong"],
        )
        for entry in document["samples"]
    ]


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Return the bar's two rows of random shapes: the slowest, and the share of slow ones."""
    if not samples:
        return []
    slowest = min(samples, key=lambda sample: sample.speedup)
    mean = geometric_mean(sample.speedup for sample in samples)
    return [
        Verdict(
            "random shapes", len(samples), mean, None, slowest.speedup, _VERY_SLOW,
            slowest.draw.label,
        ),
        Verdict(
            f"random shapes below {_SLOW}x, of all", len(samples), worst=share(samples, _SLOW),
            worst_bar=_SLOW_SHARE, unit="%", at_most=True,
        ),
    ]  # fmt: skip


def share(samples: Sequence[Sample], below: float) -> float:
    """Return the share of the samples whose speed-up is below a figure."""
    return sum(sample.speedup < below for sample in samples) / len(samples)


def render(samples: Sequence[Sample], seed: int, paint: Paint) -> list[str]:
    """Return the slowest samples first, then the means and shares."""
    if not samples:
        return ["no samples"]
    slowest = sorted(samples, key=lambda sample: sample.speedup)
    slow = sum(sample.speedup < _SLOW for sample in samples)
    heads = f"  {'speed-up':>8}{'torch.nn':>10}{'fused_rnn':>11}  what (what ran)"
    lines = [paint(f"Random shapes of seed {seed}, the slowest first", BOLD), heads]
    for sample in slowest[: max(_LISTED, slow)]:
        theirs, ours = sample.attempts[-1]
        text = ratio(sample.speedup, 10, paint) + f"{duration(theirs):>10}{duration(ours):>11}  "
        lines.append(text + f"{sample.draw.label} ({sample.ran})")
    lines += [""] + [
        paint(f"  WRONG: {sample.draw.label}: {sample.wrong}", RED)
        for sample in samples
        if sample.wrong
    ]
    mean = geometric_mean(sample.speedup for sample in samples) or 0.0
    lines.append(
        f"  {len(samples)} samples: {mean:#.3g}x in the geometric mean; "
        f"{share(samples, _SLOW):.1%} below {_SLOW}x, {share(samples, _VERY_SLOW):.1%} below "
        f"{_VERY_SLOW}x"
    )
    return lines + _means(samples)


def _means(samples: Sequence[Sample]) -> list[str]:
    """Return the mean and the worst of each cell, dtype and pass."""
    parts: dict[str, Callable[[Draw], bool]] = {}
    for cell in ("lstm", "gru", "rnn"):
        parts[cell] = lambda draw, cell=cell: draw.cell == cell
    for dtype in DTYPES:
        parts[dtype] = lambda draw, dtype=dtype: draw.dtype == dtype
    parts |= {"inference": lambda draw: not draw.training, "training": lambda draw: draw.training}
    lines = []
    for name, takes in parts.items():
        chosen = [sample.speedup for sample in samples if takes(sample.draw)]
        if chosen:
            mean = geometric_mean(chosen) or 0.0
            lines.append(
                f"  {name:<12}{len(chosen):>5}  {mean:#.3g}x, {min(chosen):#.3g}x at worst"
            )
    return lines

"""How cost grows: one size at a time, the time for a unit of work beside torch.nn's.

Where cost grows as work does, GFLOP/s stay level, and so do nanoseconds for a row of a step as long
as rows keep their width.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fused_rnn

from .cases import DTYPE_TITLES, Case, Shape
from .document import heading, write
from .peers import BASELINE, OURS, Settings
from .text import BOLD, Paint, duration, ratio
from .timing import Timing, time_interleaved
from .units import level_of
from .workload import Work, build

PASSES = ("forward", "training forward", "backward")
_SECONDS, _QUICK_SECONDS = 0.5, 0.1  # of samples for a pass of a point
# A series ends at the first point of which one call takes longer: what follows takes longer still.
_PATIENCE = 4.0
_FEWER = 2  # under --quick every second value
_FROM, _TO = 256, 8192  # sequences between which throughput shall stay


@dataclass(frozen=True)
class Axis:
    """One size that grows while the others stay."""

    name: str
    title: str
    size: str  # the field of Shape that grows
    values: tuple[int, ...]
    shape: Callable[[int], Shape]

    @property
    def fixed(self) -> str:
        """The sizes that stay, as text."""
        shapes = [asdict(self.shape(value)) for value in self.values[:2]]
        kept = [f"{k} = {shapes[0][k]}" for k in "TNIH" if shapes[0][k] == shapes[1][k]]
        if shapes[0]["I"] != shapes[1]["I"] and self.size == "H":
            kept.append("I = H")
        return ", ".join(kept)


_BATCHES = (16, 64, 256, 1024, 2048, 8192)
AXES = (
    Axis("N-H128", "sequences of a batch, N", "N", _BATCHES, lambda n: Shape(8, n, 128, 128)),
    Axis("N-H512", "sequences of a batch, N", "N", _BATCHES, lambda n: Shape(4, n, 512, 512)),
    Axis("T", "steps, T", "T", (1, 2, 4, 8, 16, 64, 256, 1024, 8192),
         lambda t: Shape(t, 16, 128, 128)),
    Axis("I", "input features, I", "I", (1, 4, 16, 64, 256, 1024, 4096, 8192),
         lambda i: Shape(16, 64, i, 256)),
    Axis("H", "hidden units, H", "H", (64, 128, 256, 512, 1024, 2048, 4096),
         lambda h: Shape(8, 64, h, h)),
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A cell in a dtype along an axis."""

    cell: str
    dtype: str
    axis: Axis

    @property
    def id(self) -> str:
        return f"{self.cell}-{self.dtype}-{self.axis.name}"


@dataclass
class Point:
    """One pass of one size: the times, or why there are none."""

    series: str  # its id
    cell: str
    dtype: str
    axis: str  # its name
    value: int
    pass_: str
    shape: Shape
    flops: int
    level: str | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    skipped: str | None = None

    def gflops(self, peer: str) -> float | None:
        """Billions of the products' operations in a second."""
        timing = self.timings.get(peer)
        return self.flops / timing.median_s / 1e9 if timing else None

    def row_ns(self, peer: str) -> float | None:
        """Nanoseconds for one row of one step."""
        timing = self.timings.get(peer)
        return timing.median_s * 1e9 / (self.shape.T * self.shape.N) if timing else None

    @property
    def speedup(self) -> float | None:
        ours, theirs = self.gflops(OURS), self.gflops(BASELINE)
        return ours / theirs if ours and theirs else None


def choose(pattern: str | None, quick: bool = False) -> list[Series]:
    """Return the series whose id ``pattern`` (a substring or a regular expression) is found in."""
    every = [
        Series(cell, dtype, axis)
        for dtype in (("fp32",) if quick else ("fp32", "bf16"))
        for cell in ("lstm", "gru")
        for axis in AXES
    ]
    return [one for one in every if not pattern or pattern in one.id or re.search(pattern, one.id)]


def measure(series: Series, settings: Settings, seconds: float) -> Iterator[Point]:
    """Measure every value of a series in all passes, as long as calls stay within patience."""
    values = series.axis.values[:: _FEWER if settings.quick else 1]
    over: str | None = None
    for value in values:
        case = Case(series.cell, "training", series.axis.shape(value), dtype=series.dtype)
        points = [
            Point(series.id, series.cell, series.dtype, series.axis.name, value, of, case.shape,
                  case.flops // 3 * (2 if of == "backward" else 1), skipped=over)
            for of in PASSES
        ]  # fmt: skip
        if over is None:
            longest = _time(case, points, settings, seconds)
            if longest > _PATIENCE:
                over = f"a call of the size before took {longest:.1f} s"
        yield from points


def _time(case: Case, points: Sequence[Point], settings: Settings, seconds: float) -> float:
    """Time a size's passes; returns the longest of any first call."""
    work = build(case, settings.device)
    layers = {BASELINE: work.module, OURS: work.make_module(fused_rnn)}
    with torch.no_grad():
        level = level_of(fused_rnn.explain(layers[OURS], *work.arguments))
    longest = 0.0
    for point in points:
        calls = {name: _call(work, layer, point.pass_) for name, layer in layers.items()}
        for call in calls.values():
            start = time.perf_counter()
            call()
            longest = max(longest, time.perf_counter() - start)
        point.level = level
        point.timings = time_interleaved(calls, settings.device, seconds)
    return longest


def _call(work: Work, layer: nn.Module, pass_: str) -> Callable[[], Any]:
    """Return the call of one pass alone; the backward's graph is kept from call to call."""

    def forward(grad: bool) -> Any:
        with torch.set_grad_enabled(grad):
            return layer(*work.arguments)

    if pass_ != "backward":
        return lambda: forward(pass_ == "training forward")
    y = forward(grad=True)[0]
    wanted = [*work.leaves, *layer.parameters()]
    return lambda: torch.autograd.grad(y, wanted, work.upstream, retain_graph=True)


def run(
    settings: Settings,
    series: Sequence[Series],
    path: Path | None,
    picture: Path | None,
    seconds: float | None = None,
) -> None:
    """Measure, print, write and draw the series; an interrupt keeps what is done."""
    seconds = seconds or (_QUICK_SECONDS if settings.quick else _SECONDS)
    points: list[Point] = []
    try:
        for number, one in enumerate(series, start=1):
            print(f"{number} of {len(series)}: {one.id}", file=sys.stderr, flush=True)
            points += measure(one, settings, seconds)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    document = heading(settings, seconds=seconds) | {"growth": as_json(points)}
    print("\n".join(render(points, Paint(sys.stdout.isatty()))))
    if path is not None:
        write(document, path)
    if picture is not None:
        from .growth_plot import plot

        plot(points, document, picture)


def as_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as a result file has them."""
    return [
        asdict(point)
        | {
            "gflops": {peer: point.gflops(peer) for peer in point.timings},
            "row_ns": {peer: point.row_ns(peer) for peer in point.timings},
        }
        for point in points
    ]


def read(document: dict[str, Any]) -> list[Point]:
    """Return the points that :func:`as_json` wrote."""
    points = []
    for entry in document["growth"]:
        known = {k: v for k, v in entry.items() if k not in ("gflops", "row_ns")}
        timings = {peer: Timing(**timing) for peer, timing in entry["timings"].items()}
        known |= {"shape": Shape(**entry["shape"]), "timings": timings}
        points.append(Point(**known))
    return points


def held(points: Sequence[Point]) -> list[tuple[str, float, float]]:
    """Return how throughput at N = 8192 compares with N = 256: what, of ours, of torch.nn."""
    found = []
    by_size = {(p.series, p.pass_, p.value): p for p in points}
    for point in points:
        start = by_size.get((point.series, point.pass_, _FROM))
        if point.axis.startswith("N") and point.value == _TO and start is not None:
            pairs = [(point.gflops(peer), start.gflops(peer)) for peer in (OURS, BASELINE)]
            shares = [large / small for large, small in pairs if large and small]
            if len(shares) == len(pairs):
                found.append((f"{point.series} {point.pass_}", *shares))
    return found


def render(points: Sequence[Point], paint: Paint) -> list[str]:
    """Return a table for each series and pass, and how far throughput is held at large batches."""
    lines, axes = [], {axis.name: axis for axis in AXES}
    for series in dict.fromkeys(point.series for point in points):
        for of in PASSES:
            group = [p for p in points if p.series == series and p.pass_ == of]
            first = group[0]
            axis = axes[first.axis]
            lines.append(
                paint(f"{first.cell} {DTYPE_TITLES[first.dtype]}, {of}: {axis.title}", BOLD)
                + f" ({axis.fixed})"
            )
            lines.append(
                f"  {axis.size:>6}{OURS:>11}{'ns/row':>10}{'GFLOP/s':>9}{BASELINE:>11}"
                f"{'ns/row':>10}{'GFLOP/s':>9}{'speed-up':>10}"
            )
            lines += [_line(point, paint) for point in group] + [""]
    shares = held(points)
    if shares:
        lines.append(f"Throughput at N = {_TO}, of that at N = {_FROM}: {OURS}, {BASELINE}")
        lines += [f"  {what:<36}{ours:>6.0%}{theirs:>8.0%}" for what, ours, theirs in shares]
    return lines


def _line(point: Point, paint: Paint) -> str:
    text = f"  {point.value:>6}"
    if point.skipped or not point.timings:
        return f"{text}  not measured: {point.skipped}"
    for peer in (OURS, BASELINE):
        seconds = duration(point.timings[peer].median_s)
        text += f"{seconds:>11}{point.row_ns(peer):>10.1f}{point.gflops(peer):>9.1f}"
    return text + ratio(point.speedup, 10, paint)

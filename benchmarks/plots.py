"""The picture of a run: how many times as fast as torch.nn, case by case.

    python -m benchmarks.plots RESULT.json PICTURE.png

draws it again from what a run wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cases import DTYPE_TITLES
from .harness import CaseResult
from .peers import BASELINE, OURS
from .report import Run, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIN, _LOSS = "#2a7f8e", "#d1495b"
# The other peers, with what the legend says of them.
_OTHERS = {
    "onnxruntime": ("D", "#edae49", "onnxruntime"),
    "compiled loop": ("o", "#30323d", f"torch.compile of a loop over {BASELINE}'s cell"),
}
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 15, 20, 30, 50)
# One panel each: kinds that share a bar and a scale, and a note on them.
_PANELS = {
    "Inference": (("inference",), "whole sequences"),
    "Training step": (("training",), "forward and backward"),
    "Ragged batches": (("ragged-training", "ragged-inference"), "lengths uniform in [T/2, T]"),
    "Layers called for one step": (("step-nograd", "step-training"), "one step"),
    "Single cell calls": (("cell-nograd", "cell-grad", "cell-training"), "one step"),
}
_KINDS = {
    "ragged-inference": "inference",
    "ragged-training": "training",
    "step-nograd": "no_grad",
    "step-training": "with backward",
    "cell-nograd": "no_grad",
    "cell-grad": "graph recorded",
    "cell-training": "with backward",
}
_SHAPE = "T: steps, N: sequences side by side, H: hidden units, L2: two layers, bi: both directions"


def plot(run: Run, path: Path) -> None:
    """Write the picture of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(run).savefig(path, dpi=160)


def draw(run: Run) -> Figure:
    """Draw the speed-up over torch.nn, and the other peers' beside it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = _panels(run)
    columns = 2 if len(panels) > 1 else 1
    pairs = [panels[i : i + columns] for i in range(0, len(panels), columns)] or [[]]
    heights = [1.4 + 0.2 * max((len(group) for *_, group in row), default=1) for row in pairs]
    figure = Figure(figsize=(5.6 * columns, sum(heights)), layout="constrained")
    axes = figure.subplots(len(pairs), columns, squeeze=False, height_ratios=heights)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, *panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if "gpu" in run.machine:
        what, where = "on a GPU", run.machine["gpu"]["name"]
    else:
        others = {result.case.dtype for result in run.results} - {"fp32"}
        what = "" if others else "in float32 "
        what += f"on {run.settings['threads']} threads"
        where = f"{run.machine['cpu']}, {run.machine['torch_simd']}"
    figure.suptitle(
        f"How many times as fast as {BASELINE} {OURS} is, {what}\n"
        f"{where}, torch {run.versions['torch']}", fontsize=12,
    )  # fmt: skip
    entries = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    ours = {f"{OURS}, faster": Patch(color=_WIN), "slower": Patch(color=_LOSS)}
    entries = ours | entries
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries),
        title=_SHAPE, fontsize=8.5, title_fontsize=8.5,
    )  # fmt: skip
    return figure


def _panels(run: Run) -> list[tuple[str, str, list[CaseResult]]]:
    """Return the panels of a run: title, note and results; by kinds, dtype and threads."""
    on_gpu = "gpu" in run.machine
    found: dict[tuple[int, int, int], list[CaseResult]] = {}
    dtypes, titles = list(DTYPE_TITLES), list(_PANELS)
    for result in run.ordered:
        if result.speedup() is not None:
            title = next(i for i, t in enumerate(titles) if result.case.kind in _PANELS[t][0])
            case = result.case
            apart = (0, 0) if on_gpu else (case.threads or 0, dtypes.index(case.dtype))
            found.setdefault((*apart, title), []).append(result)
    panels = []
    for key in sorted(found):
        title, group = titles[key[-1]], found[key]
        case, note = group[0].case, _PANELS[title][1]
        if not on_gpu and case.dtype != "fp32":
            note = DTYPE_TITLES[case.dtype]
        panels.append((title, note + (", one thread" if case.threads == 1 else ""), group))
    return panels


def _draw(axis: Axes, title: str, note: str, group: Sequence[CaseResult]) -> None:
    speedups = [result.speedup() or 0.0 for result in group]
    positions = range(len(group))
    # Bars start at 1, where both are equally fast: length and side are gain and loss.
    axis.barh(
        positions, [value - 1 for value in speedups], left=1, height=0.72,
        color=[_WIN if value >= 1 else _LOSS for value in speedups],
    )  # fmt: skip
    free = [max(value, 1) for value in speedups]  # from here on nothing is drawn in a row
    for name, (marker, colour, label) in _OTHERS.items():
        points = [
            (value, position)
            for position, result in zip(positions, group, strict=True)
            if (value := result.speedup(of=name)) is not None
        ]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, s=20, color=colour, label=label,
                         edgecolors="white", linewidths=0.5, zorder=3)  # fmt: skip
        for value, position in points:
            free[position] = max(free[position], value)
    for position, value, start in zip(positions, speedups, free, strict=True):
        # A marker reaches half its width beyond its place.
        axis.annotate(
            f"{value:#.3g}x", (start, position), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=7.5, color="black" if value >= 1 else _LOSS,
        )  # fmt: skip
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    low, high = min(low, 0.8), max(high, 2)
    high *= (high / low) ** 0.08  # room for the longest bar's figure
    axis.set_xlim(low, high)
    ticks = _spaced([tick for tick in _TICKS if low <= tick <= high], (high / low) ** 0.075)
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    several = len({result.case.kind for result in group}) > 1
    axis.set_yticks(positions, [_label(result, several) for result in group], fontsize=8)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axis.set_title(note, loc="right", fontsize=8)
    axis.set_xlabel(f"speed relative to {BASELINE}, on a logarithmic scale", fontsize=8)
    axis.set_axisbelow(True)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _spaced(ticks: Sequence[float], apart: float) -> list[float]:
    """Return 1 and those ticks, outwards from it, whose names do not touch."""
    kept = [1.0]
    for tick in ticks:
        if tick >= kept[-1] * apart:
            kept.append(tick)
    for tick in reversed(ticks):
        if tick * apart <= kept[0]:
            kept.insert(0, tick)
    return kept


def _label(result: CaseResult, several_kinds: bool) -> str:
    case = result.case
    kind = f" {_KINDS[case.kind]}" if several_kinds else ""
    return f"{case.cell}{kind} {case.label}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture of a result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("result", type=Path, help="what --json wrote")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    plot(read_json(options.result), options.picture)


if __name__ == "__main__":
    main()

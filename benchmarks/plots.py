"""The picture of a run: how many times faster than torch.nn, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cases import KINDS
from .harness import CaseResult
from .peers import BASELINE, OURS
from .report import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIN, _LOSS = "#2a7f8e", "#d1495b"
_OTHERS = {"onnxruntime": ("D", "#edae49"), "compiled loop": ("o", "#30323d")}
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 10, 15, 20, 30, 50)
# One panel each: kinds that share a bar and a scale.
_PANELS = {
    "Inference": ("inference",),
    "Training step": ("training",),
    "Ragged batches": ("ragged-training", "ragged-inference"),
    "Single cell calls": ("cell-nograd", "cell-grad", "cell-training"),
}


def plot(run: Run, path: Path) -> None:
    """Write the speed-up over torch.nn, and the other peers' beside it, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    panels = []
    for title, kinds in _PANELS.items():
        group = [r for r in run.ordered if r.case.kind in kinds and r.speedup() is not None]
        if group:
            panels.append((title, group))
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    tallest = max((len(group) for _, group in panels), default=1)
    figure, axes = pyplot.subplots(
        max(rows, 1), columns, figsize=(8.5 * columns, max(rows, 1) * (1.6 + 0.24 * tallest)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, *panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if "gpu" in run.machine:
        what, where = "", run.machine["gpu"]["name"]
    else:
        what = f", float32, {run.settings['threads']} threads"
        where = f"{run.machine['cpu']}, {run.machine['torch_simd']}"
    figure.suptitle(
        f"{OURS} against {BASELINE}{what}\n{where}, torch {run.versions['torch']}", fontsize=12
    )
    entries = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    entries = {f"{OURS} faster": Patch(color=_WIN), "slower": Patch(color=_LOSS)} | entries
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(axis: Axes, title: str, group: Sequence[CaseResult]) -> None:
    speedups = [result.speedup() or 0.0 for result in group]
    positions = range(len(group))
    # Bars start at 1, where both are equally fast: length and side are gain and loss.
    axis.barh(
        positions, [value - 1 for value in speedups], left=1, height=0.72,
        color=[_WIN if value >= 1 else _LOSS for value in speedups],
    )  # fmt: skip
    for position, value in zip(positions, speedups, strict=True):
        axis.annotate(
            f"{value:#.3g}x", (max(value, 1), position), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color="black" if value >= 1 else _LOSS,
        )  # fmt: skip
    for name, (marker, colour) in _OTHERS.items():
        points = [
            (theirs / other, position)
            for position, result in zip(positions, group, strict=True)
            if (theirs := result.seconds(BASELINE)) and (other := result.seconds(name))
        ]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, s=22, color=colour, label=name,
                         edgecolors="white", linewidths=0.5, zorder=3)  # fmt: skip
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.8), max(high, 2) * 1.25)
    low, high = axis.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.minorticks_off()
    several = len({result.case.kind for result in group}) > 1
    axis.set_yticks(positions, [_label(result, several) for result in group], fontsize=8)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_title(title, loc="left", fontweight="bold")
    axis.set_xlabel(f"times faster than {BASELINE}", fontsize=8)
    axis.set_axisbelow(True)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _label(result: CaseResult, several_kinds: bool) -> str:
    case = result.case
    kind = f" {case.kind.split('-')[-1]}" if several_kinds and case.kind in KINDS else ""
    return f"{case.cell}{kind} {case.label}"

"""The picture of a growth run: GFLOP/s along each size, ours beside torch.nn's.

    python -m benchmarks.growth_plot RESULT.json PICTURE.png

draws it again from what a run wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cases import DTYPE_TITLES
from .growth import AXES, PASSES, Axis, Point, read
from .peers import BASELINE, OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {OURS: "#2a7f8e", BASELINE: "#d1495b"}
_STYLES = {"lstm": ("-", "o"), "gru": ("--", "s"), "rnn": (":", "^")}


def plot(points: Sequence[Point], document: dict[str, Any], path: Path) -> None:
    """Write the picture of some points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(points, document).savefig(path, dpi=130)


def draw(points: Sequence[Point], document: dict[str, Any]) -> Figure:
    """Draw a panel for each size, pass and dtype that was measured."""
    from matplotlib.figure import Figure

    measured = [point for point in points if point.timings]
    dtypes = list(dict.fromkeys(point.dtype for point in measured))
    rows = [(dtype, of) for dtype in dtypes for of in PASSES]
    columns = [axis for axis in AXES if any(point.axis == axis.name for point in measured)]
    size = (3.3 * max(len(columns), 1) + 0.6, 2.5 * max(len(rows), 1) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(max(len(rows), 1), max(len(columns), 1), squeeze=False)
    for i, (dtype, of) in enumerate(rows):
        for j, axis in enumerate(columns):
            group = [p for p in measured if (p.dtype, p.pass_, p.axis) == (dtype, of, axis.name)]
            _draw(axes[i][j], axis, group)
            if j == 0:
                axes[i][j].set_ylabel(f"{DTYPE_TITLES[dtype]}, {of}\nGFLOP/s", fontsize=9)
            if i == 0:
                axes[i][j].set_title(f"{axis.title}\n{axis.fixed}", fontsize=9)
            if i == len(rows) - 1:
                axes[i][j].set_xlabel(axis.title, fontsize=9)
    _say(figure, document)
    return figure


def _draw(panel: Axes, axis: Axis, points: Sequence[Point]) -> None:
    for cell, (line, marker) in _STYLES.items():
        for peer, colour in _COLOURS.items():
            found = [(p.value, rate) for p in points if p.cell == cell and (rate := p.gflops(peer))]
            if found:
                label = f"{peer}, {cell.upper()}"
                look = {"linewidth": 1.4, "marker": marker, "markersize": 4}
                panel.plot(*zip(*found, strict=True), line, color=colour, label=label, **look)
    panel.set_xscale("log", base=2)
    ticks = axis.values[:: -1 - (len(axis.values) - 1) // 6]
    panel.set_xticks(ticks, [str(value) for value in ticks], fontsize=8)
    panel.minorticks_off()
    panel.tick_params(axis="y", labelsize=8)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _say(figure: Figure, document: dict[str, Any]) -> None:
    machine, settings = document["machine"], document["settings"]
    figure.suptitle(
        "Rate along one size at a time: level where cost grows as work does\n"
        f"{machine['cpu']}, {machine['torch_simd']}, {settings['threads']} threads, "
        f"torch {document['versions']['torch']}",
        fontsize=11,
    )
    entries = {
        label: handle
        for panel in figure.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries),
            fontsize=9,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture of a result file of --growth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth_plot", description=__doc__)
    parser.add_argument("result", type=Path, help="what --growth --json wrote")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    document = json.loads(options.result.read_text())
    if "growth" not in document:
        parser.error(f"{options.result.name} is no result of --growth")
    plot(read(document), document, options.picture)


if __name__ == "__main__":
    main()

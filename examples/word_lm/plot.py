"""The demonstration's picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import Result
    from .train import Run

# Two of Okabe and Ito's colours, told apart in every common form of colour blindness.
_PLAIN, _FUSED = "#E69F00", "#0072B2"
_TICKS = (20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 600, 1000, 1500, 2000)
_STYLE = {
    "font.size": 11.5,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot(result: Result, path: Path) -> None:
    """Draw the curves through the swap, how far they are apart, and the speeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rnn, batch = result.plain.model.rnn, result.plain.text.size(1)
    mode = rnn.mode.partition("_")[0]
    subtitle = (
        f"word-level language model, {mode}({rnn.extra_repr()}); {batch} texts of "
        f"{result.plain.recipe.steps} words an update; float32; torch {torch.__version__}; "
        f"threads: {torch.get_num_threads()}"
    )
    with pyplot.rc_context(_STYLE):
        figure = pyplot.figure(figsize=(13, 7.2), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.92))
        grid = figure.add_gridspec(2, 2, width_ratios=(1.6, 1), height_ratios=(3.2, 1))
        curves = figure.add_subplot(grid[0, 0])
        _draw_curves(curves, result)
        _draw_drift(figure.add_subplot(grid[1, 0], sharex=curves), result)
        _draw_speeds(figure.add_subplot(grid[:, 1]), result)
        figure.suptitle(
            f"torch.nn.{mode} becomes fused_rnn.{mode} in the middle of training",
            fontsize=17,
        )
        figure.text(0.5, 0.928, subtitle, ha="center", color="#555555")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def _draw_curves(axes: Axes, result: Result) -> None:
    swap, last = result.swap, len(result.plain.losses)
    # The wide line below and the narrow one on it show both, even where they coincide.
    for run, colour, width, start, label in (
        (result.plain, _PLAIN, 5.5, 0, "torch.nn all the way"),
        (result.fused, _FUSED, 1.8, swap, "converted to fused_rnn"),
    ):
        axes.plot(*_training(run, start, swap), color=colour, linewidth=width, label=label)
        axes.plot(*_validation(run, start), color=colour, linewidth=width, marker="o",
                  markersize=4 + width / 2)  # fmt: skip
    axes.set_title("Perplexity, lower is better: one model, two ways to go on")
    axes.set_yscale("log")
    values = [value for start in (0, swap) for value in _validation(result.plain, start)[1]]
    # The first updates' heights would squeeze what matters here.
    top = min(1.3 * max(values), 2.2 * math.exp(result.plain.validation[swap]))
    bottom = 0.85 * min(*values, *_training(result.plain, swap, swap)[1])
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in _TICKS if bottom <= tick <= top]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlim(0, last * 1.19)
    axes.tick_params(labelbottom=False)
    _mark_swap(axes, swap)
    axes.annotate("convert(model)", (swap, bottom), xytext=(6, 6), textcoords="offset points",
                  family="monospace")  # fmt: skip
    ends = sorted(
        [
            (_training(result.fused, swap, swap)[1][-1], "training\n(dropout on)"),
            (_validation(result.fused, swap)[1][-1], "validation"),
        ]
    )
    apart = ends[1][0] > 1.15 * ends[0][0]
    for (value, text), side in zip(ends, ("top", "bottom"), strict=True):
        axes.annotate(f"{text} {value:.1f}", (last, value), xytext=(8, 0),
                      textcoords="offset points", va="center" if apart else side)  # fmt: skip
    axes.legend(loc="upper right", frameon=False)


def _mark_swap(axes: Axes, swap: int) -> None:
    axes.axvline(swap, color="black", linestyle=":", linewidth=1.3)


def _training(run: Run, start: int, swap: int) -> tuple[list[float], list[float]]:
    """Average the loss over stretches of updates, none across the swap; drawn at their middles."""
    stretch = max(len(run.losses) // 60, 1)
    firsts = range(start + (swap - start) % stretch, len(run.losses) - stretch + 1, stretch)
    means = [statistics.mean(run.losses[first : first + stretch]) for first in firsts]
    return [first + stretch / 2 for first in firsts], [math.exp(mean) for mean in means]


def _validation(run: Run, start: int) -> tuple[list[float], list[float]]:
    updates = [update for update in run.validation if update >= start]
    return [float(update) for update in updates], [math.exp(run.validation[u]) for u in updates]


def _draw_drift(axes: Axes, result: Result) -> None:
    swap, plain, fused = result.swap, result.plain.losses, result.fused.losses
    gaps = [b - a for a, b in zip(plain[swap:], fused[swap:], strict=True)]
    rounding = torch.finfo(torch.float32).eps * 2 ** math.floor(math.log2(plain[swap]))
    power = math.floor(math.log10(max(rounding, *map(abs, gaps))))
    axes.axhspan(-rounding / 10**power, rounding / 10**power, color="#e4e4e4")
    axes.annotate(
        "grey: one float32\nrounding of the loss", (swap / 2, 0), ha="center", va="center"
    )
    axes.plot(range(swap + 1, len(plain) + 1), [gap / 10**power for gap in gaps], color=_FUSED,
              linewidth=1, marker=".", markersize=3)  # fmt: skip
    reach = 1.25 * max(rounding, *map(abs, gaps)) / 10**power
    axes.set_ylim(-reach, reach)
    axes.set_title(f"Loss of an update: fused_rnn's minus torch.nn's, in units of $10^{{{power}}}$")
    axes.set_xlabel("update")
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= len(plain)])
    _mark_swap(axes, swap)
    axes.annotate(f"at most\n{result.drift.training:.1e}", (len(plain), 0), xytext=(8, 0),
                  va="center", textcoords="offset points")  # fmt: skip


def _draw_speeds(axes: Axes, result: Result) -> None:
    speeds = result.speeds
    labels = {}
    for index, row in enumerate(speeds):
        for offset, name, rates, length, colour in (
            (-0.19, "torch.nn", row.plain, 1.0, _PLAIN),
            (0.19, "fused_rnn", row.fused, row.gain, _FUSED),
        ):
            axes.barh(index + offset, length, height=0.36, color=colour)
            labels[index + offset] = f"{name}  {statistics.median(rates):>6,.0f}"
        verdict = f"{row.gain:.2f}x" + ("" if row.gain >= 1 else " (slower)")
        axes.annotate(verdict, (max(row.gain, 1.0), index + 0.19), xytext=(6, 0), va="center",
                      textcoords="offset points", weight="bold", fontsize=13)  # fmt: skip
        # Above the line at 1, which would run through the longer names.
        axes.annotate(row.job, (0, index - 0.42), va="bottom", zorder=3,
                      bbox={"facecolor": "white", "linewidth": 0, "pad": 1})  # fmt: skip
    axes.set_xlim(0, 1.3 * max(1.0, *(row.gain for row in speeds)))
    axes.set_ylim(len(speeds) - 0.5, -0.7)
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("bars: median speed, torch.nn = 1")
    axes.set_title("Tokens per second, beside the names")

"""The arguments of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .timing import CLOCKS

#: Of samples per case: on a CPU, on a GPU, and under --quick.
SECONDS, GPU_SECONDS, QUICK_SECONDS = 3.0, 1.0, 0.6


def parser() -> argparse.ArgumentParser:
    """Return the parser; what does not go together, :func:`clash` says."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fused_rnn against its peers, say where it wins and loses.",
    )
    made.add_argument("--quick", action="store_true", help="few cases and rounds: under 90 s")
    made.add_argument(
        "--filter",
        metavar="TEXT",
        help="only cases, or series of --growth, whose id has this substring or regular expression",
    )
    made.add_argument(
        "--full",
        action="store_true",
        help="every shape in every dtype, on one thread and on all: two hours on two cores",
    )
    made.add_argument("--json", type=Path, metavar="PATH", help="write everything measured")
    made.add_argument("--plot", type=Path, metavar="PATH", help="draw what was measured")
    made.add_argument("--threads", type=positive(int), default=2, help="default: 2")
    made.add_argument(
        "--device", choices=sorted(CLOCKS), help="default: cuda where there are kernels for it"
    )
    made.add_argument("--grid", action="store_true", help="every size, on a GPU: an hour")
    made.add_argument(
        "--seconds",
        type=positive(float),
        help=f"of samples per case; default: {SECONDS:g}, or {GPU_SECONDS:g} on a GPU",
    )
    made.add_argument(
        "--wait",
        type=positive(float),
        default=0.0,
        metavar="SECONDS",
        help="in all, for other work to leave the cores, and to repeat cases that it disturbed",
    )
    instead = made.add_argument_group("instead of the cases").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="print the cases' ids and stop")
    instead.add_argument(
        "--options",
        action="store_true",
        help="resets, single steps and recomputation; status 1 where the bar is not met",
    )
    instead.add_argument(
        "--variants",
        action="store_true",
        help="layer norm, zoneout and the cells' other options, over plain layers and over loops; "
        "status 1 where the bar is not met",
    )
    instead.add_argument(
        "--sample",
        type=positive(float),
        metavar="SECONDS",
        help="random shapes and options of the layers for so long, the slowest first",
    )
    instead.add_argument(
        "--growth",
        action="store_true",
        help="cost per unit of work along each size; --plot draws it: a quarter of an hour",
    )
    instead.add_argument(
        "--judge",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="hold what --json wrote, of cases and of --sample, against the bar",
    )
    made.add_argument("--seed", type=int, help="of --sample; default: 0")
    return made


def clash(options: argparse.Namespace) -> str | None:
    """Return None, or which of the arguments do not go together."""
    if options.quick and options.full:
        return "--quick and --full are opposites"
    if options.seed is not None and options.sample is None:
        return "--seed is --sample's"
    if options.sample is not None and (options.filter or options.plot):
        return "--sample takes neither --filter nor --plot"
    if options.device == "cuda" and (options.sample is not None or options.growth):
        return "--sample and --growth measure the CPU"
    return None


def positive(kind: type[int | float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert

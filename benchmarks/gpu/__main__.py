"""``make gpu``, or ``python -m benchmarks.gpu``: one command for a machine with a GPU.

Runs stages in the order of their worth, each job in a process that is killed at its limit, and
puts everything into one folder: outputs, state, result.json, a picture, a line for a log. A summary
comes last. Called again it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fused_rnn import command

from .runner import Runner
from .stages import Setting, stages
from .summary import summarize

_FOLDER = "build/gpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("OUT") or _FOLDER),
                        help="where everything goes; $OUT, or %(default)s")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M",
                        help="stop after so many, and go on at the next call")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages")
    parser.add_argument("--again", nargs="+", metavar="STAGE", default=[],
                        help="run these stages though they were run before")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the stages, and run nothing")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--stand-in", metavar="MODULE", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left; return the exit status: 1 where a job failed, 3 where time was up."""
    parser = _parser()
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    setting = Setting(folder, options.device, options.stand_in, options.stand_in is not None)
    names = [stage.name for stage in stages(setting)]
    for name in (*(options.only or ()), *options.again):
        if name not in names:
            parser.error(f"there is no stage {name!r}; choose from {', '.join(names)}")
    if options.minutes <= 0:
        parser.error(f"--minutes should be above zero, got {options.minutes:g}")
    if options.list:
        for stage in stages(setting):
            print(f"{stage.name:<8} {stage.missing or stage.title}")
            print("".join(f"  {job.name} ({job.seconds:.0f} s)\n" for job in stage.jobs), end="")
        return 0
    runner = Runner(folder, options.minutes * 60)
    for name in options.again:
        runner.forget(name)
    chosen = (s for s in stages(setting) if options.only is None or s.name in options.only)
    try:
        finished = runner.run(chosen)
    finally:
        print(summarize(folder, runner.done))
    if not finished:
        return 3
    return 1 if any("failure" in entry for entry in runner.done.values()) else 0


if __name__ == "__main__":
    command.run(main)

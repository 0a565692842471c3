"""Compiles the libraries of the tests before they run, with all cores: ``make test`` calls it.

    python -m tests.native.prebuild

A test that finds nothing here builds what it needs itself; this only saves the waiting.
"""

from __future__ import annotations

import time

from fused_rnn import command

from . import gates, persistent_backward, persistent_forward, plans, quantized
from .build import UnbuildableError, bench_target, build, scalar_math_target
from .simt.library import TOYS, stepwise_target, target

# What takes longest to compile comes first.
TARGETS = (
    lambda: target("persistent_backward", persistent_backward.KERNELS),
    lambda: target("persistent_forward", persistent_forward.KERNELS),
    stepwise_target,
    bench_target,
    lambda: target("gates", gates.GATES),
    scalar_math_target,
    lambda: scalar_math_target(gpu=True),
    lambda: target("toys", TOYS),
    plans.target,
    quantized.target,
)


def main() -> None:
    """Build what can be built here, and say what cannot."""
    begin, targets = time.monotonic(), []
    for make in TARGETS:
        try:
            targets.append(make())
        except UnbuildableError as reason:
            print(f"  not built: {reason}")
    build(*targets, report=lambda line: print(f"  {line}", flush=True))
    print(f"{len(targets)} libraries of the tests: {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    command.run(main)

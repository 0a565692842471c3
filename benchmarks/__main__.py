"""``python -m benchmarks``: measure fused_rnn against its peers, say where it wins and loses."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fused_rnn import command

from . import machine, machine_cuda
from .bar import judge
from .cases import Case, all_cases, choose
from .cases_cuda import cuda_cases, grid_cases
from .harness import Harness
from .kernels import measure_kernels
from .memory import PeakMemory
from .memory_cuda import CudaMemory
from .options import run as run_options
from .peers import Settings
from .plots import plot
from .progress import Progress
from .report import Run, render, write_json
from .report_cuda import judge_cuda, render_cuda
from .timing import CLOCKS

_RESULTS = Path(__file__).parent / "results"
_SECONDS, _GPU_SECONDS, _QUICK_SECONDS = 3.0, 1.0, 0.6  # of samples per case
_RATE_SECONDS, _QUICK_RATE_SECONDS = 0.1, 0.03  # per shape of the sgemm rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a peer computed something wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    on_gpu = (options.device or ("cpu" if _no_kernels_for_cuda() else "cuda")) == "cuda"
    if on_gpu and not options.list and (reason := _no_kernels_for_cuda()):
        parser.error(f"--device cuda: {reason}")
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    table = all_cases() if not on_gpu else grid_cases() if options.grid else cuda_cases()
    try:
        cases = choose(table, options.filter, options.quick)
    except re.error as error:
        parser.error(f"--filter {options.filter!r} is no regular expression: {error}")
    if not cases:
        parser.error(f"--filter {options.filter!r} matches no case; --list shows them")
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    if options.plot and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib, which is not installed")
    torch.set_num_threads(options.threads)
    settings = Settings(
        device=device,
        threads=options.threads,
        quick=options.quick,
        wait_seconds=options.wait,
        seconds=options.seconds
        or (_QUICK_SECONDS if options.quick else _GPU_SECONDS if on_gpu else _SECONDS),
    )
    if options.options:
        return 0 if run_options(settings, options.json) else 1
    run, interrupted = _measure(cases, settings, options.filter)
    print((render_cuda if on_gpu else render)(run, colour=sys.stdout.isatty()))
    if on_gpu and not options.json and not options.filter:
        options.json = _RESULTS / f"{machine_cuda.file_name(device)}.json"
    if options.json:
        write_json(run, options.json)
    if options.plot:
        plot(run, options.plot)
    if interrupted:
        return 130
    return 1 if any(result.failure for result in run.results) else 0


def _no_kernels_for_cuda() -> str | None:
    """Return None, or why there is nothing of ours to measure on a GPU."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        from fused_rnn.backends import native
    except ImportError as error:
        return f"fused_rnn cannot be imported: {error}"
    return native.cuda_missing()


def _measure(cases: Sequence[Case], settings: Settings, pattern: str | None) -> tuple[Run, bool]:
    """Measure the cases; an interrupt keeps those that are done."""
    start, interrupted = time.perf_counter(), False
    on_gpu = settings.device.type == "cuda"
    run = Run(
        machine=_machine(settings.device),
        versions=machine.versions(),
        commit=machine.commit(),
        settings={
            "threads": settings.threads,
            "device": str(settings.device),
            "quick": settings.quick,
            "filter": pattern,
            "seconds_per_case": settings.seconds,
            "wait_seconds": settings.wait_seconds,
            "compile_seconds": settings.compile_seconds,
            "peak_memory": "growth of torch's allocator's peak"
            if on_gpu
            else "growth of the resident set's high-water mark in a fresh process",
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    rate_seconds = _QUICK_RATE_SECONDS if settings.quick else _RATE_SECONDS
    run.rates["start"] = _rates(settings.device, rate_seconds)
    footprint = CudaMemory(settings.device) if on_gpu else PeakMemory(settings.threads)
    with closing(footprint) as memory, closing(Progress(len(cases))) as progress:
        harness = Harness(settings, memory)
        try:
            for case in cases:
                progress.show(case.id)
                run.results.append(harness.run(case))
        except KeyboardInterrupt:
            interrupted = True
        if memory.unavailable:
            run.settings["peak_memory"] = f"not measured: {memory.unavailable}"
    run.rates["end"] = _rates(settings.device, rate_seconds)
    if on_gpu:
        run.kernels = list(measure_kernels(settings.device, run.copy_gbytes))
        run.verdicts = judge_cuda(run.results, run.kernels)
    else:
        run.verdicts = judge(run.results, run.sgemm_gflops)
    run.seconds = round(time.perf_counter() - start, 1)
    return run, interrupted


def _machine(device: torch.device) -> dict[str, Any]:
    gpu = {"gpu": machine_cuda.describe_gpu(device)} if device.type == "cuda" else {}
    return machine.describe() | gpu


def _rates(device: torch.device, seconds: float) -> dict[str, Any]:
    if device.type == "cuda":
        return machine_cuda.measure_gpu_rates(device, seconds)
    return machine.measure_rates(seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases and rounds: under 90 s")
    parser.add_argument(
        "--filter",
        metavar="TEXT",
        help="only cases whose id has this substring or regular expression",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the speed-ups")
    parser.add_argument("--threads", type=_positive(int), default=2, help="default: 2")
    parser.add_argument(
        "--device", choices=sorted(CLOCKS), help="default: cuda where there are kernels for it"
    )
    parser.add_argument("--grid", action="store_true", help="every size, on a GPU: an hour")
    parser.add_argument(
        "--seconds",
        type=_positive(float),
        help=f"of samples per case; default: {_SECONDS:g}, or {_GPU_SECONDS:g} on a GPU",
    )
    parser.add_argument(
        "--wait",
        type=_positive(float),
        default=0.0,
        metavar="SECONDS",
        help="in all, for other work to leave the cores, and to repeat cases that it disturbed",
    )
    parser.add_argument("--list", action="store_true", help="print the cases' ids and stop")
    parser.add_argument(
        "--options",
        action="store_true",
        help="instead: resets, single steps and recomputation; status 1 where the bar is not met",
    )
    return parser


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert


if __name__ == "__main__":
    command.run(main)

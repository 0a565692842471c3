"""``python -m benchmarks``: measure fused_rnn against its peers, say where it wins and loses."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fused_rnn import command

from . import growth, judging, machine, machine_cuda, sampler, variants
from .arguments import GPU_SECONDS, QUICK_SECONDS, SECONDS, clash, parser
from .bar import has_tiles, judge
from .cases import Case, choose
from .cases_cpu import cpu_cases
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

_RESULTS = Path(__file__).parent / "results"
_RATE_SECONDS, _QUICK_RATE_SECONDS = 0.1, 0.03  # per shape of the sgemm rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a peer computed something wrong."""
    arguments_of = parser()
    options = arguments_of.parse_args(arguments)
    if reason := clash(options):
        arguments_of.error(reason)
    if options.plot and not find_spec("matplotlib"):
        arguments_of.error("--plot needs matplotlib, which is not installed")
    try:
        re.compile(options.filter or "")
    except re.error as error:
        arguments_of.error(f"--filter {options.filter!r} is no regular expression: {error}")
    try:
        return _run(options)
    except _NothingError as reason:
        arguments_of.error(str(reason))


class _NothingError(Exception):
    """Nothing can be measured as asked for; the message is what the command line says."""


def _run(options: argparse.Namespace) -> int:
    if options.judge:
        return _judge(options.judge)
    beside = options.sample is not None or options.growth
    missing = None if beside else _no_kernels_for_cuda()
    on_gpu = (options.device or ("cpu" if beside or missing else "cuda")) == "cuda"
    if on_gpu and not options.list and missing:
        raise _NothingError(f"--device cuda: {missing}")
    torch.set_num_threads(options.threads)
    settings = Settings(
        device=torch.device("cuda", 0) if on_gpu else torch.device("cpu"),
        threads=options.threads,
        quick=options.quick,
        full=options.full,
        wait_seconds=options.wait,
        seconds=options.seconds
        or (QUICK_SECONDS if options.quick else GPU_SECONDS if on_gpu else SECONDS),
    )
    if options.options:
        return 0 if run_options(settings, options.json) else 1
    if options.variants:
        return 0 if run_options(settings, options.json, variants.measure) else 1
    if options.sample is not None:
        return 0 if sampler.run(settings, options.sample, options.seed or 0, options.json) else 1
    if options.growth:
        series = growth.choose(options.filter, options.quick)
        if not series:
            raise _NothingError(f"--filter {options.filter!r} matches no series of --growth")
        growth.run(settings, series, options.json, options.plot, options.seconds)
        return 0
    cases = _cases(options, on_gpu)
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    return _run_cases(cases, settings, options)


def _judge(paths: Sequence[Path]) -> int:
    try:
        judging.judge_files(paths, colour=sys.stdout.isatty())
    except (OSError, ValueError) as error:
        raise _NothingError(f"--judge: {error}") from error
    return 0


def _cases(options: argparse.Namespace, on_gpu: bool) -> list[Case]:
    table = cpu_cases() if not on_gpu else grid_cases() if options.grid else cuda_cases()
    # On one thread the run's cases are the very ones.
    table = [case for case in table if case.threads != options.threads]
    cases = choose(table, options.filter, options.quick, options.full)
    if not cases:
        more = "" if options.full else ", --full has more"
        raise _NothingError(f"--filter {options.filter!r} matches no case; --list shows them{more}")
    return cases


def _run_cases(cases: Sequence[Case], settings: Settings, options: argparse.Namespace) -> int:
    on_gpu = settings.device.type == "cuda"
    run, interrupted = _measure(cases, settings, options)
    print((render_cuda if on_gpu else render)(run, colour=sys.stdout.isatty()))
    if on_gpu and not options.json and not options.filter:
        options.json = _RESULTS / f"{machine_cuda.file_name(settings.device)}.json"
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


def _measure(
    cases: Sequence[Case], settings: Settings, options: argparse.Namespace
) -> tuple[Run, bool]:
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
            "full": options.full,
            "filter": options.filter,
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
        run.verdicts = judge(run.results, run.sgemm_gflops, has_tiles(run.machine))
    run.seconds = round(time.perf_counter() - start, 1)
    return run, interrupted


def _machine(device: torch.device) -> dict[str, Any]:
    gpu = {"gpu": machine_cuda.describe_gpu(device)} if device.type == "cuda" else {}
    return machine.describe() | gpu


def _rates(device: torch.device, seconds: float) -> dict[str, Any]:
    if device.type == "cuda":
        return machine_cuda.measure_gpu_rates(device, seconds)
    return machine.measure_rates(seconds)


if __name__ == "__main__":
    command.run(main)

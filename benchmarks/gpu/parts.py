"""What a job of a run on a GPU does: ``python -m benchmarks.gpu.parts NAME ...``.

What a part found it says in lines of JSON; what it is about to launch it says beforehand, so that
of a process that had to be killed it is known what it did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fused_rnn import command, trials
from fused_rnn.backends import Problem, native, select, use_way
from fused_rnn.backends.native import persistent
from fused_rnn.trials import Workload, check, clock, truth_of

from .. import floor
from ..cases import DTYPES, Case
from ..cases_cuda import cuda_cases
from ..machine_cuda import describe_gpu, matmul_precision
from .runner import RESULT

__all__ = ["main", "problem_of"]

_CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}
_SAMPLES = 10
_SUITE_KINDS = ("training", "inference", "ragged-training", "cell-training", "cell-nograd")


def say(found: dict[str, Any]) -> None:
    """Print what a part found, for the runner to read."""
    print(RESULT + json.dumps(found), flush=True)


def problem_of(
    cell: str, dtype: str, T: int, N: int, H: int, directions: int, training: bool, device: str
) -> Problem:
    """Return a layer's problem with as many inputs as hidden units."""
    return Problem(
        _CELLS.get(cell, cell), torch.device(device), DTYPES[dtype], T, N, H, H, 0, False, training,
        None, layers=1, directions=directions, width=H,
    )  # fmt: skip


def plan_of(problem: Problem, way: str) -> str | None:
    """Return how the steps of a way lie on the device, in words."""
    if not way.startswith(native.name):
        return None
    with use_way(way):
        backend: Any = select(problem).backend
    if problem.device.type != "cuda":  # a stand-in's, which knows by its ops alone
        with backend._tell(torch.empty(0, dtype=problem.dtype)):
            return persistent.words(problem, problem.directions == 2)
    return backend.plan(problem, problem.directions == 2)


def facts(options: argparse.Namespace) -> None:
    """Say what the device is, and what plans are made for."""
    device = torch.device(options.device)
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        found |= {"gpu": describe_gpu(device), "facts": str(native.facts(device))}
        found["missing"] = native.cuda_missing()
    say(found)
    if found.get("missing"):
        raise SystemExit(f"There are no kernels for this GPU: {found['missing']}")


def case(options: argparse.Namespace) -> None:
    """Check a problem by one way, inference and training, and time it."""
    for training in (False, True):
        with matmul_precision(options.dtype):
            _case(options, training)


def _case(o: argparse.Namespace, training: bool) -> None:
    sizes = o.T, o.N, o.H, o.directions
    problem = problem_of(o.cell, o.dtype, *sizes, training, o.device)
    found: dict[str, Any] = {
        "case": f"{o.cell} {o.dtype} T{o.T} N{o.N} H{o.H} directions {o.directions}",
        "kind": "training" if training else "inference",
        "way": o.way,
        "plan": plan_of(problem, o.way),
    }
    print(f"begins: {found}", flush=True)
    work = Workload(problem)
    truth = truth_of(work)
    trial, errors = check(work, o.way, truth)
    found |= {"error": errors, "failure": trial.failure}
    if errors is not None:
        with use_way(o.way):
            call = work.caller()
            one, other = call(), call()
            pairs = zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True)
            found["bit_equal"] = all(torch.equal(a, b) for a, b in pairs)
            if not o.untimed:
                found |= _times(call, problem)
    say(found)
    if trial.failure is not None:
        raise SystemExit(trial.failure)


def _times(call: Callable[[], Any], problem: Problem) -> dict[str, Any]:
    seconds = sorted(clock(call, problem.device) for _ in range(_SAMPLES))
    steps = problem.T * problem.directions
    found: dict[str, Any] = {"ms": round(seconds[_SAMPLES // 2] * 1e3, 4)}
    found["us_per_step"] = round(seconds[_SAMPLES // 2] * 1e6 / steps, 3)
    if problem.device.type == "cuda":
        found["kernels_us_per_step"] = _kernels(call, steps)
    return found


def _kernels(call: Callable[[], Any], steps: int) -> dict[str, list[float]]:
    """Return for the kernels that take longest: microseconds of a step, and launches of a call."""
    from torch.profiler import ProfilerActivity, profile

    calls = 3
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    rows = sorted(profiled.key_averages(), key=lambda e: -e.self_device_time_total)[:8]
    return {
        row.key[:80]: [round(row.self_device_time_total / calls / steps, 3), row.count / calls]
        for row in rows
    }


def floor_part(options: argparse.Namespace) -> None:
    """Say what the exchange and the products alone take; persistent kernels by the environment."""
    import os

    os.environ["FUSED_RNN_PERSISTENT"] = "1"
    device = torch.device(options.device)
    cases = [("lstm", H, N) for H in (256, 512, 768, 1024) for N in (1, 16, 64)]
    cases, T = ([("lstm", 19, 9)], 3) if options.small else (cases, 1024)
    for row in floor.rows(device, partial(_median, device), persistent.ops(), cases, T):
        say(row._asdict())


def _median(device: torch.device, call: Callable[[], Any]) -> float:
    call()
    seconds = sorted(clock(call, device) for _ in range(_SAMPLES))
    return seconds[_SAMPLES // 2]


def suite(small: bool) -> Iterator[Case]:
    """Yield the problems that are tuned: those of the quick benchmark, and the anchor's GRU."""
    for found in cuda_cases():
        wanted = found.quick and found.kind in _SUITE_KINDS and found.dtype != "tf32"
        if small and not (wanted and found.single_cell and found.dtype == "fp32"):
            continue
        if wanted:
            yield found


def of_case(c: Case, device: str) -> Problem:
    """Return the problem of a benchmark's case."""
    s, training = c.shape, c.kind.endswith("training")
    problem = problem_of(c.cell, c.dtype, s.T, s.N, s.H, s.directions, training, device)
    if c.single_cell:
        return problem._replace(I=s.I, width=0)
    return problem._replace(I=s.I, width=s.I, layers=s.layers, ragged=c.ragged)


def tune(options: argparse.Namespace) -> None:
    """Try every way of a suite of problems, and save what was the fastest after each."""
    from fused_rnn.backends import keep, tuned
    from fused_rnn.backends.measured import Table
    from fused_rnn.tune import Measured

    path = Path(options.folder) / "tuned.json"
    if path.exists():  # of a run that was cut short
        keep(Table.read(path))
    for one in suite(options.small):
        problem = of_case(one, options.device)
        if tuned.measurement(problem) is not None:
            continue
        print(f"begins: {one.id}", flush=True)
        measured = Measured(problem, trials.try_all(problem))
        entry = measured.entry()
        keep(() if entry is None else (entry,))
        tuned.measurements().write(path)
        print("\n".join(measured.lines()), flush=True)
        ways = {t.way: t.seconds or t.failure for t in measured.trials}
        say({"case": one.id, "chosen": measured.chosen, "ways": ways})


def kernels(options: argparse.Namespace) -> None:
    """Run each compiled kernel once; see ``each_kernel``."""
    from . import each_kernel

    each_kernel.drive(options, say)


def kernel_worker(options: argparse.Namespace) -> None:
    """Run kernels of a list, from one on."""
    from . import each_kernel

    each_kernel.work(options, say)


_PARTS = {
    "facts": facts,
    "case": case,
    "floor": floor_part,
    "kernels": kernels,
    "kernel-worker": kernel_worker,
    "tune": tune,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.parts", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prelude", help="a module that is imported first, and installed")
    parser.add_argument("--small", action="store_true", help="few and small problems")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in _PARTS:
        part = parts.add_parser(name)
        if name == "case":
            part.add_argument("cell", choices=_CELLS)
            part.add_argument("dtype", choices=DTYPES)
            for size in ("T", "N", "H", "directions"):
                part.add_argument(size, type=int)
            part.add_argument("--way", required=True)
            part.add_argument("--untimed", action="store_true")
        if name in ("kernels", "kernel-worker", "tune"):
            part.add_argument("--folder", required=True)
        if name == "kernel-worker":
            part.add_argument("--first", type=int, default=0)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.prelude:
        import_module(options.prelude).install()
    elif options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device")
        return 2
    _PARTS[options.part](options)
    return 0


if __name__ == "__main__":
    command.run(main)

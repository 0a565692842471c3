"""What is run on a GPU, in the order of its worth: stages of jobs, each a process with a limit.

A job is a process of its own so that what hangs can be killed, and what takes the device down takes
nothing else with it. The first ten minutes are the stages down to ``kernels``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

__all__ = ["Job", "Setting", "Stage", "stages"]

STEPWISE, PERSISTENT = "native stepwise", "native persistent"
_WAYS = ("torch", STEPWISE, PERSISTENT, "triton")
_CUDA = "tests/backends/native/cuda"
# By their worth: numbers first, then graphs and options, then what surrounds the kernels.
_TESTS = {
    "persistent": (f"{_CUDA}/test_persistent.py", f"{_CUDA}/test_both_directions.py"),
    "gpu": (f"{_CUDA}/test_gpu.py", f"{_CUDA}/test_graphs.py", f"{_CUDA}/test_marked_gpu.py"),
    "kernels": ("tests/backends/test_kernels.py",),
    "triton": ("tests/backends/triton/test_triton.py",),
    "layers": ("tests/test_modules.py", "tests/test_functional.py", "tests/layers"),
    "graphs": ("tests/graph/test_node.py", "tests/graph/test_compile.py"),
    "scans": ("tests/scans", "tests/test_deterministic.py"),
}
# Few steps and odd sizes; one block, one cluster, the whole device; both directions.
_SMOKE = (
    "lstm bf16 3 5 30 1", "gru fp32 8 4 344 1", "lstm bf16 8 8 200 1", "lstm bf16 8 1 512 1",
    "lstm tf32 8 8 264 1", "lstm bf16 8 16 768 1", "lstm fp16 8 16 300 2", "rnn bf16 8 16 512 1",
)  # fmt: skip
_PATIENCE = 10  # with a stand-in, on a machine that has other things to do
_ANCHOR = "lstm {} 1024 16 768 1"


class Job(NamedTuple):
    """A process."""

    name: str
    command: list[str]
    seconds: float
    env: dict[str, str] = {}  # noqa: RUF012 (nobody writes to it)


class Stage(NamedTuple):
    """Jobs that belong together, one after the other; ``missing``: why none of them can run."""

    name: str
    title: str
    seconds: float
    jobs: list[Job]
    missing: str | None = None


class Setting(NamedTuple):
    """Where it all runs.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` where a stand-in plays a GPU
        prelude: a module that makes the stand-in, imported by every part
        small: whether to run a few small problems of each stage
    """

    folder: Path
    device: str = "cuda"
    prelude: str | None = None
    small: bool = False


def _part(s: Setting, *arguments: object) -> list[str]:
    """Return the command of a part (``parts.py``)."""
    options = ["--device", s.device] + (["--prelude", s.prelude] if s.prelude else [])
    options += ["--small"] if s.small else []
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.parts", *options]
    return command + [str(a) for a in arguments]


def _cases(s: Setting, cases: tuple[str, ...], ways: tuple[str, ...], seconds: float) -> list[Job]:
    return [
        Job(f"{case}, {way}", _part(s, "case", *case.split(), "--way", way), seconds)
        for case in cases
        for way in ways
    ]


def _anchors(s: Setting) -> list[Job]:
    if s.small:
        return _cases(s, ("lstm fp16 3 2 9 1",), (STEPWISE, PERSISTENT), 60)
    return _cases(s, tuple(map(_ANCHOR.format, ("bf16", "fp16"))), _WAYS, 60)


def _tests(s: Setting) -> list[Job]:
    python = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--core"]
    python += ["--collect-only"] if s.small else []
    tests = dict([*_TESTS.items()][:1]) if s.small else _TESTS
    return [Job(name, [*python, *files], 180) for name, files in tests.items()]


def _bench(s: Setting) -> list[Job]:
    python = [sys.executable, "-m", "benchmarks", "--json", str(s.folder / "bench.json")]
    if s.small:
        python += ["--device", "cpu", "--quick", "--seconds", "0.05"]
        python += ["--filter", "^lstm-cell-nograd-N1-H16$"]
    else:
        python += ["--device", "cuda", "--quick"]
        python += ["--plot", str(s.folder / "bench.png")] if find_spec("matplotlib") else []
    # With what tune found, so that the automatic choice is the one that a user gets by now.
    tuned = s.folder / "tuned.json"
    return [Job("quick", python, 600, {"FUSED_RNN_TUNED": str(tuned)} if tuned.exists() else {})]


def _tools(s: Setting) -> tuple[list[Job], str | None]:
    small = _part(
        s, "case", *["lstm", "bf16", "6", "16", "200", "1"], "--way", PERSISTENT, "--untimed"
    )
    jobs = []
    if shutil.which("compute-sanitizer"):
        jobs = [
            Job(tool, ["compute-sanitizer", "--tool", tool, *small], 150)
            for tool in ("memcheck", "racecheck", "synccheck")
        ]
    if shutil.which("ncu"):
        anchor = _part(s, "case", *_ANCHOR.format("bf16").replace("1024", "64", 1).split())
        anchor += ["--way", PERSISTENT, "--untimed"]
        for kernel in ("persistent_forward", "persistent_backward"):
            options = ["--set", "full", "--clock-control", "none", "-k", f"regex:{kernel}"]
            options += ["-s", "1", "-c", "1", "-f", "-o", str(s.folder / kernel)]
            jobs.append(Job(f"ncu {kernel}", ["ncu", *options, *anchor], 120))
    return jobs, None if jobs else "neither compute-sanitizer nor ncu is on the PATH"


def stages(s: Setting) -> Iterator[Stage]:
    """Yield all stages, each made when its turn comes: some go by what those before have left."""
    for stage in _stages(s):
        patience = _PATIENCE if s.small else 1
        jobs = [job._replace(seconds=job.seconds * patience) for job in stage.jobs]
        yield stage._replace(seconds=stage.seconds * patience, jobs=jobs)


def _stages(s: Setting) -> Iterator[Stage]:
    facts = [Job("facts", _part(s, "facts"), 60)]
    facts += [Job("doctor", [sys.executable, "-m", "fused_rnn", "--json"], 120)] * (not s.small)
    if shutil.which("nvidia-smi"):
        facts.insert(0, Job("nvidia-smi", ["nvidia-smi"], 20))
    yield Stage("facts", "the device, and whether the installation is well", 200, facts)
    cases = ("lstm fp32 3 5 19 1", "gru fp32 3 2 9 2") if s.small else _SMOKE
    smoke = _cases(s, cases, (STEPWISE, PERSISTENT), 40)
    yield Stage("smoke", "small problems, checked", 300, smoke)
    title = "LSTM, H = I = 768, N = 16, T = 1024, by each way"
    yield Stage("anchor", title, 400, _anchors(s))
    floor = [Job("floor", _part(s, "floor"), 120)]
    yield Stage("floor", "the exchange and the products alone", 120, floor)
    every = [Job("every", _part(s, "kernels", "--folder", s.folder), 600)]
    yield Stage("kernels", "each compiled kernel once", 600, every)
    no_pytest = None if find_spec("pytest") else "pytest is not installed"
    yield Stage("tests", "the tests, in the order of their worth", 1000, _tests(s), no_pytest)
    suite = [Job("suite", _part(s, "tune", "--folder", s.folder), 600)]
    yield Stage("tune", "every way of a suite of problems", 600, suite)
    yield Stage("bench", "beside cuDNN and the peers that are installed", 600, _bench(s))
    tools, no_tools = _tools(s)
    yield Stage("tools", "sanitizer and profiler", 600, tools, no_tools)

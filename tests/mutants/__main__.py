"""Seeds faults, one at a time, and reports which of them the core tier does not notice.

    python -m tests.mutants [--full] [--list] [name or beginning of names ...]

Each is made in a copy of the tree below build/mutants, a copy for each core; what it needs is
compiled there (the CPU's kernels for one SIMD level and little optimised; the host bench by the
tests that use it). The tests that should notice run once as they are, and have to pass; then with
each fault until one fails. Exits with 1 where one survives that is not argued.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fused_rnn import command
from fused_rnn.backends.native import simd_level
from tests.native.build import CompilationError

from . import (
    backends,
    core,
    cpu,
    cuda_persistent,
    cuda_stepwise,
    graph,
    layers,
    native,
    package,
    quantized,
    scans,
    triton,
    tuning,
    variants,
)
from .mutant import Mutant

ROOT = Path(__file__).parents[2]
COPIES = ROOT / "build" / "mutants"
PYTHON = (package, layers, graph, scans, backends, native, triton, tuning, variants)
# What is built into a copy's module comes last: the others' tests use the module as it is.
ROOMS = (*PYTHON, cuda_stepwise, cuda_persistent, core, cpu)
MUTANTS = (
    *quantized.PYTHON,
    *(mutant for room in ROOMS for mutant in room.MUTANTS),
    *quantized.KERNELS,
    *variants.KERNELS,
)
SECONDS = 600  # for the tests of one; one that hangs has been noticed
NO_TESTS = 5  # pytest's exit status where all are left out
INTERPRETED = "tests/backends/triton/test_kernels.py"  # whole file in Triton's interpreter


class Verdict(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    noticed_by: str | None
    seconds: float


def wrong(mutants: tuple[Mutant, ...]) -> list[str]:
    """Return what is wrong with the list itself: the sources may have moved on."""
    found = []
    for m in mutants:
        path = ROOT / m.file
        count = path.read_text().count(m.find) if path.exists() else 0
        if count != 1:
            found.append(f"{m.name}: {m.file} has what it replaces {count} times")
        found += [f"{m.name}: there is no {t}" for t in m.tests if not (ROOT / t).exists()]
    names = [m.name for m in mutants]
    return found + [f"{name}: twice" for name in sorted(set(names)) if names.count(name) > 1]


def environment(copy: Path) -> dict[str, str]:
    """Return the environment for builds and tests of a copy."""
    return os.environ | {
        "PYTHONPATH": str(copy),
        "FUSED_RNN_LEVEL": simd_level(),
        "FUSED_RNN_CXXFLAGS": "-O1",
        "MAX_JOBS": "1",
        "OMP_NUM_THREADS": "1",
    }


def compiled_by_setup(mutant: Mutant) -> bool:
    """Return whether the native module has to be built anew."""
    return mutant.file.startswith("csrc/") and not mutant.file.startswith("csrc/cuda/")


def build(copy: Path) -> str | None:
    """Build the native module of a copy; return None, or what the compiler said."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    run = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True)
    return None if run.returncode == 0 else run.stdout[-2000:] + run.stderr[-2000:]


def make_copy(number: int) -> Path:
    """Return a copy of what git tracks or would track, with its module and test libraries built."""
    copy = COPIES / str(number)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        target = copy / name
        if (ROOT / name).is_file() and not (
            target.exists() and target.read_bytes() == (ROOT / name).read_bytes()
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    failure = build(copy)
    if failure is not None:
        raise RuntimeError(f"the unchanged sources do not build in {copy}:\n{failure}")
    prebuild = [sys.executable, "-m", "tests.native.prebuild"]
    subprocess.run(prebuild, cwd=copy, env=environment(copy), check=True, capture_output=True)
    return copy


def fails(test: str, copy: Path, full: bool) -> str | None:
    """Run the tests of a file in a copy until one fails; return which, or None.

    Raises:
        RuntimeError: if what they need does not compile: that is no test that noticed a fault.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", test]
    command += [] if full else ["--core"]
    given = environment(copy)
    if test == INTERPRETED:
        given["TRITON_INTERPRET"] = "1"
    run = subprocess.Popen(
        command, cwd=copy, env=given, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, _ = run.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # with the compilers that it has started
        run.wait()
        return f"{test}: it hangs"
    if CompilationError.__name__ in said:
        raise RuntimeError(f"what {test} needs does not compile in {copy}:\n{said[-2000:]}")
    if run.returncode in (0, NO_TESTS):
        return None
    lines = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (lines or [f"{test}: exit status {run.returncode}"])[0][:160]


def noticed_by(mutant: Mutant, copy: Path, full: bool) -> str | None:
    """Run the tests of a mutant in its copy; return what noticed it."""
    if compiled_by_setup(mutant):
        failure = build(copy)
        if failure is not None:
            raise RuntimeError(f"{mutant.name} does not compile:\n{failure}")
    return next((found for t in mutant.tests if (found := fails(t, copy, full)) is not None), None)


def unfaulted(test: str, copies: queue.Queue[Path], full: bool) -> str | None:
    """Run the tests of a file in a free copy as it is: what fails there notices nothing."""
    copy = copies.get()
    try:
        return fails(test, copy, full)
    finally:
        copies.put(copy)


def judge(mutant: Mutant, copies: queue.Queue[Path], full: bool) -> Verdict:
    """Seed a fault in a free copy, test it, and take it back."""
    copy, begin = copies.get(), time.monotonic()
    path = copy / mutant.file
    original = (ROOT / mutant.file).read_text()
    try:
        path.write_text(original.replace(mutant.find, mutant.replace))
        found = noticed_by(mutant, copy, full)
    finally:
        path.write_text(original)
        copies.put(copy)
    seconds = time.monotonic() - begin
    word = "noticed " if found else "argued  " if mutant.argued else "SURVIVES"
    print(f"{word} {seconds:4.0f} s  {mutant.name}: {found or mutant.argued}", flush=True)
    return Verdict(mutant, found, seconds)


def main(arguments: list[str]) -> int:
    """Judge the mutants asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="names, or how they begin; none: all")
    parser.add_argument("--full", action="store_true", help="by the full tier, not the core tier")
    parser.add_argument("--list", action="store_true", help="only check the list, and print it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="copies side by side")
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not given.names or m.name.startswith(tuple(given.names))]
    faults = wrong(MUTANTS)
    if faults or not chosen:
        print("\n".join(faults) or f"no mutant is called {given.names}")
        return 2
    if given.list:
        print("\n".join(f"{m.name}: {m.file}" for m in chosen))
        return 0
    begin, copies = time.monotonic(), queue.Queue()
    tests = sorted({test for m in chosen for test in m.tests})
    with ThreadPoolExecutor(given.jobs) as pool:
        for copy in pool.map(make_copy, range(given.jobs)):
            copies.put(copy)
        broken = sorted(filter(None, pool.map(lambda t: unfaulted(t, copies, given.full), tests)))
        if broken:
            print("\n".join(f"fails without any fault: {found}" for found in broken))
            return 2
        verdicts = list(pool.map(lambda m: judge(m, copies, given.full), chosen))
    alive = [v.mutant for v in verdicts if v.noticed_by is None and not v.mutant.argued]
    noticed = sum(v.noticed_by is not None for v in verdicts)
    print(f"{noticed} of {len(chosen)} noticed, {len(alive)} survive without an argument: ", end="")
    print(f"{', '.join(m.name for m in alive) or 'none'}; {time.monotonic() - begin:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))

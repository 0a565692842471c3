"""Runs the C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    python -m tests.native.sanitize [address] [avx2] [thread] [variants] [quantized] [cuda]
        [persistent]

compiles it without Python and PyTorch, into a program that solves many problems and compares each
with plain loops; for CUDA, into one that runs its kernels on the host bench. Of the levels those
that this CPU has; avx2 beside avx512 only where it is named, as its code, but for conversions from
register to register, is that of the wider and of the narrower registers. The persistent kernels
too, which are many and large: their own tests, with sanitized kernels, take twenty minutes. Exits
with 1 where a sanitizer or a comparison finds something.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fused_rnn import command

from .build import (
    LEVELS,
    NATIVE,
    ROOT,
    Target,
    UnbuildableError,
    Unit,
    build,
    compiler,
    cpu_flags,
    shipped_flags,
)
from .quantized import SHIPPED, lacks
from .simt import library as simt

CPU = ROOT / "csrc" / "cpu"


class Build(NamedTuple):
    """What is compiled in which way, and what the program is to run."""

    flags: tuple[str, ...]
    level_flags: tuple[str, ...]
    levels: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]  # the arguments of each; they run side by side


AVX2 = "avx2"


def runs_here(level: str) -> bool:
    """Return whether the CPU has a level's instructions; it may where the system does not tell."""
    flags = cpu_flags()
    if flags is None:
        return True
    needed = set((LEVELS[level][0] or "").split(",")) - {""}
    needed |= {"amx_tile", "amx_bf16"} if level == "amx" else set()
    return needed <= flags


def without_those_between(levels: list[str]) -> list[str]:
    """Leave avx2 out where avx512 is there."""
    return [level for level in levels if level != AVX2 or "avx512" not in levels]


def checked_for_addresses(*levels: str) -> Build:
    """Return a build of these levels at -O0: four times as fast to compile as at -O1.

    And nothing is optimised away before it is checked.
    """
    flags = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    return Build(flags, ("-O0",), levels, tuple((level,) for level in levels))


BUILDS = {
    "address": checked_for_addresses(*without_those_between(list(filter(runs_here, LEVELS)))),
    AVX2: checked_for_addresses(AVX2),
    # Neither the element type nor the registers make a difference to what threads share.
    "thread": Build(
        ("-fsanitize=thread", "-include", str(NATIVE / "float_only.h"), "-Wno-switch"),
        ("-O1",),
        ("portable",),
        (("teams",),),
    ),
}


def units_of(name: str) -> tuple[Unit, ...]:
    """Return what a build compiles, the longest first."""
    flags, level_flags, levels, _ = BUILDS[name]
    common = (*shipped_flags(), "-g1", "-pthread", "-Wall", "-Wextra", "-Wno-psabi", *flags)
    units = [
        Unit(CPU / f"{run}_{level}.cpp", (*common, *level_flags))
        for level in reversed(levels)
        for run in ("forward", "backward")
    ]
    linked = "-DFUSED_RNN_BENCH_LEVELS(X)=" + " ".join(f"X({level})" for level in levels)
    for source in ("sanitize", "switched_scratch"):
        units.append(Unit(NATIVE / f"{source}.cpp", (*common, "-O1", linked)))
    return tuple(units)


def build_apart(
    name: str, scratch: Path, more: tuple[str, ...] = (), but_last: tuple[str, ...] = ()
) -> Path:
    """Build the program of a folder's kernels, for the levels of the address sanitizer.

    Args:
        more: levels of the folder's own, beside those of others
        but_last: flags of all levels but the last
    """
    flags, level_flags, levels, _ = BUILDS["address"]
    common = (*shipped_flags(), "-g1", "-pthread", "-Wall", "-Wextra", "-Wno-psabi", *flags)
    having = [x for x in (*levels, *more) if (CPU / name / f"{x}.cpp").exists()]
    linked = "-DFUSED_RNN_BENCH_LEVELS(X)=" + " ".join(f"X({level})" for level in having)
    units = []
    for level in having:
        own = () if level == having[-1] else but_last
        units.append(Unit(CPU / name / f"{level}.cpp", (*common, *level_flags, *own)))
    units.append(Unit(NATIVE / f"sanitize_{name}.cpp", (*common, *level_flags, linked)))
    units.append(Unit(scratch, common))
    return build(Target(f"{name}/sanitize", tuple(units), (*flags[:1], "-pthread")), report=report)


def build_variants(name: str) -> Path:
    """Build the program of the variants' kernels."""
    return build_apart(name, CPU / "scratch.cpp")


def build_quantized(name: str) -> Path:
    """Build the program of the kernels for int8 and bfloat16 weights.

    What is undefined in the one source is checked once, which is a third of the compiling.
    """
    vnni = [level for level in SHIPPED if level.endswith("_vnni") and lacks(level) is None]
    once = ("-fno-sanitize=undefined",)
    return build_apart(name, NATIVE / "switched_scratch.cpp", tuple(vnni), once)


def report(line: str) -> None:
    """Say what was compiled."""
    print(f"  {line}", flush=True)


def build_scans(name: str) -> Path:
    """Build a program of the CPU's kernels."""
    flags = (*BUILDS[name].flags[:1], "-pthread")
    return build(Target(f"{name}/sanitize", units_of(name), flags), report=report)


def build_gates(name: str) -> Path:
    """Build the program of CUDA's kernels."""
    return simt.program(name, simt.SIMT / "gates_main.cpp", simt.GATES, report)


PERSISTENT = "persistent"
TESTS = (
    "tests/backends/native/cuda/test_persistent_forward.py",
    "tests/backends/native/cuda/test_persistent_backward.py",
)
REPEATED = "test_the_order_of_threads_and_blocks_does_not_matter"  # the same accesses over again


def in_python() -> dict[str, str]:
    """Return the environment in which an unsanitized Python runs sanitized kernels."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            [*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            raise UnbuildableError(f"the C++ compiler has no {name}")
        libraries.append(found)
    return {
        "LD_PRELOAD": ":".join(libraries),
        "PYTHONMALLOC": "malloc",
        # Python leaks by design; and a second, fake stack for each fibre takes most of the time.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        simt.SANITIZE: "1",
    }


PROGRAMS = {
    **dict.fromkeys(BUILDS, build_scans),
    "variants": build_variants,
    "quantized": build_quantized,
    "cuda": build_gates,
}
UNNAMED = [name for name in PROGRAMS if name != AVX2]


class Run(NamedTuple):
    """A command, and the environment it needs beside this one's."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


def runs_of(name: str) -> list[Run]:
    """Build what a name stands for; return what is to be run."""
    # A first report ends the program: what comes after it may be its consequence.
    environment = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    if name == PERSISTENT:
        # A report goes past Python to the real standard error, and says no test's name.
        shown = ("-vv", "--capture=sys", "-p", "no:faulthandler")
        command = (sys.executable, "-m", "pytest", *shown, *TESTS, "-k", f"not {REPEATED}")
        return [Run(name, command, environment | in_python())]
    print(f"{name}: compiling ...", flush=True)
    program = str(PROGRAMS[name](name))
    given = BUILDS[name].runs if name in BUILDS else ((),)
    return [Run(" ".join((name, *more)), (program, *more), environment) for more in given]


def run(what: Run) -> bool:
    """Run a program to its end, say what it said, and return whether all is well."""
    begin = time.monotonic()
    done = subprocess.run(
        what.command,
        env=os.environ | what.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    verdict = "nothing found" if done.returncode == 0 else f"FAILED (status {done.returncode})"
    seconds = time.monotonic() - begin
    print(f"{done.stdout}{what.name}: {verdict}, {seconds:.0f} s", flush=True)
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Run the named builds, or all; return the exit status."""
    known = [*PROGRAMS, PERSISTENT]
    unknown = set(names) - set(known)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    try:
        runs = [what for name in names or UNNAMED for what in runs_of(name)]
    except UnbuildableError as reason:
        print(reason)
        return 1
    print("running ...", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return 0 if all(list(pool.map(run, runs))) else 1


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))

"""Compiles every kernel for every architecture, no GPU needed, and says what each kernel takes.

    python -m tests.native.check_cuda [--renew]

Warnings are errors. The table of registers, shared memory, stack frames and spills is compared with
csrc/cuda/resources.txt (--renew writes it anew instead). Without nvcc there is nothing to check.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csrc.cuda import nvcc
from csrc.cuda.nvcc import ROOT, SOURCES, Architecture, CudaBuildError, Toolkit

from . import resources
from .resources import Table, Usage

ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
COMMITTED = ROOT / "csrc" / "cuda" / "resources.txt"
CACHE = ROOT / "build" / "check_cuda"


def measure(source: Path, number: str, toolkit: Toolkit) -> dict[str, Usage]:
    """Compile a source for one architecture, unless nothing has changed; return usage by name."""
    command = [toolkit.nvcc, *nvcc.FLAGS, *nvcc.WERROR, "-Xptxas", "-v"]
    command += ["-cubin", f"-arch=sm_{number}", str(source)]
    record = CACHE / f"{source.stem}.sm_{number}.txt"
    state = nvcc.digest([toolkit.release, *command], nvcc.inputs(source))
    known = record.read_text() if record.exists() else ""
    if not known.startswith(state):
        begin = time.monotonic()
        run = subprocess.run(
            [*command, "-o", str(record.with_suffix(".cubin"))], capture_output=True, text=True
        )
        report = run.stdout + run.stderr
        if run.returncode != 0:
            raise CudaBuildError(f"{source.name} does not compile for sm_{number}:\n{report}")
        known = state + "\n" + report
        record.write_text(known)
        seconds = time.monotonic() - begin
        print(f"  {source.name} for sm_{number}: {seconds:.0f} s", flush=True)
    usage = resources.parse_ptxas(known)
    names = resources.readable(usage)
    if len(set(names.values())) != len(names):
        raise CudaBuildError(
            f"{source.name} has kernels that differ only in namespace or arguments"
        )
    return {names[mangled]: used for mangled, used in usage.items()}


def measure_all(toolkit: Toolkit, numbers: list[str]) -> Table:
    """Return the table of all kernels, two compilers at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    every = [Architecture(number) for number in numbers]
    work = [(source, a.number) for source in SOURCES for a in nvcc.targets_of(source, every)]
    work.sort(key=lambda unit: unit[0].stem not in nvcc.LARGE_SOURCES)  # the long ones first
    table: Table = {}
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda unit: measure(*unit, toolkit), work)
        for (_, number), usage in zip(work, found, strict=True):
            for kernel, used in usage.items():
                table.setdefault(kernel, {})[f"sm_{number}"] = used
    return table


def judge(table: Table, release: str) -> bool:
    """Compare with the committed table, say what differs, and return whether all is well."""
    try:
        known_release, committed = resources.parse_table(COMMITTED.read_text())
    except FileNotFoundError:
        print(f"{COMMITTED.relative_to(ROOT)} is missing: `make check-cuda RENEW=1` makes it.")
        return False
    same_release = known_release == release
    if not same_release:
        print(
            f"The table is nvcc {known_release}'s: under {release}, only spills and stacks count."
        )
    result = resources.compare(committed, table, same_release=same_release)
    if result.notes:
        print(f"  {len(result.notes)} figures changed within the margin.")
    for line in result.failures:
        print(f"  FAILED: {line}")
    if result.failures:
        print(
            f"The kernels take more than {COMMITTED.relative_to(ROOT)} says, or are others. Where "
            "that is meant, renew the table with `make check-cuda RENEW=1` and commit it."
        )
    return not result.failures


def main(arguments: list[str]) -> int:
    """Check, or renew the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="check_cuda", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="write the table anew")
    renew = parser.parse_args(arguments).renew
    try:
        nvcc.find_nvcc()
    except CudaBuildError as reason:
        print(f"Nothing was checked: {reason}")
        return 0
    begin = time.monotonic()
    try:
        toolkit = nvcc.find_toolkit()
        known = [n for n in ARCHITECTURES if n.rstrip("a") in toolkit.numbers]
        if len(known) < len(ARCHITECTURES):
            missing = ", ".join(f"sm_{n}" for n in ARCHITECTURES if n not in known)
            print(f"nvcc {toolkit.release} does not know {missing}: not checked.")
        table = measure_all(toolkit, known)
    except CudaBuildError as reason:
        print(reason)
        return 1
    text = resources.render(table, toolkit.release, [f"sm_{number}" for number in known])
    print(text, end="")
    if renew:
        COMMITTED.write_text(text)
    well = renew or judge(table, toolkit.release)
    verdict = "table renewed" if renew else "all well" if well else "FAILED"
    print(f"{len(table)} kernels on {len(known)} architectures: {verdict}, ", end="")
    print(f"{time.monotonic() - begin:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

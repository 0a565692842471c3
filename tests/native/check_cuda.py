"""Compiles every kernel, no GPU needed, and says what each takes of one.

    python -m tests.native.check_cuda [--all] [--renew]

For one GPU of each kind of code path, or for all. Of the persistent kernels, nine tenths of the
work, only the latter has every pair of a cell and a kind of product; the host bench has all pairs
compiled for each commit, by another compiler. Warnings are errors. The table of registers, shared
memory, stack frames and spills, and of what the machine code must not have (sass.py), is compared
with csrc/cuda/resources.txt (--renew writes it anew instead). Without nvcc there is nothing to
check, and without cuobjdump no machine code.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csrc.cuda import nvcc
from csrc.cuda.nvcc import ROOT, SOURCES, Architecture, CudaBuildError, Toolkit
from fused_rnn import command

from . import resources, sass
from .resources import Table, Usage

ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
# Asynchronous copies and no clusters; clusters; clusters and less shared memory.
KINDS = ("80", "90a", "120")
# Of which of these the machine code is looked at for each commit.
WITH_CODE = "90a"
COMMITTED = ROOT / "csrc" / "cuda" / "resources.txt"


def measure(
    source: Path, number: str, toolkit: Toolkit, cuobjdump: str | None, few: bool
) -> dict[str, Usage]:
    """Compile a source for one architecture, unless nothing has changed; return usage by name."""
    compiled = nvcc.compile_object(source, [Architecture(number)], toolkit, werror=True, few=few)
    usage = resources.parse_ptxas(compiled.report)
    names = resources.readable(usage)
    if cuobjdump is not None:
        code = sass.read(cuobjdump, compiled.path)
        usage = {m: used.with_code(names[m], code[m]) for m, used in usage.items()}
    if len(set(names.values())) != len(names):
        raise CudaBuildError(
            f"{nvcc.name(source)} has kernels that differ only in namespace or arguments"
        )
    return {names[mangled]: used for mangled, used in usage.items()}


def measure_all(
    toolkit: Toolkit,
    numbers: list[str],
    few: bool,
    with_code: Collection[str],
    cuobjdump: str | None,
) -> Table:
    """Return the table of the kernels, a compiler on each core.

    Args:
        few: whether to leave out most pairs of a cell and a kind of product
        with_code: the architectures whose machine code is looked at
    """
    every = [Architecture(number) for number in numbers]
    work = [(source, a.number) for source in SOURCES for a in nvcc.targets_of(source, every)]
    work.sort(key=lambda unit: unit[0].parent != nvcc.LARGE)  # the long ones first
    table: Table = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(
            lambda unit: measure(
                *unit,
                toolkit,
                cuobjdump if unit[1] in with_code else None,
                few=few and unit[0].parent == nvcc.LARGE,
            ),
            work,
        )
        for (_, number), usage in zip(work, found, strict=True):
            for kernel, used in usage.items():
                table.setdefault(kernel, {})[f"sm_{number}"] = used
    return table


def judge(
    table: Table,
    release: str,
    whole: Collection[str] | None = None,
    with_code: Collection[str] | None = None,
) -> bool:
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
    result = resources.compare(
        committed, table, same_release=same_release, whole=whole, with_code=with_code
    )
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
    parser.add_argument("--all", action="store_true", help="for every GPU, not one of each kind")
    parser.add_argument("--renew", action="store_true", help="write the table anew, for every GPU")
    given = parser.parse_args(arguments)
    renew, wanted = given.renew, ARCHITECTURES if given.all or given.renew else KINDS
    try:
        nvcc.find_nvcc()
    except CudaBuildError as reason:
        print(f"Nothing was checked: {reason}")
        return 0
    begin = time.monotonic()
    try:
        toolkit = nvcc.find_toolkit()
        known = [n for n in wanted if n.rstrip("a") in toolkit.numbers]
        if len(known) < len(wanted):
            missing = ", ".join(f"sm_{n}" for n in wanted if n not in known)
            print(f"nvcc {toolkit.release} does not know {missing}: not checked.")
        cuobjdump = sass.find_cuobjdump(toolkit.nvcc)
        if cuobjdump is None:
            print("No cuobjdump: the machine code is not checked (Triton's package has one).")
            if renew:
                return 1
        few = not (given.all or renew)
        with_code = [WITH_CODE] if few else known
        table = measure_all(toolkit, known, few, with_code, cuobjdump)
    except CudaBuildError as reason:
        print(reason)
        return 1
    text = resources.render(table, toolkit.release, [f"sm_{number}" for number in known])
    print(text, end="")
    if renew:
        COMMITTED.write_text(text)
    coded = [f"sm_{n}" for n in with_code if cuobjdump]
    well = renew or judge(table, toolkit.release, [] if few else None, coded)
    verdict = "table renewed" if renew else "all well" if well else "FAILED"
    print(f"{len(table)} kernels on {len(known)} architectures: {verdict}, ", end="")
    print(f"{time.monotonic() - begin:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))

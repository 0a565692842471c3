"""What each kernel takes of a GPU, as ptxas reports it: reading, printing, comparing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

# A GPU hands a thread its registers by the eight, so up to eight more cost one step of occupancy at
# most; compilers move that much for a trifle.
REGISTER_MARGIN = 8

HEADER = """\
# What the kernels take, as `make check-cuda` found it; `make check-cuda RENEW=1` writes it anew.
# Registers of a thread; then, where there are any, bytes: /N static shared memory, ~N stack frame,
# !N spilled.
"""


class Usage(NamedTuple):
    """What one kernel takes on one architecture."""

    registers: int
    shared: int = 0  # bytes, without what the launch adds
    stack: int = 0  # bytes a thread
    spills: int = 0  # bytes stored and loaded

    def __str__(self) -> str:
        marked = zip("/~!", self[1:], strict=True)
        return str(self.registers) + "".join(f"{mark}{n}" for mark, n in marked if n)


Table = dict[str, dict[str, Usage]]  # kernel -> architecture -> usage


class Comparison(NamedTuple):
    """What is wrong against the committed table, and what is merely worth knowing."""

    failures: list[str]
    notes: list[str]


def parse_usage(text: str) -> Usage:
    """Read what ``str(usage)`` gave."""
    match = re.fullmatch(r"(\d+)(?:/(\d+))?(?:~(\d+))?(?:!(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no entry of a table of resources")
    return Usage(*(int(number or 0) for number in match.groups()))


def parse_ptxas(text: str) -> dict[str, Usage]:
    """Read the output of ``ptxas -v``; return usage by mangled name.

    A function that was not inlined counts towards the kernel whose report it stands in.
    """
    found: dict[str, Usage] = {}
    for report in re.split(r"Compiling entry function ", text)[1:]:
        name = re.match(r"'([^']+)'", report)
        registers = re.search(r"Used (\d+) registers", report)
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
        )
        if name is None or registers is None or not frames:
            raise ValueError(f"ptxas reported in a form not known here: {report[:300]!r}")
        shared = re.search(r"(\d+) bytes smem", report)
        found[name[1]] = Usage(
            int(registers[1]),
            int(shared[1]) if shared else 0,
            sum(int(stack) for stack, _, _ in frames),
            sum(int(stores) + int(loads) for _, stores, loads in frames),
        )
    return found


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """Return kernels' names as ``forward_step<Lstm, Half, 8>``, by mangled name."""
    names = list(mangled)
    run = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, map(shorten, run.stdout.splitlines()), strict=True))


def shorten(name: str) -> str:
    """Leave out of a demangled name what says nothing: namespaces, arguments, the result."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::|\((?:int|bool|unsigned int)\)", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for position, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            return name[:position]
    return name


def render(table: Table, release: str, architectures: list[str]) -> str:
    """Return the table as it is committed, made by this release of nvcc."""
    columns = [["", *sorted(table)]]
    for name in architectures:
        columns.append([name, *(str(table[kernel].get(name, "-")) for kernel in sorted(table))])
    widths = [max(map(len, column)) for column in columns]
    lines = [f"{HEADER}# nvcc {release}"]
    for kernel, *cells in zip(*columns, strict=True):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(" ".join([kernel.ljust(widths[0]), *padded]))
    return "\n".join(lines) + "\n"


def parse_table(text: str) -> tuple[str, Table]:
    """Read what :func:`render` gave; return the release of nvcc and the table."""
    release = re.search(r"^# nvcc (\S+)$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if release is None or not lines:
        raise ValueError("not a table of resources")
    architectures = lines[0].split()
    table: Table = {}
    for line in lines[1:]:
        kernel, *cells = line.rsplit(maxsplit=len(architectures))
        pairs = zip(architectures, cells, strict=True)
        table[kernel] = {name: parse_usage(cell) for name, cell in pairs if cell != "-"}
    return release[1], table


def compare(committed: Table, measured: Table, *, same_release: bool) -> Comparison:
    """Judge what was measured.

    Another spill, stack frame or shared byte fails, and so do more than :data:`REGISTER_MARGIN`
    more registers and a kernel that only one of the tables has. Any other change is only noted.
    Registers and shared memory are the compiler's choice, and compared under the same release only.
    """
    result = Comparison([], [])
    architectures = {name for row in measured.values() for name in row}
    for kernel in sorted(committed.keys() | measured.keys()):
        before, after = committed.get(kernel, {}), measured.get(kernel, {})
        for name in sorted((before.keys() & architectures) | after.keys()):
            where = f"{kernel} on {name}"
            if name not in before:
                result.failures.append(f"{where}: not in the table")
            elif name not in after:
                result.failures.append(f"{where}: in the table, but no longer compiled")
            else:
                _compare_usage(where, before[name], after[name], same_release, result)
    return result


def _compare_usage(
    where: str, before: Usage, after: Usage, same_release: bool, result: Comparison
) -> None:
    margins = {"spills": 0, "stack": 0}
    if same_release:
        margins |= {"shared": 0, "registers": REGISTER_MARGIN}
    for field, margin in margins.items():
        old, new = getattr(before, field), getattr(after, field)
        line = f"{where}: {_WORDS[field]} {old} -> {new}"
        if new > old + margin:
            result.failures.append(line)
        elif new != old:
            result.notes.append(line)


_WORDS = {
    "spills": "bytes spilled",
    "stack": "bytes of stack frame",
    "shared": "bytes of shared memory",
    "registers": "registers",
}

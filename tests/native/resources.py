"""What each kernel takes of a GPU, by ptxas's report and its code: reading, printing, comparing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .sass import Code

# A GPU hands a thread its registers by the eight, so up to eight more cost one step of occupancy at
# most; compilers move that much for a trifle.
REGISTER_MARGIN = 8

HEADER = """\
# What the kernels take, as `make check-cuda` found it; `make check-cuda RENEW=1` writes it anew.
# Registers of a thread; then, where there are any, bytes: /N static shared memory, ~N stack frame,
# !N spilled; and of the machine code: @N:M of M loads of what other blocks write, N are waited for
# one after another, &N calls, %N stores below 128 bits in a kernel of wide accesses.
"""


class Usage(NamedTuple):
    """What one kernel takes on one architecture."""

    registers: int
    shared: int = 0  # bytes, without what the launch adds
    stack: int = 0  # bytes a thread
    spills: int = 0  # bytes stored and loaded
    exposed: int = 0  # as sass.Code has it, and so on
    strong: int = 0
    calls: int = 0
    narrow: int = 0

    def __str__(self) -> str:
        loads = f"{self.exposed}:{self.strong}" if self.strong else 0
        values = (self.shared, self.stack, self.spills, loads, self.calls, self.narrow)
        marked = zip("/~!@&%", values, strict=True)
        return str(self.registers) + "".join(f"{mark}{value}" for mark, value in marked if value)

    def with_code(self, kernel: str, code: Code) -> Usage:
        """Return this and what the code has; narrow stores count in kernels of wide accesses."""
        narrow = code.narrow if is_wide(kernel) else 0
        return self._replace(**code._asdict() | {"narrow": narrow})


def is_wide(kernel: str) -> bool:
    """Return whether a kernel of the stepwise path takes several units in accesses of 16 bytes."""
    return re.fullmatch(r"(?!persistent_|floor_).*[<, ][248]>", kernel) is not None


# What is not mended yet; the table keeps it from growing. Of the generation of sm_80 a call is left
# in most kernels, and loads in a row; of the floor's kernels, loads in a row of two.
UNMENDED_GPUS = frozenset({"sm_80", "sm_86", "sm_89"})
UNMENDED_KERNELS = frozenset(
    {"floor_steps<NoProduct, 1, false>", "floor_steps<TensorProduct<Half>, 1, false>"}
)


def bars(kernel: str, name: str, usage: Usage) -> list[str]:
    """Return what no kernel may have, whatever the table says."""
    where, found = f"{kernel} on {name}", []
    if name in UNMENDED_GPUS:
        return found
    if 4 * usage.exposed > usage.strong and kernel not in UNMENDED_KERNELS:
        found.append(f"{where}: {usage.exposed} of {usage.strong} loads from other blocks in a row")
    if usage.calls:
        found.append(f"{where}: {usage.calls} calls of functions that are not inlined")
    if usage.narrow:
        found.append(f"{where}: {usage.narrow} stores below 128 bits")
    return found


Table = dict[str, dict[str, Usage]]  # kernel -> architecture -> usage


class Comparison(NamedTuple):
    """What is wrong against the committed table, and what is merely worth knowing."""

    failures: list[str]
    notes: list[str]


def parse_usage(text: str) -> Usage:
    """Read what ``str(usage)`` gave."""
    match = re.fullmatch(
        r"(\d+)(?:/(\d+))?(?:~(\d+))?(?:!(\d+))?(?:@(\d+):(\d+))?(?:&(\d+))?(?:%(\d+))?", text
    )
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


def compare(
    committed: Table,
    measured: Table,
    *,
    same_release: bool,
    whole: Collection[str] | None = None,
    with_code: Collection[str] | None = None,
) -> Comparison:
    """Judge what was measured.

    ``whole``: the architectures of which all kernels were, ``with_code``: and those of which the
    machine code was too; None for every one.

    Another spill, stack frame or shared byte fails, one more load that is waited for alone, call or
    narrow store, more than :data:`REGISTER_MARGIN` more registers, and a kernel that only one of
    the tables has. Any other change is only noted. But for stacks and spills, all of it is the
    compiler's choice, and compared under the same release only; :func:`bars` hold under any.
    """
    result = Comparison([], [])
    architectures = {name for row in measured.values() for name in row}
    for kernel in sorted(committed.keys() | measured.keys()):
        before, after = committed.get(kernel, {}), measured.get(kernel, {})
        for name in sorted((before.keys() & architectures) | after.keys()):
            where = f"{kernel} on {name}"
            coded = with_code is None or name in with_code
            if name not in before:
                result.failures.append(f"{where}: not in the table")
            elif name not in after:
                if whole is not None and name not in whole:
                    continue
                result.failures.append(f"{where}: in the table, but no longer compiled")
            else:
                if coded:
                    result.failures.extend(bars(kernel, name, after[name]))
                _compare_usage(where, before[name], after[name], result, same_release, coded)
    return result


def _compare_usage(
    where: str,
    before: Usage,
    after: Usage,
    result: Comparison,
    same_release: bool,
    with_code: bool,
) -> None:
    margins = {"spills": 0, "stack": 0}
    if same_release:
        margins |= {"shared": 0, "registers": REGISTER_MARGIN}
    if same_release and with_code:
        margins |= {"exposed": 0, "calls": 0, "narrow": 0}
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
    "exposed": "loads from other blocks in a row",
    "calls": "calls",
    "narrow": "stores below 128 bits",
}

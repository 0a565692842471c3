"""What machine code says that a compiler's report does not: loads waited for, calls, stores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import NamedTuple


class Code(NamedTuple):
    """What the machine code of one kernel has."""

    # Loads of what other blocks write, and for how many of them a consumer waits that were issued
    # after the wait before: latencies that follow each other, where one could hide the others.
    strong: int = 0
    exposed: int = 0
    calls: int = 0  # of functions that were not inlined: a division's slow path, say
    narrow: int = 0  # stores to global memory of less than 128 bits


class _Instruction(NamedTuple):
    op: str
    registers: list[int]  # the destination first, where there is one

    @property
    def sources(self) -> list[int]:
        """The registers that are read, of wide operands where products have them."""
        r = self.registers
        if self.op.startswith("HMMA") and len(r) >= 3:
            a, b = r[1], r[2]
            return [*range(a, a + 4), b, b + 1, *r[3:]]
        without_destination = self.op.startswith(("ST", "RED", "ISETP", "FSETP", "BRA"))
        return r if without_destination else r[1:]

    @property
    def words(self) -> int:
        """How many registers a load fills."""
        width = re.search(r"\.(64|128|256)\b", self.op)
        return int(width[1]) // 32 if width else 1


_LINE = re.compile(r"\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P[0-9T]+ )?([A-Z0-9_.]+)\s*(.*?);")


def find_cuobjdump(nvcc: str) -> str | None:
    """Return what shows machine code: $CUOBJDUMP, the toolkit's, the PATH's, or Triton's."""
    named = os.environ.get("CUOBJDUMP")
    places = [named] if named else [str(Path(nvcc).resolve().parent / "cuobjdump"), "cuobjdump"]
    triton = util.find_spec("triton")
    if not named and triton is not None and triton.submodule_search_locations:
        root = Path(triton.submodule_search_locations[0])
        places.append(str(root / "backends" / "nvidia" / "bin" / "cuobjdump"))
    return next(filter(None, map(shutil.which, places)), None)


def read(cuobjdump: str, compiled: Path) -> dict[str, Code]:
    """Return what an object's kernels have, by mangled name."""
    # It starts nvdisasm, which lies beside it.
    path = f"{Path(cuobjdump).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    run = subprocess.run(
        [cuobjdump, "-sass", str(compiled)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    if run.returncode != 0:
        raise RuntimeError(f"{cuobjdump} failed on {compiled}: {run.stderr}")
    return parse(run.stdout)


def parse(text: str) -> dict[str, Code]:
    """Read what ``cuobjdump -sass`` printed."""
    found = {}
    for part in re.split(r"Function : ", text)[1:]:
        name, _, listing = part.partition("\n")
        found[name.strip()] = analyse(list(_instructions(listing)))
    return found


def _instructions(listing: str) -> Iterator[_Instruction]:
    for match in filter(None, map(_LINE.match, listing.split("\n"))):
        op, arguments = match.groups()
        yield _Instruction(op, [int(r) for r in re.findall(r"\bR(\d+)\b", arguments)])


def analyse(instructions: list[_Instruction]) -> Code:
    """Go through a kernel's instructions as they stand: a loop's body counts once."""
    issued: dict[int, int] = {}  # by register: when the load that fills it was issued
    last_wait = strong = exposed = 0
    for now, instruction in enumerate(instructions, start=1):
        awaited = [r for r in instruction.sources if r in issued]
        if awaited and max(issued[r] for r in awaited) > last_wait:
            exposed += 1
            last_wait = now
        for r in awaited:
            issued.pop(r, None)
        if not instruction.registers:
            continue
        destination = instruction.registers[0]
        if instruction.op.startswith("LDG") and "STRONG" in instruction.op:
            strong += 1
            issued |= dict.fromkeys(range(destination, destination + instruction.words), now)
        elif not instruction.op.startswith("ST"):
            issued.pop(destination, None)
    ops = [instruction.op for instruction in instructions]
    return Code(
        strong,
        exposed,
        calls=sum(op.startswith("CALL") for op in ops),
        narrow=sum(op.startswith("STG") and not re.search(r"\.(128|256)\b", op) for op in ops),
    )

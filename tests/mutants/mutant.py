"""What a seeded fault is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A small fault: ``find``, which ``file`` has exactly once, becomes ``replace``."""

    name: str  # unique, says the fault in a few words: "lstm-forgets-the-input-gate"
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]  # files whose core tier should notice, the likeliest first
    argued: str = ""  # why no test can notice it, where that is so

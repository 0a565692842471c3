"""What was measured of the ways to run a problem, and for which problems it holds; its JSON.

An entry holds for the device and the versions that it was measured with, for problems of the same
kind, and for sizes near those that were measured. Nothing here knows which backends there are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_rnn.backends.base import ANY_SIZE, Problem

__all__ = ["Entry", "Here", "Kind", "Table", "kind_of", "ranges"]

FORMAT = 1
# How far from what was measured an entry still holds, as a factor: a step's time is what counts,
# and T hardly changes it; N does. A single one is a case of its own.
_STEPS_APART, _BATCH_APART = 4, 2


class Here(NamedTuple):
    """A device, and the versions of all that runs on it."""

    device: str
    versions: tuple[tuple[str, str], ...]


class Kind(NamedTuple):
    """All of a problem but T and N, of a whole stack."""

    cell: str
    dtype: str
    I: int  # noqa: E741 (as in Problem), of the first layer
    H: int
    P: int
    layers: int
    directions: int
    step: bool  # a single one, not a sequence of one
    ragged: bool
    training: bool
    states: bool
    cut: bool
    recompute: bool


def kind_of(p: Problem) -> Kind:
    """Return the kind of a problem: the same for all layers of a stack."""
    step = p.width == 0
    return Kind(
        p.cell, str(p.dtype).removeprefix("torch."), p.I if step else p.width, p.H, p.P, p.layers,
        p.directions, step, p.ragged, p.training, p.states, p.cut, p.recompute,
    )  # fmt: skip


class Entry(NamedTuple):
    """What a measurement found."""

    here: Here
    kind: Kind
    T: int  # as measured
    N: int
    seconds: dict[str, float]  # of a call, by the way it went; right ones alone

    @property
    def way(self) -> str:
        """The fastest."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def ratio(self, over: str) -> float | None:
        """Return how many times as fast as another way the fastest is, None if unmeasured."""
        return self.seconds[over] / self.seconds[self.way] if over in self.seconds else None

    def serves(self, here: Here, kind: Kind, T: int, N: int) -> bool:
        """Return whether it holds for a problem; of ANY_SIZE, whether it is of the kind."""
        if (self.here, self.kind) != (here, kind):
            return False
        sizes = zip((T, N), ranges(self.T, self.N), strict=True)
        return all(size == ANY_SIZE or low <= size <= high for size, (low, high) in sizes)

    def distance(self, T: int, N: int) -> float:
        """Return how far its sizes are from those of a problem."""
        return abs(math.log(self.T / T)) + abs(math.log(self.N / N))


def ranges(T: int, N: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the T and the N that a measurement at T and N holds for, the last ones included."""
    return _around(T, _STEPS_APART), _around(N, _BATCH_APART)


def _around(size: int, factor: int) -> tuple[int, int]:
    return (size, size) if size <= 1 else (max(2, -(-size // factor)), size * factor)


class Table:
    """Entries, of any device and versions; a later one takes the place of an equal problem's."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self.add(entries)

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries, or put them in place of those of the same problems."""
        self._entries |= {entry[:4]: entry for entry in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, here: Here, problem: Problem) -> Entry | None:
        """Return the entry nearest to a problem of those that serve it, or None.

        Of any size, where all of the kind went the same way, one of them.
        """
        kind, T, N = kind_of(problem), problem.T, problem.N
        found = [entry for entry in self if entry.serves(here, kind, T, N)]
        if T == ANY_SIZE or N == ANY_SIZE:
            return found[0] if len({entry.way for entry in found}) == 1 else None
        return min(found, key=lambda entry: entry.distance(T, N), default=None)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, at once or not at all."""
        target = Path(path)
        text = json.dumps({"fused_rnn.tune": FORMAT, "entries": list(map(_plain, self))}, indent=1)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
        unfinished.write_text(text + "\n")
        unfinished.replace(target)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read what :meth:`write` wrote.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is another file, or of another format.
        """
        try:
            found = json.loads(Path(path).read_text())
        except ValueError as error:  # UnicodeDecodeError is one
            raise ValueError(f"{os.fspath(path)} is not JSON: {error}") from error
        if not isinstance(found, dict) or "fused_rnn.tune" not in found:
            raise ValueError(f"{os.fspath(path)} is JSON, but not what fused_rnn.tune.save writes")
        if found["fused_rnn.tune"] != FORMAT:
            raise ValueError(
                f"{os.fspath(path)} should be of format {FORMAT}, which this version of fused_rnn "
                f"knows, got: {found['fused_rnn.tune']!r}. Tune again, and save it anew"
            )
        try:
            return cls(map(_entry, found["entries"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{os.fspath(path)} has a broken entry ({reason})") from error


def _plain(entry: Entry) -> dict[str, Any]:
    T, N = ranges(entry.T, entry.N)
    return {
        "device": entry.here.device,
        "versions": dict(entry.here.versions),
        "problem": entry.kind._asdict(),
        "measured": {"T": entry.T, "N": entry.N},
        "serves": {"T": T, "N": N},  # for people to read
        "way": entry.way,  # likewise
        "seconds": entry.seconds,
    }


def _entry(plain: dict[str, Any]) -> Entry:
    named = plain["versions"].items()
    versions = tuple(sorted((str(name), str(version)) for name, version in named))
    kind = Kind(**plain["problem"])
    if not isinstance(getattr(torch, kind.dtype, None), torch.dtype):
        raise ValueError(f"there is no dtype {kind.dtype!r}")
    seconds = {str(way): float(s) for way, s in plain["seconds"].items()}
    sizes = int(plain["measured"]["T"]), int(plain["measured"]["N"])
    if min(sizes) < 1 or not all(s > 0 and math.isfinite(s) for s in seconds.values()):
        raise ValueError("sizes and seconds should be above zero")
    if not seconds:
        raise ValueError("no way was measured")
    return Entry(Here(str(plain["device"]), versions), kind, *sizes, seconds)

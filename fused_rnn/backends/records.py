"""What ran, for those who ask: a record for each layer and direction of the calls in a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from fused_rnn.backends.base import Problem

__all__ = ["Record", "record", "recording"]

_records: ContextVar[list[Record] | None] = ContextVar("fused_rnn_records", default=None)


class Record(NamedTuple):
    """What ran for one layer and direction of one call."""

    layer: int
    direction: int
    problem: Problem | None  # None where the arguments never got as far as a choice
    backend: str  # a key of BACKENDS, or "torch"
    refusals: dict[str, str]  # why the backends before it did not run
    together: bool = False  # the layer's other direction may run along with it
    way: str = ""  # the backend's, where it has several: what way_named() takes


@contextmanager
def record() -> Iterator[list[Record]]:
    """Collect what runs in this thread, a :class:`Record` for each layer and direction."""
    records: list[Record] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def recording() -> list[Record] | None:
    """Return the list to append to, or None where nobody asks."""
    return _records.get()

"""The measurements that hold in this process: what was tuned here, and what was loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from fused_rnn.backends import machine, native
from fused_rnn.backends.base import Problem
from fused_rnn.backends.measured import Entry, Here, Table

__all__ = ["add", "any_measured", "here", "measurement", "measurements"]

_measured = Table()
_path: str | None = os.environ.get("FUSED_RNN_TUNED") or None  # until it has been read


def here(device: torch.device) -> Here:
    """Return what measurements on a device are found by."""
    on_cpu = device.type == "cpu" and native.available() is None
    return machine.here(device, native.simd_level() if on_cpu else "")


def measurements() -> Table:
    """Return all that was measured or loaded; the file of ``FUSED_RNN_TUNED`` with it.

    Raises:
        OSError, ValueError: if that file cannot be read, or is another.
    """
    global _path
    if _path is not None:
        try:
            table = Table.read(_path)
        except OSError as error:
            raise OSError(f"FUSED_RNN_TUNED: {error}") from error
        except ValueError as error:
            raise ValueError(f"FUSED_RNN_TUNED: {error}") from error
        _path = None
        _measured.add(table)
    return _measured


def any_measured() -> bool:
    """Return whether there may be a measurement of anything, in a time too short to be felt."""
    return _path is not None or len(_measured) > 0


def add(entries: Iterable[Entry]) -> None:
    """Keep measurements; those of the same problems are replaced."""
    measurements().add(entries)


def measurement(problem: Problem) -> Entry | None:
    """Return what was measured that holds for a problem, or None."""
    table = measurements()
    if len(table) == 0 or problem.transform is not None or problem.marked:
        return None
    return table.find(here(problem.device), problem)

"""A progress bar on stderr: redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 28
_LINES = 10  # printed in all where the bar cannot be redrawn


class Progress:
    """Shows how far ``total`` cases have come."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._stream = total, stream or sys.stderr
        self._done, self._start = 0, time.monotonic()
        self._redraw = self._stream.isatty()

    def show(self, name: str) -> None:
        """Say that ``name`` begins, and with it that everything before is done."""
        if self._redraw:
            self._stream.write(f"\r\033[K{self._bar()} {name}")
        elif self._done % max(self._total // _LINES, 1) == 0:
            self._stream.write(f"{self._bar()} {name}\n")
        self._stream.flush()
        self._done += 1

    def close(self) -> None:
        """Say how long it took in all."""
        took = time.monotonic() - self._start
        begin, end = ("\r\033[K", "\n") if self._redraw else ("", "\n")
        self._stream.write(f"{begin}{self._done} of {self._total} cases in {_clock(took)}{end}")
        self._stream.flush()

    def _bar(self) -> str:
        filled = _WIDTH * self._done // self._total
        bar = "#" * filled + "." * (_WIDTH - filled)
        took = time.monotonic() - self._start
        left = took / self._done * (self._total - self._done) if self._done else None
        remaining = f", {_clock(left)} left" if left is not None else ""
        return f"[{bar}] {self._done}/{self._total}{remaining}"


def _clock(seconds: float) -> str:
    """Return a time to read: 42 s, 3 min 20 s, 4 h 18 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"

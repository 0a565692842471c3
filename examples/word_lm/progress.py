"""A plain progress line."""

from __future__ import annotations

import math
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

_BAR = 24
_EVERY = 3.0  # seconds between two lines where a line cannot be redrawn


@dataclass
class Progress:
    """One line that tells how far `total` units of work have come, redrawn on a terminal."""

    total: float
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    done: float = 0.0
    start: float = field(default_factory=time.monotonic)
    shown: float = -math.inf

    def add(self, work: float, text: str) -> None:
        """Count `work` as done and say what is being done."""
        self.done += work
        now = time.monotonic()
        redraw = self.stream.isatty()
        share = min(self.done / self.total, 1.0)
        if now - self.shown < (0.1 if redraw else _EVERY) and share < 0.9999:
            return
        self.shown = now
        left = (now - self.start) * (1 - share) / share if share else 0.0
        bar = ("#" * round(_BAR * share)).ljust(_BAR, ".")
        line = f"[{bar}] {share:4.0%}, about {clock(left)} left: {text}"
        # A line that wraps could not be redrawn.
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\033[K{line[:width]}" if redraw else f"{line}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Make room for a line of another kind."""
        if self.stream.isatty():
            self.stream.write("\r\033[K")
            self.stream.flush()


def clock(seconds: float) -> str:
    """Return a time to read: 42 s, 3 min 20 s, 4 h 18 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"

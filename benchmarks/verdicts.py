"""A row of the bar, measured: the mean and the worst of some cases, and what was asked of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .harness import CaseResult


@dataclass(frozen=True)
class Verdict:
    """One row of the bar, measured.

    Attributes:
        unit: How figures are written: "x" a factor, "%" a fraction, "e" a plain small number.
        at_most: Whether the bar is an upper limit.
    """

    title: str
    cases: int
    geomean: float | None = None
    geomean_bar: float | None = None
    worst: float | None = None
    worst_bar: float | None = None
    worst_case: str | None = None
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the row is reached; None where it has no bar or nothing was measured."""
        pairs = [(self.geomean, self.geomean_bar), (self.worst, self.worst_bar)]
        asked = [(value, bar) for value, bar in pairs if value is not None and bar is not None]
        if not asked:
            return None
        return all(value <= bar if self.at_most else value >= bar for value, bar in asked)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean, or None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def verdict_of(
    title: str,
    results: Sequence[CaseResult],
    figure: Callable[[CaseResult], float | None],
    geomean_bar: float | None = None,
    worst_bar: float | None = None,
    unit: str = "x",
    at_most: bool = False,
    mean: bool = True,
) -> Verdict:
    """Return a row of the bar: the mean and the worst figure of some results."""
    figures = [(value, r.case.id) for r in results if (value := figure(r)) is not None]
    if not figures:
        return Verdict(title, 0, None, geomean_bar, None, worst_bar, None, unit, at_most)
    worst, case = max(figures) if at_most else min(figures)
    average = geometric_mean(value for value, _ in figures) if mean else None
    return Verdict(title, len(figures), average, geomean_bar, worst, worst_bar, case, unit, at_most)

"""The pieces that the reports of a CPU and of a GPU share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .harness import CaseResult
from .verdicts import Verdict

RED, GREEN, BOLD, _PLAIN = "\033[31m", "\033[32m", "\033[1m", "\033[0m"


class Paint:
    """Colours text for a terminal, or leaves it alone."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, code: str) -> str:
        return f"{code}{text}{_PLAIN}" if self._colour else text


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def ratio(value: float | None, width: int, paint: Paint) -> str:
    """Return a speed-up in a column, losses marked."""
    if value is None:
        return f"{'-':>{width - 2}}  "
    text = f"{value:#.3g}x{'<' if value < 1 else ' '}"
    return " " * (width - len(text)) + paint(text, RED if value < 1 else GREEN)


def bar_table(verdicts: Sequence[Verdict], paint: Paint) -> list[str]:
    """Return the rows of the bar."""
    lines = [
        paint("The bar", BOLD),
        f"  {'':<56}{'cases':>6}{'geomean':>9}{'asked':>9}{'worst':>9}{'asked':>9}  verdict",
    ]
    for v in verdicts:
        met, text = v.met, "-"
        if v.cases == 0:
            text = "not measured"
        elif met is not None:
            text = paint("met", GREEN) if met else paint("NOT MET", RED)
        if v.worst_case and v.cases > 1:
            text += f"  (worst: {v.worst_case})"
        lines.append(
            f"  {v.title:<56}{v.cases:>6}{figure(v.geomean, v.unit):>9}"
            f"{figure(v.geomean_bar, v.unit):>9}{figure(v.worst, v.unit):>9}"
            f"{figure(v.worst_bar, v.unit):>9}  {text}"
        )
    return lines


def figure(value: float | None, unit: str) -> str:
    """Return a figure of the bar as its unit asks for; see :class:`~benchmarks.bar.Verdict`."""
    if value is None:
        return "-"
    return {"x": f"{value:#.3g}x", "%": f"{value:.1%}", "e": f"{value:.1e}"}[unit]


def skips(results: Sequence[CaseResult]) -> list[str]:
    """Return why peers were not timed, and what their compilation took."""
    reasons = Counter(
        (name, peer.skipped)
        for result in results
        for name, peer in result.peers.items()
        if peer.skipped
    )
    lines = [
        f"  {name} not timed in {count} cases: {reason}"
        for (name, reason), count in sorted(reasons.items())
    ]
    for note, title in (
        ("compile_s", "compilation"),
        ("first_call_s", "fused_rnn's first calls, where Triton compiles"),
    ):
        seconds = [
            peer.notes[note]
            for result in results
            for peer in result.peers.values()
            if note in peer.notes
        ]
        if seconds:
            lines.append(
                f"  {title}, in no figure above: {sum(seconds):.0f} s in {len(seconds)} cases, "
                f"{max(seconds):.1f} s at most"
            )
    return lines

"""All that the demonstration found."""

from __future__ import annotations

from dataclasses import dataclass

from .compare import Difference, Drift
from .speed import Speed
from .train import Run


@dataclass(frozen=True)
class Result:
    """All that the demonstration found."""

    plain: Run
    fused: Run
    swap: int  # updates before it
    differences: list[Difference]
    drift: Drift  # of the converted run from the one on torch.nn
    speeds: list[Speed]
    samples: list[str]  # by torch.nn and by fused_rnn at the swap; by fused_rnn at the end

    @property
    def problem(self) -> str | None:
        """Say what is more than rounding, if anything is."""
        if not all(row.within for row in self.differences):
            return "the converted model's results differ by more than rounding"
        if not self.drift.within:
            return f"the curves differ by {self.drift.training:.1e}, more than rounding explains"
        return None

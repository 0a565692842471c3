"""Ways to scan that keep every step's states, for :func:`fused_rnn.scans.stack.run_stack` to call.

It calls them for one layer and direction after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn.backends import AnyInputs, Backend, Marked
from fused_rnn.graph.node import scan
from fused_rnn.scans import autograd

__all__ = ["Collector", "Nodes"]


class _Keeping:
    """What has been scanned, a layer and direction after the other."""

    def __init__(self) -> None:
        self.h: list[Tensor] = []
        self.c: list[Tensor] = []

    def steps(self) -> tuple[Tensor, Tensor | None]:
        """Return every step's h (T, L*D, N, R) | (rows, L*D, R), and c where the cell has one."""
        return torch.stack(self.h, 1), torch.stack(self.c, 1) if self.c else None


class Collector(_Keeping):
    """Scans packed or dense data.

    Args:
        recompute: whether backward makes anew what it needs
    """

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self._recompute = recompute

    def __call__(
        self,
        backend: Backend,
        cell: str,
        inputs: AnyInputs,
        batch_sizes: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scan = backend, cell, inputs, batch_sizes, reverse, self._recompute
        if inputs.c0 is None:
            y, h_n, c_n = autograd.scan(*scan)
        else:
            y, h_n, c_n, c = autograd.scan_states(*scan)
            self.c.append(c)
        self.h.append(y)
        return y, h_n, c_n


class Nodes(_Keeping):
    """Scans padded sequences, as nodes.

    Args:
        keep: whether backward gets what it needs from forward
        marks: (T, N) of each direction; None where all sequences have all steps
        anew: h (L*D, 1, R) and c (L*D, 1, H) after a reset, None for zeros
        every_state: whether every step's states are kept here
    """

    def __init__(
        self,
        keep: bool,
        marks: Sequence[Tensor] | None = None,
        anew: tuple[Tensor | None, Tensor | None] = (None, None),
        every_state: bool = False,
    ) -> None:
        super().__init__()
        self._marks, self._anew, self._keep = marks, anew, keep
        self._every_state, self._count = every_state, 0

    def __call__(
        self, name: str, cell: str, inputs: AnyInputs, batch_sizes: None, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        marked, k = None, self._count
        self._count += 1
        if self._marks is not None:
            h, c = (a if a is None else a[k, 0] for a in self._anew)
            marked = Marked(self._marks[int(reverse)], h, c)
        every_c = self._every_state and inputs.c0 is not None
        y, h_n, c_n, c = scan(name, cell, inputs, marked, reverse, self._keep, every_c)
        if self._every_state:
            self.h.append(y)
        if every_c:
            self.c.append(c)
        return y, h_n, c_n

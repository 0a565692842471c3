"""What a GPU has, as the kernels' code for it sees it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["Facts", "facts"]


class Facts(NamedTuple):
    """What plans are made for."""

    capability: int  # of the code that runs there: 90 is 9.0; 0: there is none in this build
    sms: int
    shared_bytes: int  # that a block may have
    cooperative: bool
    clusters: tuple[int, int, int, int]  # of 1, 2, 4 and 8 blocks with all of it, at once

    def __str__(self) -> str:
        if self.capability == 0:
            return "no code for it in this build"
        at_once = "/".join(map(str, self.clusters[1:]))
        clusters = f"{at_once} clusters of 2/4/8 at once" if self.clusters[1] else "no clusters"
        return (
            f"code for sm_{self.capability}, {self.sms} SMs, "
            f"{self.shared_bytes / 1024:g} KB of shared memory a block, {clusters}"
            + ("" if self.cooperative else ", no cooperative launches")
        )


def facts(device: torch.device) -> Facts:
    """Return what a CUDA device has; only where the kernels for it are loaded."""
    return _facts(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _facts(index: int) -> Facts:
    with _disable_current_modes():  # a tracer has no answer to what is no tensor
        capability, sms, shared_bytes, cooperative, *clusters = torch.ops.fused_rnn.device_facts(
            index
        )
    one, two, four, eight = clusters
    return Facts(capability, sms, shared_bytes, bool(cooperative), (one, two, four, eight))

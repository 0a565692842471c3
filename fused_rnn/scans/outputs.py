"""The output of a scan: backward reads it, and whoever it is given to may change it in place.

torch.nn keeps states of its own and lets its output go. Here the output is kept as it is, without a
copy: only where it has been changed, backward makes it again by another forward.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["Watch", "alias", "changed", "watch"]

# A tensor without memory that counts the changes of an output along with it, and their number.
Watch = tuple[Tensor, int]


@cache
def _nothing(device: torch.device) -> Tensor:
    return torch.empty(0, device=device)


def alias(y: Tensor) -> Tensor:
    """Return the same numbers as a tensor of its own: by it autograd does not see that y changes.

    Where y itself is saved a change is an error, and where there are hooks on saved tensors, as in
    activation checkpointing, it goes unseen.
    """
    return y.data


def watch(y: Tensor) -> Watch:
    """Return what tells from now on whether y has been changed in place.

    Not y itself, which leads to the node that is to keep this: a cycle. And without its memory,
    which is not to be held longer than what is saved, nor where hooks have put that elsewhere.
    """
    counter = y.detach()
    counter.data = _nothing(y.device)
    return counter, y._version


def changed(watch: Watch | None) -> bool:
    """Return whether the output has been changed in place since, if it was watched."""
    return watch is not None and watch[0]._version != watch[1]

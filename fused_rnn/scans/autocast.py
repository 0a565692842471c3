"""Layers under torch.autocast: the kernels run in its dtype, as matrix products do.

The input and the weights are rounded to that dtype, and so is what is stored per step: the output,
and h and c between calls. Inside a call the kernels keep gates, sums and the cell state in float32,
so that rounding does not add up along the sequence. Final states are returned in the dtype of the
initial ones, float32 without any. Gradients come back in the dtypes of what they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import transforms
from fused_rnn.scans.checks import Row, Stack

__all__ = ["autocast_dtype", "recast"]

# What autocast casts: it leaves float64 as it is, and so do we.
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def recast(
    run: Callable[..., Any],
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    *others: Any,
) -> Any:
    """Do as ``run`` does, ``stack.run_stack`` or the like, in autocast's dtype."""
    kind = x.device.type
    floating = all(t is None or t.dtype in _CAST for t in chain((x, h0, c0), *rows))
    dtype = autocast_dtype(kind)
    if not floating or dtype is None:
        return run(stack, x, h0, c0, rows, *others)
    kept = [_or_float(h0), _or_float(c0)]
    x = x.to(dtype)
    h0, c0 = (t if t is None else t.to(dtype) for t in (h0, c0))
    rows = [[w.to(dtype) for w in row] for row in rows]
    with torch.autocast(kind, enabled=False):
        result = run(stack, x, h0, c0, rows, *others)
    if isinstance(result, str):
        return result
    y, *states = result
    return y, *(s if s is None else s.to(d) for s, d in zip(states, kept, strict=True))


@transforms.constant_in_graphs
def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return what autocast casts to on a kind of device, or None where it does not."""
    # It raises when asked about a device that it does not know, such as meta.
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _or_float(state: Tensor | None) -> torch.dtype:
    return torch.float32 if state is None else state.dtype

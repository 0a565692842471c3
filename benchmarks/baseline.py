"""What torch.nn cannot run on the machine at hand, so that there is nothing to compare with."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from .cases import DTYPES


@cache
def refusal(cell: str, dtype: str, projected: bool = False, ragged: bool = False) -> str | None:
    """Return None, or what torch.nn raises on a CPU at a problem of this kind, however small.

    Without AVX-512 oneDNN has no LSTM in half types, which it is asked for under autocast.

    Args:
        cell: "lstm", "gru" or "rnn"
        dtype: a key of :data:`.cases.DTYPES`
    """
    stored, sizes = DTYPES.get(dtype, torch.float64), {"proj_size": 1} if projected else {}
    layer = getattr(nn, cell.upper())(2, 2, **sizes).to(stored)
    x = torch.ones(2, 1, 2, dtype=stored)
    recast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast")
    try:
        with torch.no_grad(), recast:
            layer(pack_sequence([x[:, 0]]) if ragged else x)
    except RuntimeError as error:
        return f"torch.nn cannot run it here: {str(error).partition('. ')[0]}"
    return None

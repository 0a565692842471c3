"""Errors of the native ops, as torch would have raised them."""

from __future__ import annotations

import torch

__all__ = ["raise_out_of_memory"]


def raise_out_of_memory(error: RuntimeError, device: torch.device) -> None:
    """Raise what torch would have raised where there was no room for a result.

    The stable ABI tells which call failed, but not why; making an empty tensor has one reason.
    """
    if "aoti_torch_empty_strided" not in str(error):
        return
    message = "out of memory: there is no room for a result or for what backward needs"
    if device.type == "cuda":
        raise torch.OutOfMemoryError(f"CUDA {message} on {device}") from error
    raise RuntimeError(f"fused_rnn: {message}") from error

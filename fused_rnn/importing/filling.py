"""A layer made of arrays: gates put into torch's order, weights put into their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fused_rnn import modules

__all__ = ["LAYERS", "Layer", "fill", "reordered", "tensor"]

Layer = modules.LSTM | modules.GRU | modules.RNN
LAYERS: dict[str, Any] = {"LSTM": modules.LSTM, "GRU": modules.GRU, "RNN": modules.RNN}


def tensor(array: Any) -> Tensor:
    """Return what numpy, or something like it, has as a tensor of its own."""
    return torch.tensor(array)


def reordered(t: Tensor, order: Sequence[int], blocks: int | None = None) -> Tensor:
    """Return rows with blocks of them in another order: that which ``order`` names first, first."""
    parts = t.chunk(blocks or len(order))
    return torch.cat([parts[k] for k in order])


def fill(kind: str, weights: Sequence[dict[str, Tensor]], options: dict[str, Any]) -> Layer:
    """Make a layer with these weights.

    Args:
        kind: a key of ``LAYERS``
        weights: of each direction, by the beginning of a parameter's name: ``"weight_ih"``, say
        options: the constructor's, by name
    """
    like = weights[0]["weight_ih"]
    options = {"dtype": like.dtype, "bidirectional": len(weights) > 1, **options}
    layer = nn.utils.skip_init(
        LAYERS[kind], like.shape[1], weights[0]["weight_hh"].shape[-1], **options
    )
    with torch.no_grad():
        for row, suffix in zip(weights, ("", "_reverse"), strict=False):
            for name, value in row.items():
                getattr(layer, f"{name}_l0{suffix}").copy_(value)
    return layer

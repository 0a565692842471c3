"""Small layers with random parameters, and calls of them."""

from __future__ import annotations

import torch
from torch import nn

import fused_rnn
from tests.twins import leaves

T, N, I, H = 5, 3, 3, 4  # noqa: E741
OPTIONS = {"learn_initial_state": True, "recompute": True}


def make(layer, dtype=torch.float64, **options):
    """Return a layer with random parameters, a learned initial state included."""
    module = getattr(fused_rnn, layer)(I, H, **options).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    return module


def example(module, dtype=torch.float64):
    shape = (N, T, I) if module.batch_first else (T, N, I)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def forward_sum(module, x, **options):
    return sum(t.pow(2).sum() for t in leaves(module(x, **options)))


class Asking(nn.Module):
    """A model that calls its layer with options."""

    def __init__(self, layer, ask):
        super().__init__()
        self.layer, self.ask = layer, ask

    def forward(self, x):
        return self.ask(self.layer, x)

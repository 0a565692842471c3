"""Pairs of a torch.nn module and its drop-in with the same weights, and how to compare them."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
MODULES = [*LAYERS, *CELLS]

# What a user may ask of a layer, and of which layers.
CONFIGURATIONS = {
    "plain": ({}, LAYERS),
    "no-bias": ({"bias": False}, LAYERS),
    "batch-first": ({"batch_first": True}, LAYERS),
    "bidirectional": ({"bidirectional": True}, LAYERS),
    "deep": ({"num_layers": 3}, LAYERS),
    "deep-bidirectional": ({"num_layers": 2, "bidirectional": True, "batch_first": True}, LAYERS),
    "projected": ({"proj_size": 2}, ["LSTM"]),
    "projected-deep": (
        {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False},
        ["LSTM"],
    ),
    "relu": ({"nonlinearity": "relu", "num_layers": 2}, ["RNN"]),
}
CONFIGURED = [
    pytest.param(layer, options, id=f"{layer}-{name}")
    for name, (options, layers) in CONFIGURATIONS.items()
    for layer in layers
]


def twins(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Return a module of torch.nn and ours, made from the same seed."""
    made = []
    for source in (nn, fused_rnn):
        torch.manual_seed(7)
        made.append(getattr(source, name)(*args, **kwargs))
    return made[0], made[1]


def outcome(run: Any) -> tuple[Any, ...]:
    """Return what a call ends in, a result or an error's type and message, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = ("returned", run())
        except Exception as error:
            result = ("raised", type(error), str(error))
    return *result, [(w.category, str(w.message)) for w in caught]


def assert_same(theirs: Any, ours: Any, **tolerances: float) -> None:
    """Assert that two results are equal in structure, types, strides, dtypes and numbers."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, PackedSequence):
        torch.testing.assert_close(ours.batch_sizes, theirs.batch_sizes)
        for field in ("sorted_indices", "unsorted_indices"):
            assert getattr(ours, field) is getattr(theirs, field)
        assert_same(theirs.data, ours.data, **tolerances)
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(theirs, ours, strict=True):
            assert_same(a, b, **tolerances)
    else:
        torch.testing.assert_close(ours, theirs, **tolerances)
        assert ours.is_contiguous() == theirs.is_contiguous()
        assert ours.requires_grad == theirs.requires_grad


def leaves(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a result."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple):
        return [t for part in value for t in leaves(part)]
    return [value]


def states(module: nn.RNNBase, n: int | None, dtype: torch.dtype = torch.float32) -> Any:
    """Return initial states for a layer, without a batch dim if ``n`` is None."""
    lead = (module.num_layers * (2 if module.bidirectional else 1),) + (() if n is None else (n,))
    like = {"dtype": dtype, "device": next(chain(module.parameters(), module.buffers())).device}
    h = torch.randn(*lead, module.proj_size or module.hidden_size, **like)
    if module.mode != "LSTM":
        return h
    return h, torch.randn(*lead, module.hidden_size, **like)


def sequences(
    lengths: tuple[int, ...], features: int, enforce_sorted: bool, device: str | None = None
) -> PackedSequence:
    """Return packed random sequences."""
    parts = [torch.randn(n, features, device=device) for n in lengths]
    return pack_sequence(parts, enforce_sorted)


def example(name: str, device: str | None = None) -> torch.Tensor:
    """Return an input for a layer or cell of 3 features."""
    return torch.randn(*((2, 3) if name in CELLS else (5, 2, 3)), device=device)


def first(output: Any) -> torch.Tensor:
    """Return the output proper, without the final states."""
    return leaves(output)[0]


def gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return an output and the gradients of the parameters."""
    output = first(module(x))
    return [output, *torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))]


class Model(nn.Module):
    """What a user's model looks like."""

    __constants__ = ("returns_a_pair",)

    def __init__(self, source, name):
        super().__init__()
        self.returns_a_pair = name not in ("GRUCell", "RNNCell")
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(source, name)(3, 4)
        self.after = nn.Linear(4, 2)

    def forward(self, x):
        output = self.rnn(self.before(x))
        return self.after(output[0] if self.returns_a_pair else output)


def models(name: str) -> list[Model]:
    """Return such a model with a layer or cell of torch.nn, and the same with ours."""
    made = []
    for source in (nn, fused_rnn):
        torch.manual_seed(3)
        made.append(Model(source, name))
    return made

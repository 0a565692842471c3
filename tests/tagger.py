"""A small model of a user's, with a recurrent layer or cell in every kind of container."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
I, H, N, T = 3, 4, 2, 5  # noqa: E741


def run(module: nn.Module, x: Tensor | None = None) -> Tensor:
    """Return the module's output on (T, N, I) input; a cell's on its first step."""
    generator = torch.Generator().manual_seed(7)
    if x is None:
        x = torch.rand(T, N, I, generator=generator, dtype=torch.float64)
    x = x.to(next(module.parameters()).device)
    out = module(x if hasattr(module, "num_layers") else x[0])
    return out[0] if isinstance(out, tuple) else out


class Tagger(nn.Module):
    """A user's model: layers and a cell in each kind of container, one of them used twice."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[layer]
        make = getattr(nn, layer)
        self.encoder = nn.Sequential(make(I, H, num_layers=2, bidirectional=True))
        self.middle = nn.ModuleList([make(2 * H, H), nn.Dropout(0.0)])
        self.again = self.middle[0]
        self.steps = nn.ModuleDict({"cell": cell(H, 2 * H)})
        self.out = nn.Linear(2 * H, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.encoder(x)
        x, _ = self.middle[0](x)
        x, _ = self.again(torch.cat([x, x], -1))
        state = None
        for row in x:
            state = self.steps["cell"](row, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


def tagger(layer: str) -> Tagger:
    torch.manual_seed(0)
    return Tagger(layer).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.rand(T, N, I, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = model(x.to(next(model.parameters()).device)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def contents(model: nn.Module) -> dict[str, tuple[type, set[str]]]:
    """Return each module's type and attributes."""
    return {name: (type(m), set(vars(m))) for name, m in model.named_modules()}

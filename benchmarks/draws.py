"""Random shapes and options of the layers: the same list for the same seed, in any run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import GATES

#: float64 too, which the cases leave out.
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "autocast": torch.float32,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
_CELLS = {"lstm": 3, "gru": 2, "rnn": 2}  # and how often
_OFTEN = {"fp32": 8, "bf16": 4, "autocast": 2, "fp16": 2, "fp64": 1}
_RANGES = {"T": (1, 512), "N": (1, 4096), "I": (4, 2048), "H": (4, 2048)}
# What one sample may take: about half a second of two cores, and some hundreds of MiB.
_MOST_FLOPS, _MOST_FLOATS = 8e10, 6e7


@dataclass(frozen=True)
class Draw:
    """One random problem: a layer with its options, and how it is called."""

    cell: str
    dtype: str  # a key of DTYPES
    training: bool
    T: int
    N: int
    I: int  # noqa: E741 - named as in the equations
    H: int
    layers: int
    bidirectional: bool
    bias: bool
    proj_size: int  # 0 without a projection
    relu: bool
    batch_first: bool
    ragged: bool
    states: bool  # whether initial states are given

    @property
    def label(self) -> str:
        """The problem in one line; what is usual is left out."""
        text = f"{self.cell} T={self.T} N={self.N} I={self.I} H={self.H} {self.dtype}"
        flags = ("bidirectional", "batch_first", "ragged", "states", "relu")
        said = [name for name in flags if getattr(self, name)]
        said += [f"{self.layers} layers"] * (self.layers > 1) + ["no bias"] * (not self.bias)
        said += [f"proj_size={self.proj_size}"] * (self.proj_size > 0)
        return " ".join([text, "training" if self.training else "inference", *said])

    @property
    def lengths(self) -> Tensor:
        """Length of each sequence, (N,) int64; uniform in [1, T] where they are ragged."""
        if not self.ragged:
            return torch.full((self.N,), self.T)
        drawn = torch.Generator().manual_seed(self.T * 4099 + self.N)
        lengths = torch.randint(1, self.T + 1, (self.N,), generator=drawn)
        lengths[self.N // 2] = self.T
        return lengths

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products, the backward's too."""
        out, directions = self.proj_size or self.H, 1 + self.bidirectional
        columns = sum(
            (self.I if layer == 0 else out * directions) + out for layer in range(self.layers)
        )
        each = GATES[self.cell] * self.H * columns + self.H * self.proj_size * self.layers
        return 2 * self.tokens * directions * each * (3 if self.training else 1)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def floats(self) -> int:
        """About how many numbers a call keeps: the input, and gates and states of each step."""
        directions = 1 + self.bidirectional
        return self.T * self.N * (self.I + self.layers * directions * self.H * 6)


def draws(seed: int) -> Iterator[Draw]:
    """Yield the problems of a seed, without end; those beyond a sample's limits are passed over."""
    random_ = random.Random(seed)
    while True:
        draw = _draw(random_)
        if draw.floats <= _MOST_FLOATS and draw.flops <= _MOST_FLOPS:
            yield draw


def _draw(random_: random.Random) -> Draw:
    def among(weights: dict[str, int]) -> str:
        return random_.choices(list(weights), list(weights.values()))[0]

    def size(low: int, high: int) -> int:
        return round(math.exp(random_.uniform(math.log(low), math.log(high))))

    def chance(of: float) -> bool:
        return random_.random() < of

    cell, dtype = among(_CELLS), among(_OFTEN)
    sizes = {name: size(*ends) for name, ends in _RANGES.items()}
    projected = chance(0.1) and cell == "lstm"
    return Draw(
        cell,
        dtype,
        training=chance(0.5),
        **sizes,
        layers=random_.choice((1, 1, 1, 2, 3)),
        bidirectional=chance(0.3),
        bias=not chance(0.1),
        proj_size=max(1, sizes["H"] // 2) if projected else 0,
        relu=chance(0.3) and cell == "rnn",
        batch_first=chance(0.2),
        ragged=chance(0.25),
        states=chance(0.3),
    )


def make_layer(draw: Draw, library: Any) -> nn.Module:
    """Build a library's layer; of one seed, so that all libraries' have the same weights."""
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if draw.cell == "lstm":
        options["proj_size"] = draw.proj_size
    if draw.cell == "rnn":
        options["nonlinearity"] = "relu" if draw.relu else "tanh"
    layer = getattr(library, draw.cell.upper())(
        draw.I,
        draw.H,
        draw.layers,
        bias=draw.bias,
        batch_first=draw.batch_first,
        bidirectional=draw.bidirectional,
        **options,
    )
    return layer.to(DTYPES[draw.dtype]).train(draw.training)


def make_arguments(draw: Draw) -> tuple[Any, ...]:
    """Build what a layer is called with: x, and initial states where they are given."""
    torch.manual_seed(1)
    dtype = DTYPES[draw.dtype]
    x: Any = torch.randn(draw.T, draw.N, draw.I).to(dtype)
    if draw.ragged:
        x = pack_padded_sequence(x, draw.lengths, enforce_sorted=False)
    elif draw.batch_first:
        x = x.transpose(0, 1).contiguous()
    if draw.training:
        of = x.data if draw.ragged else x
        of.requires_grad_()
    if not draw.states:
        return (x,)
    scans = draw.layers * (1 + draw.bidirectional)
    h0 = torch.randn(scans, draw.N, draw.proj_size or draw.H).to(dtype)
    c0 = torch.randn(scans, draw.N, draw.H).to(dtype)
    return x, ((h0, c0) if draw.cell == "lstm" else h0)


def make_call(draw: Draw, layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], Tensor]:
    """Return the call that is timed, which returns y; a training step computes all gradients."""
    recast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=draw.dtype == "autocast")

    def forward() -> Tensor:
        with recast:
            y = layer(*arguments)[0]
        return y.data if isinstance(y, PackedSequence) else y

    if not draw.training:

        def inference() -> Tensor:
            with torch.no_grad():
                return forward()

        return inference
    x = arguments[0].data if draw.ragged else arguments[0]
    wanted = [x, *layer.parameters()]
    upstream: list[Tensor] = []

    def step() -> Tensor:
        y = forward()
        if not upstream:
            upstream.append(torch.randn(y.shape).to(y.dtype))
        torch.autograd.grad(y, wanted, upstream)
        return y.detach()

    return step

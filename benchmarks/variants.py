"""Variants of the cells, against the plain layer and the loops of torch's that they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import exp, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

import fused_rnn

from .loops import DRAWN, LOOPS, RATE, loop
from .options import OURS, Row, timed
from .peers import Settings

PLAIN = "the plain layer"
EAGER, COMPILED = "a loop", "a loop, its step compiled"
# Of the plain layer's time, and how many times faster than the fastest loop.
_MOST, _MOST_BY_ROWS, _LEAST = 1.15, 1.6, 1.5
_BY_ROWS = "layer norm", "resets before"  # these need all of a row, or two products
_SIZES = (50, 32, 128, 256), (50, 8, 64, 64)  # T, N, I, H


def measure(settings: Settings) -> Iterator[Row]:
    """Measure a training step and inference of each variant, then say what the loops' mean is.

    Raises:
        AssertionError: if two peers' results differ.
    """
    over = []
    for sizes in [(10, 8, 16, 32)] if settings.quick else _SIZES:
        for name in LOOPS:
            row = training(name, *sizes, settings, compiled=not settings.quick)
            over.append(min(v for peer, v in row.speedup.items() if peer != PLAIN))
            yield row
        for name in LOOPS:
            if name not in DRAWN[1:]:  # in eval mode recurrent dropout is the plain layer
                yield inference(name, *sizes, settings)
    mean = exp(sum(map(log, over)) / len(over))
    print(
        f"training over the fastest loop: {mean:.2f}x in the geometric mean, {min(over):.2f}x worst"
    )


def training(
    name: str, steps: int, n: int, i: int, h: int, settings: Settings, compiled: bool = False
) -> Row:
    """Return a training step of a variant, of the plain layer, and of a loop, compiled too."""
    kind, options, step = LOOPS[name]
    layer, plain, x = _layers(name, steps, n, i, h, settings)
    own = dict(layer.named_parameters())

    def trained(y: Tensor, module: nn.Module) -> list[Tensor]:
        gradients = torch.autograd.grad(y.square().mean(), [x, *module.parameters()])
        return [y.detach(), *(g / g.abs().max() for g in gradients)]

    def looped(step: Callable[..., Any]) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            drawn = (
                {"mask": dropout(x.new_ones(n, h), RATE)} if "recurrent_dropout" in options else {}
            )
            return trained(loop(step, x, own | drawn, kind == "LSTM"), layer)

        return call

    calls = {
        OURS: lambda: trained(layer(x)[0], layer),
        PLAIN: lambda: trained(plain(x)[0], plain),
        EAGER: looped(step),
    }
    if compiled:
        calls[COMPILED] = looped(torch.compile(step))
    heads = "num_heads" in options
    by_rows = any(word in name for word in _BY_ROWS)
    bar = {} if heads else {PLAIN: 1 / (_MOST_BY_ROWS if by_rows else _MOST)}
    bar |= dict.fromkeys([peer for peer in calls if peer not in (OURS, PLAIN)], _LEAST)
    # The norm of what a state of zeros says multiplies roundings by hundreds.
    unlike = [PLAIN, EAGER, COMPILED] if name in DRAWN else [PLAIN]
    text = f"{name}, training, T={steps} N={n} I={i} H={h}"
    return timed(text, calls, settings, bar, unlike=unlike, atol=2e-3)


def inference(name: str, steps: int, n: int, i: int, h: int, settings: Settings) -> Row:
    """Return a variant's forward in eval mode, and the plain layer's."""
    layer, plain, x = _layers(name, steps, n, i, h, settings)
    layer.eval()
    text = f"{name}, inference, T={steps} N={n} I={i} H={h}"
    with torch.no_grad():
        calls = {OURS: lambda: layer(x)[0], PLAIN: lambda: plain(x)[0]}
        return timed(text, calls, settings, unlike=[PLAIN])


def _layers(
    name: str, steps: int, n: int, i: int, h: int, settings: Settings
) -> tuple[nn.Module, nn.Module, Tensor]:
    kind, options, _ = LOOPS[name]
    layer = getattr(fused_rnn, kind)(i, h, **options, device=settings.device)
    plain = getattr(fused_rnn, kind)(i, h, device=settings.device)
    x = torch.randn(steps, n, i, device=settings.device, requires_grad=True)
    return layer, plain, x

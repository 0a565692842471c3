"""Tokens per second of two models, measured in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .model import LanguageModel, generate
from .train import Run


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one job, by torch.nn and by fused_rnn, round by round."""

    job: str
    plain: list[float]
    fused: list[float]

    @property
    def gain(self) -> float:
        """How many times as fast fused_rnn is: the median of the single rounds' gains."""
        return statistics.median(self._gains)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the single rounds' gains."""
        low, _, high = statistics.quantiles(self._gains, n=4, method="inclusive")
        return low, high

    @property
    def _gains(self) -> list[float]:
        return [fused / plain for fused, plain in zip(self.fused, self.plain, strict=True)]


def of_training(plain: Run, fused: Run, since: int, block: int) -> Speed:
    """Read the speed off two runs that took turns, `block` updates each, after update `since`."""
    tokens = block * plain.recipe.steps * plain.text.size(1)

    def rates(run: Run) -> list[float]:
        # The first block of a run warms caches up and is left out.
        starts = range(since + block, len(run.seconds) - block + 1, block)
        return [tokens / sum(run.seconds[start : start + block]) for start in starts]

    return Speed("training, the whole update", rates(plain), rates(fused))


def in_turn(
    job: str,
    plain: Callable[[], None],
    fused: Callable[[], None],
    tokens: int,
    rounds: int,
    progress: Callable[[str], None],
) -> Speed:
    """Time two ways to do the same `tokens`; who goes first alternates."""
    rates: tuple[list[float], list[float]] = ([], [])
    for index in range(-1, rounds):  # round -1 warms up
        for which in (0, 1) if index % 2 else (1, 0):
            start = time.perf_counter()
            (plain, fused)[which]()
            if index >= 0:
                rates[which].append(tokens / (time.perf_counter() - start))
        progress(job)
    return Speed(job, *rates)


def layer_training(model: LanguageModel, steps: int, batch: int) -> Callable[[], None]:
    """Return one forward and backward pass of the recurrent layers alone."""
    rnn = model.rnn
    x = torch.randn(steps, batch, rnn.input_size, requires_grad=True)
    slope = torch.randn(steps, batch, rnn.hidden_size)
    rnn.train()

    def work() -> None:
        torch.autograd.grad(rnn(x)[0], [x, *rnn.parameters()], slope)

    return work


def layer_steps(rnn: nn.RNNBase, tokens: int) -> Callable[[], None]:
    """Return `tokens` calls of the recurrent layers alone, one step each, N = 1."""
    x = torch.randn(1, 1, rnn.input_size)

    @torch.no_grad()
    def work() -> None:
        rnn.eval()
        state: Tensor | None = None
        for _ in range(tokens):
            _, state = rnn(x, state)

    return work


def of_models(
    plain: Run, fused: Run, rounds: int, tokens: int, progress: Callable[[str], None]
) -> list[Speed]:
    """Measure generation, and the recurrent layers alone in training and in generation.

    `progress` is told the job after each of its rounds and its warm-up.
    """
    steps, batch = plain.recipe.steps, plain.text.size(1)
    models = (plain.model, fused.model)

    def generation(model: LanguageModel) -> Callable[[], None]:
        def work() -> None:
            generate(model, [1], tokens, banned=0, seed=0)

        return work

    def training(model: LanguageModel) -> Callable[[], None]:
        return layer_training(model, steps, batch)

    jobs = [
        ("training, recurrent layer only", steps * batch, training),
        ("generation, the whole model", tokens, generation),
        ("generation, recurrent layer only", tokens, lambda m: layer_steps(m.rnn, tokens)),
    ]
    return [in_turn(job, *map(make, models), count, rounds, progress) for job, count, make in jobs]

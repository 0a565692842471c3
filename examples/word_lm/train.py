"""Training by truncated back-propagation through time, in a form that can be forked."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .model import LanguageModel, State, detach


@dataclass(frozen=True)
class Recipe:
    """How to train: steps of back-propagation, updates in all, and the optimiser's settings."""

    steps: int
    updates: int
    learning_rate: float
    clip: float = 1.0
    warm_up: int = 20

    def rate(self, update: int) -> float:
        """Rise to the full learning rate, then fall to a twentieth of it along half a cosine."""
        rise = min((update + 1) / self.warm_up, 1.0)
        wave = 0.5 + 0.5 * math.cos(math.pi * update / self.updates)
        return self.learning_rate * rise * (0.05 + 0.95 * wave)


@dataclass
class Run:
    """A model in training with all that decides its future: ``copy.deepcopy`` forks it.

    The random state is the run's own, so that two forks draw the same dropout masks however
    their updates are interleaved.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    text: Tensor  # (rows, N) word ids
    random_state: Tensor
    position: int = 0
    state: State = None
    losses: list[float] = field(default_factory=list)  # one per update
    seconds: list[float] = field(default_factory=list)  # one per update
    validation: dict[int, float] = field(default_factory=dict)  # update -> loss

    def advance(self, updates: int) -> None:
        """Do `updates` updates; a loss that is not finite raises."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            self.model.train()
            for _ in range(updates):
                start = time.perf_counter()
                self.losses.append(self._update())
                self.seconds.append(time.perf_counter() - start)
            self.random_state = torch.get_rng_state()

    def _update(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(len(self.losses))
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of update {len(self.losses) + 1} is {value}")
        return value

    def loss(self) -> Tensor:
        """Compute the loss of the next stretch of text, and move on by it."""
        if self.position + self.recipe.steps >= len(self.text):
            self.position, self.state = 0, None
        stretch = self.text[self.position : self.position + self.recipe.steps + 1]
        self.position += self.recipe.steps
        logits, state = self.model(stretch[:-1], self.state)
        self.state = detach(state)
        return cross_entropy(logits.flatten(0, 1), stretch[1:].flatten())

    @torch.no_grad()
    def validate(self, text: Tensor) -> float:
        """Measure, and note, the mean loss per word over the whole of `text`, (rows, N)."""
        self.model.eval()
        total, state = 0.0, None
        for start in range(0, len(text) - 1, self.recipe.steps):
            stretch = text[start : start + self.recipe.steps + 1]
            logits, state = self.model(stretch[:-1], state)
            loss = cross_entropy(logits.flatten(0, 1), stretch[1:].flatten(), reduction="sum")
            total += loss.item()
        mean = total / text[1:].numel()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the validation loss is {mean}")
        self.validation[len(self.losses)] = mean
        return mean

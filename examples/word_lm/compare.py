"""How far two models, and two trainings, are apart."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import LanguageModel
from .train import Run


@dataclass(frozen=True)
class Difference:
    """The largest difference between the tensors of two results."""

    what: str
    dtype: torch.dtype
    largest: float  # absolute
    relative: float  # each tensor's difference in relation to its own largest value
    tolerance: float  # of `relative`

    @property
    def within(self) -> bool:
        # Written so that a NaN is not within.
        return self.relative <= self.tolerance


def difference(what: str, plain: list[Tensor], fused: list[Tensor], tolerance: float) -> Difference:
    """Compare two results tensor by tensor."""
    gaps = [(a - b).abs().max().item() for a, b in zip(plain, fused, strict=True)]
    scales = [a.abs().max().item() for a in plain]
    # torch's max, unlike Python's, lets no NaN slip by.
    largest = torch.tensor(gaps).max().item()
    relative = (torch.tensor(gaps) / torch.tensor(scales)).max().item()
    return Difference(what, plain[0].dtype, largest, relative, tolerance)


@torch.no_grad()
def outputs(model: LanguageModel, words: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits over `words`, and the state after them."""
    model.eval()
    logits, state = model(words)
    return logits, list(state) if isinstance(state, tuple) else [state]


def gradients(run: Run) -> list[Tensor]:
    """Return the next update's gradients, dropout included; `run` stays where it is."""
    position, state = run.position, run.state
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run.random_state)
        run.model.train()
        parameters = list(run.model.parameters())
        result = torch.autograd.grad(run.loss(), parameters)
    run.position, run.state = position, state
    return list(result)


def compare(plain: Run, fused: Run, words: Tensor) -> list[Difference]:
    """Compare two runs of equal weights: outputs over `words`, state, and the next gradients."""
    rows = []
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        models = (copy.deepcopy(run.model).to(dtype) for run in (plain, fused))
        (plain_logits, plain_state), (logits, state) = (outputs(m, words) for m in models)
        rows.append(difference("outputs (logits)", [plain_logits], [logits], tolerance))
        rows.append(difference("final state", plain_state, state, tolerance))
    rows.append(difference("gradients of an update", gradients(plain), gradients(fused), 1e-5))
    return rows


@dataclass(frozen=True)
class Drift:
    """How far apart two trainings come that began as one."""

    training: float  # largest difference of an update's loss
    validation: float  # largest difference of a validation loss
    perplexity: float  # largest difference of a validation perplexity
    # A tenth of a percent of perplexity: rounding grows along a training, and to be the same curve
    # it must stay far below what the eye, or the choice of another seed, can tell.
    tolerance: float = 1e-3

    @property
    def within(self) -> bool:
        return self.training <= self.tolerance and self.validation <= self.tolerance

    @classmethod
    def between(cls, run: Run, other: Run, since: int) -> Drift:
        """Compare two forks of one run after update `since`."""
        losses = zip(run.losses[since:], other.losses[since:], strict=True)
        later = [update for update in run.validation if update > since]
        checks = [(run.validation[update], other.validation[update]) for update in later]
        return cls(
            max(abs(a - b) for a, b in losses),
            max(abs(a - b) for a, b in checks),
            max(abs(math.exp(a) - math.exp(b)) for a, b in checks),
        )

"""Whether two models compute the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import LanguageModel
from .train import Run


@dataclass(frozen=True)
class Difference:
    """The largest difference between two results, in relation to the largest value."""

    what: str
    dtype: torch.dtype
    largest: float  # absolute difference
    scale: float  # the largest absolute value of torch.nn's result
    tolerance: float  # relative to scale

    @property
    def within(self) -> bool:
        # Written so that a NaN is not within.
        return self.largest <= self.tolerance * self.scale


def difference(what: str, plain: list[Tensor], fused: list[Tensor], tolerance: float) -> Difference:
    pairs = list(zip(plain, fused, strict=True))
    largest = max((a - b).abs().max().item() for a, b in pairs)
    scale = max(a.abs().max().item() for a in plain)
    return Difference(what, plain[0].dtype, largest, scale, tolerance)


@torch.no_grad()
def outputs(model: LanguageModel, words: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits over `words`, and the state after them."""
    model.eval()
    logits, state = model(words)
    return logits, list(state) if isinstance(state, tuple) else [state]


def gradients(run: Run) -> list[Tensor]:
    """Return every parameter's gradient at the next update, dropout included; `run` stays as it is."""
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
    rows.append(
        difference("gradients of an update", gradients(plain), gradients(fused), 1e-4)
    )
    return rows

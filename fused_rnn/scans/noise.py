"""What variants draw for a call: recurrent dropout's masks, and the seeds of zoneout's.

All of it comes from torch's generators, so that ``torch.manual_seed``, checkpointing and compilers
know of it; and for sequences as the user has them, however they are packed for a scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fused_rnn.backends import AnyInputs, Inputs, VariantInputs
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.variants import Variant, extra_sizes

__all__ = [
    "Noise",
    "Whose",
    "checked_mask",
    "inputs_for",
    "masks_for",
    "operands",
    "variant_operands",
]


class Whose(NamedTuple):
    """Which sequences those are of that are scanned: the user's, in another order or in parts."""

    sequences: int  # how many the user has
    number: Tensor  # (n,), int64: the sequence of each
    first: Tensor | None = None  # (n,), int64: the step that it begins with; None: the first


class Noise:
    """The masks and seeds of a call, for each layer and direction.

    Args:
        variant: what is on
        stack: the sizes
        x: the input
        n: how many sequences are scanned
        training: without it nothing is drawn
        whose: None where they are the user's, in that order
        masks: recurrent dropout's (L*D, N, R), where the user has drawn them; None: drawn here
    """

    def __init__(
        self,
        variant: Variant,
        stack: Stack,
        x: Tensor,
        n: int,
        training: bool,
        whose: Whose | None,
        masks: Tensor | None = None,
    ) -> None:
        states, size = stack.layers * stack.directions, stack.proj_size or stack.hidden_size
        self._masks: Sequence[Tensor | None] = (None,) * states
        self._draws: Sequence[Tensor | None] = (None,) * states
        if training and variant.recurrent_dropout:
            if masks is None:
                sequences = n if whose is None else whose.sequences
                masks = masks_for(x, variant.recurrent_dropout, states, sequences, size)
            self._masks = (masks if whose is None else masks[:, whose.number]).unbind(0)
        if training and any(variant.zoneout):
            seeds = torch.randint(2**62, (states, 1), dtype=torch.int64, device=x.device)
            number = torch.arange(n, device=x.device) if whose is None else whose.number
            first = (
                torch.zeros_like(number) if whose is None or whose.first is None else whose.first
            )
            self._draws = [
                torch.stack([seed.expand(n), first, number], 1) for seed in seeds.unbind(0)
            ]

    def of(self, k: int) -> tuple[Tensor | None, Tensor | None]:
        """Return mask (N, R) and draws (N, 3) of the k-th layer and direction."""
        return self._masks[k], self._draws[k]


def masks_for(like: Tensor, p: float, states: int, sequences: int, size: int) -> Tensor:
    """Return recurrent dropout's masks of zeros and ones (states, sequences, size)."""
    kept = drop(like.new_ones(states, sequences, size), p, True)
    return kept.sign()  # its scale, in half precision, would be a rounded one


def checked_mask(name: str, mask: Any, shape: tuple[int, ...], x: Tensor, expected: bool) -> Tensor:
    """Return the mask that a single step was given, in the dtype of x.

    Args:
        name: of what takes it, for messages
        expected: whether there is something to be dropped

    Raises:
        RuntimeError: if there is no mask, or it is not expected, is on another device than x, or
            would need a gradient.
        TypeError, ValueError: if it is no tensor, or of another shape.
    """
    if not expected:
        raise RuntimeError(f"{name}: mask goes with recurrent_dropout in training mode")
    if mask is None:
        raise RuntimeError(
            f"{name}: recurrent_dropout has one mask for all steps of a sequence, which a single "
            "step in training mode does not know: give it as mask, which recurrent_mask() draws"
        )
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: mask should be a tensor, got: {type(mask).__name__}")
    if mask.shape != shape:
        raise ValueError(f"{name}: mask should have shape {shape}, got: {tuple(mask.shape)}")
    if mask.device != x.device:
        raise RuntimeError(f"{name}: mask should be on {x.device}, got one on {mask.device}")
    if mask.requires_grad:
        raise RuntimeError(f"{name}: mask has no gradient: give it detached")
    return mask.to(x.dtype)


def operands(row: Row) -> tuple[Tensor | None, ...]:
    """Return w_ih, w_hh, b_ih, b_hh, w_hr, each contiguous, or None where the row has none."""
    weights = [w.contiguous() for w in row]
    biases = weights[2:4] if len(weights) >= 4 else (None, None)
    return weights[0], weights[1], *biases, weights[-1] if len(weights) % 2 else None


def variant_operands(variant: Variant, row: Row) -> tuple[Tensor | None, ...]:
    """Do as :func:`operands`, and return the variant's own parameters as one at the end."""
    own = len(extra_sizes(variant))
    plain, extra = row[: len(row) - own], row[len(row) - own :]
    return *operands(plain), torch.cat(list(extra)) if own else None


def inputs_for(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    row: Row,
    k: int,
    variant: Variant | None,
    noise: Noise | None,
) -> AnyInputs:
    """Return the operands of the k-th layer and direction."""
    if variant is None or noise is None:
        return Inputs(x, h0, c0, *operands(row))
    return VariantInputs(x, h0, c0, *variant_operands(variant, row), *noise.of(k))

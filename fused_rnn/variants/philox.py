"""Masks from a counter-based generator: Philox4x32-10 (Salmon et al. 2011), in plain torch.

A mask is a function of the layer's seed and of which step, sequence and unit it is for. Nothing of
it has to be kept: backward, a recomputation and a kernel on other threads draw the same again.

64 units take 16 counters, whose four words are for 16 units each: lanes of a vector register are
counters, and its words are neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KEEP_C", "KEEP_H", "keeps_old", "philox"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
# The last word of the counter: which of a step's masks it is.
KEEP_H, KEEP_C = 0, 1


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Return the four words (int64, each below 2^32) for four words of counters and two of keys."""
    a, b, c, d = counter
    k, q = key
    for _ in range(_ROUNDS):
        # The product may go beyond the sign: its bits are those of the unsigned one.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & _WORD) ^ b ^ k,
            second & _WORD,
            (first >> 32 & _WORD) ^ d ^ q,
            first & _WORD,
        )
        k, q = k + _WEYL[0] & _WORD, q + _WEYL[1] & _WORD
    return [a, b, c, d]


def keeps_old(draws: Tensor, step: int, units: int, p: float, which: int) -> Tensor:
    """Return whether units keep their old values in a step, with probability p (N, units).

    Args:
        draws: (N, 3) int64: seed, first step and number of each sequence
        step: counted from the sequence's first one here
        units: R for h, H for c
        p: in [0, 1)
        which: ``KEEP_H`` or ``KEEP_C``
    """
    seed, first, number = (column.unsqueeze(1) for column in draws.unbind(1))
    blocks = torch.arange((units + 63) // 64 * 16, device=draws.device)
    zeros = torch.zeros_like(blocks + number)
    counter = [blocks + zeros, first + step + zeros, number + zeros, zeros + which]
    words = philox(counter, [seed & _WORD, seed >> 32 & _WORD])
    # (N, blocks of 64, word, 16)
    drawn = torch.stack([w.unflatten(1, (-1, 16)) for w in words], 2).flatten(1)
    return drawn[:, :units] < round(p * 2**32)

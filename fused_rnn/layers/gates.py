"""The gates of a network at every step, from its input and the states that it went through.

A gate is a function of the step's input and of the state before the step. Once all states are
there, no step waits for another: a product for each layer and direction gives all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_rnn.cells import State, Weights
from fused_rnn.layers.options import Options
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.scans.noise import operands, variant_operands
from fused_rnn.scans.segments import on_device
from fused_rnn.scans.stack import initial_states
from fused_rnn.variants import VariantWeights, cell_of, variant_of

__all__ = ["gates_of_layers"]


def gates_of_layers(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    options: Options,
) -> dict[str, Tensor]:
    """Return each gate's values (T, L*D, N, H), by name.

    Args:
        stack: the sizes
        x: (T, N, I)
        h0: (L*D, N, R), or None for zeros
        c0: (L*D, N, H), or None
        rows: the weights
        options: of the call that has run, with the states of every step
    """
    lengths, resets = (on_device(t, x.device) for t in options.cuts(x))
    past = None
    if lengths is not None:
        past = torch.arange(len(x), device=x.device).unsqueeze(1) >= lengths
        x = x.masked_fill(past.unsqueeze(2), 0)  # which may hold anything there, NaN too
    given = initial_states(stack, x, x.shape[1], h0, c0)
    anew = initial_states(stack, x, 1, *options.anew(stack, x))
    before = State(
        *(
            None if s is None else _before(g, a, s, stack.directions, lengths, resets)
            for g, a, s in zip(given, anew, options.steps, strict=True)
        )
    )
    h = options.steps[0]
    found = []
    for k, row in enumerate(rows):
        layer, direction = divmod(k, stack.directions)
        if layer and not direction:
            # What the layer below gave out, both directions side by side.
            x = h[:, k - stack.directions : k].transpose(1, 2).flatten(2)
        found.append(_gates(stack.cell, x, State(*(_at(s, k) for s in before)), row))
    gates = {
        name: torch.stack([getattr(of_row, name) for of_row in found], 1)
        for name in found[0]._fields
    }
    if past is None:
        return gates
    return {name: gate.masked_fill(past[:, None, :, None], 0) for name, gate in gates.items()}


def _at(states: Tensor | None, k: int) -> Tensor | None:
    return states if states is None else states[:, k]


def _gates(name: str, x: Tensor, before: State, row: Row) -> Any:
    cell, variant = cell_of(name), variant_of(name)
    if variant is None:
        return cell.gates_of(x, before.h, Weights(*operands(row)))
    return cell.gates_of(x, before, VariantWeights(*variant_operands(variant, row)))


def _before(
    given: Tensor,
    anew: Tensor,
    steps: Tensor,
    directions: int,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> Tensor:
    """Return a state before each step of the scan (T, L*D, N, R), which runs backwards in reverse.

    Args:
        given: (L*D, N, R), the initial ones
        anew: (L*D, 1, R), after a reset
        steps: (T, L*D, N, R), after each step
    """
    times = torch.arange(len(steps), device=steps.device).unsqueeze(1)
    found = []
    for k in range(len(given)):
        first = given[k].unsqueeze(0)
        if k % directions == 0:
            before = torch.cat([first, steps[:-1, k]])
            cuts = resets
        else:
            before = torch.cat([steps[1:, k], first])
            cuts = resets if resets is None else resets.roll(-1, 0) & (times < len(steps) - 1)
        if cuts is not None:
            before = torch.where(cuts.unsqueeze(-1), anew[k], before)
        if k % directions and lengths is not None:
            last = times == lengths - 1
            before = torch.where(last.unsqueeze(-1), first, before)
        found.append(before)
    return torch.stack(found, 1)

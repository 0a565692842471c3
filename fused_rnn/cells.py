"""The cells' equations in plain torch: the specification that every kernel is checked against.

A recurrent network reads a sequence one step at a time and carries a *state* from step to step. A
cell is what happens in one step: it takes the step's input ``x`` and the state that the previous
step left, and returns the new state. The hidden state ``h`` is also the step's output; the LSTM
keeps a second one, the cell state ``c``, that only the cell itself sees.

Every cell looks at what the input says, ``W_ih x + b_ih``, and at what the past says,
``W_hh h + b_hh``, for each of its gates. A gate is a number between 0 and 1 for each hidden unit,
which says how much of something passes. The rows of the weights hold the gates one below the other,
in torch.nn's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["CELLS", "Cell", "State", "Weights", "gru", "lstm", "rnn_relu", "rnn_tanh"]


class Weights(NamedTuple):
    """The parameters of a cell: ``G`` gates, ``I`` inputs, ``H`` hidden units, ``R`` outputs."""

    w_ih: Tensor  # (G*H, I)
    w_hh: Tensor  # (G*H, R)
    b_ih: Tensor | None = None  # (G*H,)
    b_hh: Tensor | None = None  # (G*H,)
    w_hr: Tensor | None = None  # (R, H): the LSTM's projection; without one, R is H


class State(NamedTuple):
    """What a cell carries to the next step."""

    h: Tensor  # (N, R)
    c: Tensor | None  # (N, H), the LSTM's alone


def lstm(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of a long short-term memory; gates: input, forget, candidate, output."""
    h, c = state
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    a_i, a_f, a_g, a_o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)

    f = torch.sigmoid(a_f)  # forget gate: how much of the old cell state stays
    i = torch.sigmoid(a_i)  # input gate: how much of the candidate enters
    g = torch.tanh(a_g)  # candidate
    c = f * c + i * g  # new cell state
    o = torch.sigmoid(a_o)  # output gate: how much of the cell state shows
    h = o * torch.tanh(c)  # new hidden state
    if w_hr is not None:
        h = linear(h, w_hr)  # projected to fewer features
    return State(h, c)


def gru(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of a gated recurrent unit; gates: reset, update, new."""
    h = state.h
    x_r, x_z, x_n = linear(x, weights.w_ih, weights.b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, weights.w_hh, weights.b_hh).chunk(3, dim=-1)

    r = torch.sigmoid(x_r + h_r)  # reset gate: how much of the past the candidate hears
    z = torch.sigmoid(x_z + h_z)  # update gate: how much of the past stays
    n = torch.tanh(x_n + r * h_n)  # candidate
    h = (1 - z) * n + z * h  # new hidden state
    return State(h, None)


def rnn_tanh(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of the plain recurrent network with tanh."""
    a = linear(x, weights.w_ih, weights.b_ih) + linear(state.h, weights.w_hh, weights.b_hh)
    return State(torch.tanh(a), None)


def rnn_relu(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of the plain recurrent network with ReLU."""
    a = linear(x, weights.w_ih, weights.b_ih) + linear(state.h, weights.w_hh, weights.b_hh)
    return State(torch.relu(a), None)


@dataclass(frozen=True)
class Cell:
    """A row of the table of cells."""

    name: str
    gates: int  # G: blocks of H rows in the weights
    has_cell_state: bool  # a second state, c, and with it the possibility of a projection
    step: Callable[[Tensor, State, Weights], State]


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, True, lstm),
        Cell("gru", 3, False, gru),
        Cell("rnn_tanh", 1, False, rnn_tanh),
        Cell("rnn_relu", 1, False, rnn_relu),
    )
}

"""The cells' equations in plain torch: the specification that every kernel is checked against.

A recurrent network reads a sequence one step at a time and carries a *state* from step to step. A
cell is what happens in one step: it takes the step's input ``x`` and the state that the previous
step left, and returns the new state. The hidden state ``h`` is also the step's output; the LSTM
keeps a second one, the cell state ``c``, that only the cell itself sees.

Every cell looks at what the input says, ``W_ih x + b_ih``, and at what the past says,
``W_hh h + b_hh``, for each of its gates. A gate is a number between 0 and 1 for each hidden unit,
which says how much of something passes. The rows of the weights hold the gates one below the other,
in torch.nn's order.

Each cell is two functions: what its gates are, given the input and the past, and what it does with
them. The first is all that looking into a network needs: it takes every step of a sequence at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = [
    "CELLS",
    "Cell",
    "GruGates",
    "LstmGates",
    "RnnGates",
    "State",
    "Weights",
    "gru",
    "lstm",
    "rnn_relu",
    "rnn_tanh",
]


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


class LstmGates(NamedTuple):
    """What a long short-term memory decides in a step, each (..., H)."""

    input: Tensor  # how much of the candidate enters
    forget: Tensor  # how much of the old cell state stays
    candidate: Tensor
    output: Tensor  # how much of the cell state shows


class GruGates(NamedTuple):
    """What a gated recurrent unit decides in a step, each (..., H)."""

    reset: Tensor  # how much of the past the candidate hears
    update: Tensor  # how much of the past stays
    candidate: Tensor


class RnnGates(NamedTuple):
    """A plain recurrent network has no gates: its one block of rows is the state itself."""

    hidden: Tensor  # (..., H)


def lstm_gates(x: Tensor, h: Tensor, weights: Weights) -> LstmGates:
    """Return the gates of a long short-term memory: input, forget, candidate, output."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    a_i, a_f, a_g, a_o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    return LstmGates(torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o))


def lstm_after(gates: LstmGates, state: State) -> State:
    """Return the state after a step whose gates these are, before a projection."""
    i, f, g, o = gates
    c = f * state.c + i * g  # new cell state
    return State(o * torch.tanh(c), c)


def lstm(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of a long short-term memory."""
    h, c = lstm_after(lstm_gates(x, state.h, weights), state)
    if weights.w_hr is not None:
        h = linear(h, weights.w_hr)  # projected to fewer features
    return State(h, c)


def gru_gates(x: Tensor, h: Tensor, weights: Weights) -> GruGates:
    """Return the gates of a gated recurrent unit: reset, update, candidate."""
    x_r, x_z, x_n = linear(x, weights.w_ih, weights.b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, weights.w_hh, weights.b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    return GruGates(r, torch.sigmoid(x_z + h_z), torch.tanh(x_n + r * h_n))


def gru_after(gates: GruGates, state: State) -> State:
    """Return the state after a step whose gates these are."""
    _, z, n = gates
    return State((1 - z) * n + z * state.h, None)


def gru(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of a gated recurrent unit."""
    return gru_after(gru_gates(x, state.h, weights), state)


def _activation(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    return linear(x, weights.w_ih, weights.b_ih) + linear(h, weights.w_hh, weights.b_hh)


def rnn_tanh_gates(x: Tensor, h: Tensor, weights: Weights) -> RnnGates:
    """Return the new state of the plain recurrent network with tanh."""
    return RnnGates(torch.tanh(_activation(x, h, weights)))


def rnn_after(gates: RnnGates, state: State) -> State:
    """Return the state after a step whose one block of rows this is: it is that already."""
    return State(gates.hidden, None)


def rnn_tanh(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of the plain recurrent network with tanh."""
    return rnn_after(rnn_tanh_gates(x, state.h, weights), state)


def rnn_relu_gates(x: Tensor, h: Tensor, weights: Weights) -> RnnGates:
    """Return the new state of the plain recurrent network with ReLU."""
    return RnnGates(torch.relu(_activation(x, h, weights)))


def rnn_relu(x: Tensor, state: State, weights: Weights) -> State:
    """Apply one step of the plain recurrent network with ReLU."""
    return rnn_after(rnn_relu_gates(x, state.h, weights), state)


@dataclass(frozen=True)
class Cell:
    """A row of the table of cells."""

    name: str
    gates: int  # G: blocks of H rows in the weights
    has_cell_state: bool  # a second state, c, and with it the possibility of a projection
    step: Callable[[Tensor, State, Weights], State]
    gates_of: Callable[[Tensor, Tensor, Weights], LstmGates | GruGates | RnnGates]
    # Given the gates and the state before; unprojected. Of plain cells alone.
    after: Callable[[Any, State], State] | None = None


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, True, lstm, lstm_gates, lstm_after),
        Cell("gru", 3, False, gru, gru_gates, gru_after),
        Cell("rnn_tanh", 1, False, rnn_tanh, rnn_tanh_gates, rnn_after),
        Cell("rnn_relu", 1, False, rnn_relu, rnn_relu_gates, rnn_after),
    )
}

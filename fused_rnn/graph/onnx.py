"""Layers as ONNX has them: what ``torch.onnx.export(..., dynamo=True)`` finds for ours.

ONNX knows LSTM, GRU and RNN, a node for both directions of a layer, over sequences of any length.
Its gates stand in another order than torch's, and its outputs have the directions apart. See
https://onnx.ai/onnx/operators/ for the equations; the GRU is the one that resets after the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fused_rnn.cells import CELLS
from fused_rnn.scans.checks import Row, Stack

__all__ = ["onnx_stack"]

# The operator, and which gate of torch's each of its gates is: i o f c, and z r h.
_OPERATORS = {
    "lstm": ("LSTM", (0, 3, 1, 2)),
    "gru": ("GRU", (1, 0, 2)),
    "rnn_tanh": ("RNN", (0,)),
    "rnn_relu": ("RNN", (0,)),
}


def onnx_stack(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    n: int,
    dropout: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do as :func:`fused_rnn.scans.stack.run_stack`, for dense data without projections."""
    d, h_n, c_n = stack.directions, [], []
    for layer in range(stack.layers):
        if layer and dropout and training:
            x = drop(x, dropout, True)
        of_layer = slice(layer * d, (layer + 1) * d)
        states = [state if state is None else state[of_layer] for state in (h0, c0)]
        x, *finals = _layer(stack, x, n, rows[of_layer], states)
        h_n.append(finals[0])
        c_n += finals[1:]
    return x, torch.cat(h_n), torch.cat(c_n) if c_n else None


def _layer(
    stack: Stack, x: Tensor, n: int, rows: Sequence[Row], states: list[Tensor | None]
) -> list[Tensor]:
    """Return y (T, N, D*H), h_n and c_n (D, N, H), the last for an LSTM only."""
    steps, h, d = x.shape[0], stack.hidden_size, stack.directions
    operator, order = _OPERATORS[stack.cell]
    finals = 2 if CELLS[stack.cell].has_cell_state else 1
    attributes = {
        "hidden_size": h,
        "direction": "bidirectional" if d == 2 else "forward",
        "linear_before_reset": 1 if operator == "GRU" else None,
        "activations": ["Relu"] * d if stack.cell == "rnn_relu" else None,
    }
    y, *finals_n = torch.onnx.ops.symbolic_multi_out(
        operator,
        (x, *_weights(rows, order), None, *states[:finals]),
        {name: value for name, value in attributes.items() if value is not None},
        dtypes=(x.dtype,) * (1 + finals),
        shapes=((steps, d, n, h), *((d, n, h),) * finals),
    )
    return [y.transpose(1, 2).reshape(steps, n, d * h), *finals_n]


def _weights(rows: Sequence[Row], order: Sequence[int]) -> list[Tensor | None]:
    """Return W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) or None."""

    def sorted_gates(w: Tensor) -> Tensor:
        gates = w.chunk(len(order))
        return torch.cat([gates[k] for k in order])

    w, r, *biases = ([sorted_gates(t) for t in ts] for ts in zip(*rows, strict=True))
    b = [torch.cat(pair) for pair in zip(*biases, strict=True)]
    return [torch.stack(w), torch.stack(r), torch.stack(b) if b else None]

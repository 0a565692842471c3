"""Layers as ONNX has them: what ``torch.onnx.export`` finds for ours.

ONNX knows LSTM, GRU and RNN, a node for both directions of a layer, over sequences of any length.
Its gates stand in another order than torch's, and its outputs have the directions apart. See
https://onnx.ai/onnx/operators/ for the equations; the GRU is the one that resets after the product.
With ``dynamo=False`` torch writes its own layers; what they have not is written here for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fused_rnn.backends import transforms
from fused_rnn.cells import CELLS
from fused_rnn.scans.checks import Row, Stack
from fused_rnn.variants import Variant, variant_of

__all__ = ["onnx_quantized_stack", "onnx_stack"]

# The operator, and which gate of torch's each of its gates is: i o f c, and z r h.
_OPERATORS = {
    "lstm": ("LSTM", (0, 3, 1, 2)),
    "gru": ("GRU", (1, 0, 2)),
    "rnn_tanh": ("RNN", (0,)),
    "rnn_relu": ("RNN", (0,)),
}
# The options that a node has, or that are a matter of its weights.
_WRITTEN = "reset_after", "recurrent_activation", "activation", "use_peepholes", "input_forget"


def onnx_stack(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    n: int,
    dropout: float,
    training: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do as :func:`fused_rnn.scans.stack.run_stack`, for dense data without projections.

    Args:
        lengths: (N,), of padded sequences; None where all have all steps
    """
    variant = variant_of(stack.cell)
    if variant is not None:
        _check_written(variant)
    d, h_n, c_n = stack.directions, [], []
    for layer in range(stack.layers):
        if layer and dropout and training:
            x = drop(x, dropout, True)
        of_layer = slice(layer * d, (layer + 1) * d)
        states = [state if state is None else state[of_layer] for state in (h0, c0)]
        x, *finals = _layer(stack, x, n, rows[of_layer], states, lengths)
        h_n.append(finals[0])
        c_n += finals[1:]
    return x, torch.cat(h_n), torch.cat(c_n) if c_n else None


def _layer(
    stack: Stack,
    x: Tensor,
    n: int,
    rows: Sequence[Row],
    states: list[Tensor | None],
    lengths: Tensor | None,
) -> list[Tensor]:
    """Return y (T, N, D*H), h_n and c_n (D, N, H), the last for an LSTM only."""
    steps, h, d = x.shape[0], stack.hidden_size, stack.directions
    variant = variant_of(stack.cell)
    cell = stack.cell if variant is None else variant.cell
    operator, order = _OPERATORS[cell]
    finals = 2 if CELLS[cell].has_cell_state else 1
    attributes = {
        "hidden_size": h,
        "direction": "bidirectional" if d == 2 else "forward",
        "linear_before_reset": 1 if operator == "GRU" else None,
        "activations": ["Relu"] * d if cell == "rnn_relu" else None,
    }
    peepholes: list[Tensor] = []
    if variant is not None:
        attributes |= _of_variant(variant, d)
        rows, peepholes = _uncoupled(variant, rows)
    sequence_lens = None if lengths is None else lengths.to(torch.int32)
    operands = x, *_weights(rows, order), sequence_lens, *states[:finals], *peepholes
    attributes = {name: value for name, value in attributes.items() if value is not None}
    shapes = (steps, d, n, h), *((d, n, h),) * finals
    if transforms.exporting():
        y, *finals_n = torch.onnx.ops.symbolic_multi_out(
            operator, operands, attributes, dtypes=(x.dtype,) * len(shapes), shapes=shapes
        )
    else:
        y, *finals_n = _Traced.apply(operator, attributes, h, d, finals, *operands)
    if lengths is not None:
        # Of a sequence without a step onnxruntime makes zeros.
        empty = (lengths == 0).unsqueeze(1)
        finals_n = [
            final if given is None else torch.where(empty, given, final)
            for final, given in zip(finals_n, states, strict=False)
        ]
    return [y.transpose(1, 2).reshape(steps, n, d * h), *finals_n]


def onnx_quantized_stack(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    scales: Sequence[Any],
    n: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`onnx_stack` for int8 weights by onnxruntime's own operator for them, an LSTM's.

    It rounds inputs and states to 8 bits too, with a scale and an offset for a whole batch. On a
    CPU without instructions for int8 its sums of two products saturate at 16 bits, unless the
    weights have 7, as they are written here.

    Args:
        scales: a :class:`~fused_rnn.backends.quantized.Scales` for each layer and direction
    """
    d, h, order, steps = stack.directions, stack.hidden_size, _OPERATORS["lstm"][1], x.shape[0]
    attributes = {"hidden_size": h, "direction": "bidirectional" if d == 2 else "forward"}
    finals = []
    for first in range(0, len(rows), d):
        of_layer = slice(first, first + d)
        w, r, b = _weights(rows[of_layer], order)
        of_w, of_r = (
            2 * torch.stack([_sorted(s[i], order) for s in scales[of_layer]]) for i in range(2)
        )
        zeros = torch.zeros_like(of_w, dtype=torch.int8)
        states = (s if s is None else s[of_layer] for s in (h0, c0))
        turned = (
            (t.transpose(1, 2).float() / 2).round().to(torch.int8) for t in (w, r) if t is not None
        )
        operands = x, *turned, b, None, *states, None, of_w, zeros, of_r, zeros
        y, *ends = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::DynamicQuantizeLSTM",
            operands,
            attributes,
            dtypes=(x.dtype,) * 3,
            shapes=((steps, d, n, h), (d, n, h), (d, n, h)),
            version=1,
        )
        x = y.transpose(1, 2).reshape(steps, n, d * h)
        finals.append(ends)
    h_n, c_n = (torch.cat(of) for of in zip(*finals, strict=True))
    return x, h_n, c_n


def _check_written(variant: Variant) -> None:
    """Check that ONNX has what a variant is.

    Raises:
        RuntimeError: if it has not.
    """
    lacking = [name for name in variant.changed if name not in _WRITTEN]
    if lacking:
        raise RuntimeError(f"ONNX has no node with {' and '.join(lacking)}")
    if variant.input_forget and variant.recurrent_activation[0] != "sigmoid":
        raise RuntimeError("ONNX has no node with input_forget and a recurrent_activation")


def _of_variant(variant: Variant, directions: int) -> dict[str, Any]:
    """Return what a variant adds to a node's attributes."""
    found: dict[str, Any] = {}
    if variant.cell == "gru" and not variant.reset_after:
        found["linear_before_reset"] = 0
    kind, alpha, beta = variant.recurrent_activation
    if kind != "sigmoid" or variant.activation != "tanh":
        gate = "Sigmoid" if kind == "sigmoid" else "HardSigmoid"
        others = [variant.activation.capitalize()] * (2 if variant.cell == "lstm" else 1)
        found["activations"] = [gate, *others] * directions
    if kind != "sigmoid":
        found |= {"activation_alpha": [alpha] * directions, "activation_beta": [beta] * directions}
    return found


def _uncoupled(variant: Variant, rows: Sequence[Row]) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Return rows with all gates, and P (D, 3*H) in ONNX' order, or nothing.

    What couples gates in ONNX is not said there. An input gate of the forget gate's weights with
    their signs turned is one minus that gate, and any runtime knows how to run it.
    """
    full, peepholes = [], []
    for row in rows:
        weights = list(row)
        peephole = weights.pop() if variant.use_peepholes else None
        if variant.input_forget:
            units = weights[0].shape[0] // variant.gates
            weights = [torch.cat([-w[:units], w]) for w in weights]
            if peephole is not None:
                peephole = torch.cat([-peephole[:units], peephole])
        full.append(weights)
        if peephole is not None:
            p_i, p_f, p_o = peephole.chunk(3)
            peepholes.append(torch.cat([p_i, p_o, p_f]))
    return full, [torch.stack(peepholes)] if peepholes else []


class _Traced(torch.autograd.Function):
    """An operator of ONNX in a trace of torch.jit: what torch.onnx.ops is for torch.export."""

    @staticmethod
    def forward(
        ctx: Any, operator: str, attributes: Any, h: int, d: int, finals: int, x: Tensor, *_: Any
    ) -> tuple[Tensor, ...]:
        steps, n = x.shape[:2]
        return x.new_zeros(steps, d, n, h), *(x.new_zeros(d, n, h) for _ in range(finals))

    @staticmethod
    def symbolic(
        g: Any, operator: str, attributes: Any, h: int, d: int, finals: int, *operands: Any
    ) -> Any:
        kinds = {int: "i", float: "f", str: "s"}
        first = {name: v[0] if isinstance(v, list) else v for name, v in attributes.items()}
        named = {f"{name}_{kinds[type(first[name])]}": v for name, v in attributes.items()}
        given = [_nothing(g) if t is None else t for t in operands]
        return g.op(operator, *given, **named, outputs=1 + finals)


def _nothing(g: Any) -> Any:
    nothing = g.op("prim::Constant")
    nothing.setType(torch._C.OptionalType.ofTensor())
    return nothing


def _sorted(w: Tensor, order: Sequence[int]) -> Tensor:
    """Return rows of gates in ONNX's order."""
    gates = w.chunk(len(order))
    return torch.cat([gates[k] for k in order])


def _weights(rows: Sequence[Row], order: Sequence[int]) -> list[Tensor | None]:
    """Return W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) or None."""

    w, r, *biases = ([_sorted(t, order) for t in ts] for ts in zip(*rows, strict=True))
    b = [torch.cat(pair) for pair in zip(*biases, strict=True)]
    return [torch.stack(w), torch.stack(r), torch.stack(b) if b else None]

"""Nodes of ONNX: LSTM, GRU and RNN with the weights that stand beside them in the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_rnn.importing.filling import LAYERS, Layer, fill, reordered, tensor

__all__ = ["from_onnx"]

# torch's gates by their places in ONNX': i o f c, and z r h.
_ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}
# alpha and beta, of those that have them, as onnxruntime has them where a node has not.
_PARAMETERS = {"HardSigmoid": (0.2, 0.5)}


def from_onnx(model: Any, node: str | None = None) -> Layer:
    r"""Return a layer with the weights and options of a recurrent node of an ONNX model.

    LSTM, GRU and RNN are taken, of one direction or two, with peepholes, the reset before the
    product, ``input_forget`` (as onnxruntime runs it: the forget gate is one minus the input gate)
    and the activations that layers here have. The initial states that a node may have in the model
    are for the caller to give. It takes the package ``onnx``.

    Args:
        model: an ``onnx.ModelProto``, or the path of a file that has one
        node: the node's name; by default the model has one recurrent node

    Returns:
        an :class:`LSTM`, a :class:`GRU` or an :class:`RNN`; with the batch first where the node's
        ``layout`` is 1

    Raises:
        ValueError: if there is no such node, or more than one, or it does what no layer here does.
        ImportError: without the package ``onnx``.

    Examples::

        >>> rnn = fused_rnn.from_onnx("model.onnx")  # doctest: +SKIP
    """
    import onnx
    from onnx import helper, numpy_helper

    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model)
    found = _node(model.graph, node)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for other in model.graph.node:
        if other.op_type == "Constant" and other.attribute[0].name == "value":
            arrays[other.output[0]] = numpy_helper.to_array(other.attribute[0].t)
    attributes = {a.name: _text(helper.get_attribute_value(a)) for a in found.attribute}

    def operand(place: int) -> Tensor | None:
        name = found.input[place] if place < len(found.input) else ""
        if name and name not in arrays:
            raise ValueError(f"input {name!r} of the node should be a constant of the model")
        return tensor(arrays[name]) if name else None

    w, r, b = (operand(place) for place in (1, 2, 3))
    peepholes = operand(7) if found.op_type == "LSTM" else None
    if w is None or r is None:
        raise ValueError("the node should have weights W and R")
    options = _options(found.op_type, attributes, len(w))
    options |= {"bias": b is not None}
    if peepholes is not None:
        options["use_peepholes"] = True
    coupled = bool(attributes.get("input_forget", 0)) and found.op_type == "LSTM"
    if coupled:
        options["input_forget"] = True
        # beta, what a hard sigmoid is at zero: one minus it is that of the turned signs.
        gate = options["recurrent_activation"]
        if gate != "sigmoid" and gate[2] != 0.5:
            raise ValueError("input_forget goes with gates that are one half at zero")
    weights = []
    for k in range(len(w)):
        of_direction = [t if t is None else t[k] for t in (w, r, b, peepholes)]
        weights.append(_row(found.op_type, of_direction, coupled))
    return fill(found.op_type, weights, options)


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_text(v) for v in value] if isinstance(value, (list, tuple)) else value


def _node(graph: Any, name: str | None) -> Any:
    nodes = [n for n in graph.node if n.op_type in LAYERS and n.domain in ("", "ai.onnx")]
    if name is not None:
        nodes = [n for n in nodes if n.name == name]
    if len(nodes) != 1:
        which = "no recurrent node" if not nodes else ", ".join(repr(n.name) for n in nodes)
        of = "" if name is None else f" of the name {name!r}"
        raise ValueError(
            f"the model should have one recurrent node{of}, or its name be given: {which}"
        )
    return nodes[0]


def _options(kind: str, attributes: dict[str, Any], directions: int) -> dict[str, Any]:
    """Return what the constructor here gets."""
    if attributes.get("direction", "forward") == "reverse":
        raise ValueError("a layer of the reverse direction alone has no counterpart")
    if "clip" in attributes:
        raise ValueError("clip, of what goes into activations, has no counterpart")
    found: dict[str, Any] = {"batch_first": attributes.get("layout", 0) == 1}
    if kind == "GRU":
        found["reset_after"] = attributes.get("linear_before_reset", 0) != 0
    names = attributes.get("activations", _ACTIVATIONS[kind] * directions)
    numbers = [iter(attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta")]
    functions = []
    for name in names:
        defaults = _PARAMETERS.get(name, ())
        given = [next(n, default) for n, default in zip(numbers, defaults, strict=False)]
        functions.append((name, *(round(float(v), 7) for v in given)))
    size = len(_ACTIVATIONS[kind])
    gate, *others = functions[:size]
    if functions != functions[:size] * directions or len(set(others)) > 1:
        raise ValueError(f"activations should be the same in all places, got: {names}")
    last = (others or [gate])[0][0]
    if last not in ("Tanh", "Relu"):
        raise ValueError(f"activations should be Tanh or Relu, got: {last}")
    if kind == "RNN":
        return {**found, "nonlinearity": last.lower()}
    if gate[0] not in ("Sigmoid", "HardSigmoid"):
        raise ValueError(f"the gates' activation should be Sigmoid or HardSigmoid, got: {gate[0]}")
    of_gates = "sigmoid" if gate[0] == "Sigmoid" else ("hard_sigmoid", *gate[1:])
    return {**found, "activation": last.lower(), "recurrent_activation": of_gates}


def _row(kind: str, arrays: list[Any], coupled: bool) -> dict[str, Tensor]:
    """Return a direction's weights, given its W, R, B and P."""
    w, r, b, peepholes = arrays
    order = _ORDERS[kind]

    def gates(t: Tensor) -> Tensor:
        if not coupled:
            return reordered(t, order)
        # ONNX keeps the input gate, layers here the forget gate, which is one minus that.
        i, o, _, c = t.chunk(4)
        return torch.cat([-i, c, o])

    found = {"weight_ih": gates(w), "weight_hh": gates(r)}
    if b is not None:
        of_x, of_h = b.chunk(2)
        found |= {"bias_ih": gates(of_x), "bias_hh": gates(of_h)}
    if peepholes is not None:
        i, o, f = peepholes.chunk(3)
        found["peephole"] = torch.cat([-i, o] if coupled else [i, f, o])
    return found

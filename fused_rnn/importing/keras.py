"""Layers of Keras 3, and of the Keras 2 that TensorFlow had."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from fused_rnn.importing.filling import Layer, fill, reordered, tensor

__all__ = ["from_keras"]

# torch's gates by their places in Keras': i f c o, and z r h.
_ORDERS = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
# Keras 2's: 0.2 x + 0.5; Keras 3's is the layers' own.
_OLD_HARD = "hard_sigmoid", 0.2, 0.5


def from_keras(layer: Any) -> Layer:
    r"""Return a layer with the weights and options of a recurrent layer of Keras.

    ``keras.layers.LSTM``, ``GRU`` and ``SimpleRNN`` are taken, and ``Bidirectional`` around one of
    them, once they are built. Keras itself is not needed here: the layer is asked for
    ``get_config()`` and ``get_weights()``. The result has the batch first, as Keras has it, and
    returns every step's output whatever ``return_sequences`` says. Its bias is ``bias_ih``;
    ``bias_hh`` is zero, but for a GRU that resets after the product. ``dropout``, of the input, is
    no option of a layer here: put it before. ``recurrent_dropout`` has one mask for all gates,
    where a GRU of Keras may have one for each. ``hard_sigmoid`` is that of the layer's Keras, 2 or
    3.

    Args:
        layer: the layer of Keras

    Returns:
        an :class:`LSTM`, a :class:`GRU` or an :class:`RNN`

    Raises:
        TypeError: if it is no such layer.
        ValueError: if it is not built, or does what no layer here does: ``go_backwards``,
            ``stateful``, another activation, a merge of directions other than ``"concat"``.

    Examples::

        >>> rnn = fused_rnn.from_keras(keras.layers.GRU(8))  # doctest: +SKIP
    """
    if not hasattr(layer, "get_config") or not hasattr(layer, "get_weights"):
        raise TypeError(f"layer should be a layer of Keras, got: {type(layer).__name__}")
    kind = type(layer).__name__
    if kind == "Bidirectional":
        mode = layer.get_config().get("merge_mode", "concat")
        if mode != "concat":
            raise ValueError(f"merge_mode should be 'concat', got: {mode!r}")
        directions = [layer.forward_layer, layer.backward_layer]
    else:
        directions = [layer]
    kinds = {type(of).__name__ for of in directions}
    if len(kinds) > 1 or not kinds <= set(_ORDERS):
        expected = "an LSTM, a GRU or a SimpleRNN of Keras"
        raise TypeError(f"layer should be {expected}, got: {' and '.join(sorted(kinds))}")
    kind = kinds.pop()
    options = [_options(kind, of, k > 0) for k, of in enumerate(directions)]
    if options[0] != options[-1]:
        raise ValueError("the two directions should have the same options")
    weights = [_weights(kind, of, bool(options[0].get("reset_after"))) for of in directions]
    return fill("RNN" if kind == "SimpleRNN" else kind, weights, options[0])


def _is_old(layer: Any) -> bool:
    """Return whether a layer is of Keras 2, as tf_keras is and what TensorFlow has within it."""
    for base in type(layer).__mro__:
        root = base.__module__.partition(".")[0]
        if root == "keras":
            return str(getattr(sys.modules.get(root), "__version__", "")).startswith("2.")
        if root in ("tf_keras", "tensorflow"):
            return True
    return False


def _options(kind: str, layer: Any, backwards: bool) -> dict[str, Any]:
    """Return what the constructor here gets."""
    config = layer.get_config()
    if bool(config.get("go_backwards")) != backwards:
        raise ValueError("go_backwards has no counterpart: turn the input round")
    if config.get("stateful"):
        raise ValueError("stateful has no counterpart: give each call the state of the last one")
    found: dict[str, Any] = {"batch_first": True, "bias": config.get("use_bias", True)}
    activation = config.get("activation", "tanh")
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation should be 'tanh' or 'relu', got: {activation!r}")
    if kind == "SimpleRNN":
        found["nonlinearity"] = activation
    else:
        gate = config.get("recurrent_activation", "sigmoid")
        if gate not in ("sigmoid", "hard_sigmoid"):
            expected = "'sigmoid' or 'hard_sigmoid'"
            raise ValueError(f"recurrent_activation should be {expected}, got: {gate!r}")
        old = gate == "hard_sigmoid" and _is_old(layer)
        found |= {"activation": activation, "recurrent_activation": _OLD_HARD if old else gate}
    if kind == "GRU":
        # A Keras without the option resets before the product.
        found["reset_after"] = bool(config.get("reset_after", False))
    found["recurrent_dropout"] = float(config.get("recurrent_dropout", 0.0))
    return found


def _weights(kind: str, layer: Any, two_biases: bool) -> dict[str, Tensor]:
    arrays = [tensor(array) for array in layer.get_weights()]
    if len(arrays) < 2:
        raise ValueError("layer should be built: it has no weights before its first call")
    order = _ORDERS[kind]
    kernel, recurrent, *bias = arrays
    found = {
        "weight_ih": reordered(kernel.t(), order),
        "weight_hh": reordered(recurrent.t(), order),
    }
    if bias:
        of_x, of_h = bias[0] if two_biases else (bias[0], torch.zeros_like(bias[0]))
        found |= {"bias_ih": reordered(of_x, order), "bias_hh": reordered(of_h, order)}
    return found

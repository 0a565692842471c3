"""The options of a layer as the user gives them, checked."""

from __future__ import annotations

from math import isfinite
from typing import Any

from fused_rnn.variants.names import SIGMOID, Variant

__all__ = ["from_options"]

_LSTM = "use_peepholes", "input_forget", "cell_clip", "proj_clip"
_GATED = "recurrent_activation", "activation"
# Keras 3: relu6(x + 3) / 6.
_HARD = 1 / 6, 0.5


def from_options(
    layer: str, cell: str, hidden_size: int, proj_size: int, **options: Any
) -> Variant:
    """Return the variant that a layer's options make.

    Args:
        layer: the layer's name, for messages
        cell: a key of :data:`fused_rnn.cells.CELLS`
        options: those of the layers, by name; what is left out is off

    Raises:
        TypeError: if one is of another type.
        ValueError: if one has a value that means nothing, or the cell has no such option.
    """
    eps = options.pop("norm_eps", 1e-5)
    given = {name: _READ[name](name, value) for name, value in options.items()}
    if given.get("layer_norm"):
        given["layer_norm"] = _positive("norm_eps", eps)
    else:
        given.pop("layer_norm", None)
    found = Variant(cell, **given)
    for name in found.changed:
        if (
            (name in _LSTM and cell != "lstm")
            or (name == "reset_after" and cell != "gru")
            or (name in _GATED and cell not in ("lstm", "gru"))
        ):
            hint = ": its activation is nonlinearity" if name == "activation" else ""
            raise ValueError(f"{layer} has no option {name}{hint}")
    if cell != "lstm" and isinstance(options.get("zoneout"), (tuple, list)):
        raise ValueError(f"zoneout of a {layer}, which has no c, should be one probability")
    if cell != "lstm":
        found = found._replace(zoneout=(found.zoneout[0], 0.0))
    if found.proj_clip is not None and not proj_size:
        raise ValueError("proj_clip clips a projection, and proj_size is 0")
    for size, value in (("hidden_size", hidden_size), ("proj_size", proj_size)):
        if value % found.num_heads:
            raise ValueError(
                f"num_heads should divide {size}, {value}, got: num_heads={found.num_heads}"
            )
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} should be a number, got: {type(value).__name__}")
    return float(value)


def _probability(name: str, value: Any) -> float:
    p = _number(name, value)
    if not 0 <= p < 1:
        raise ValueError(f"{name} should be a probability in [0, 1), got: {p}")
    return p


def _zoneout(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)):
        value = value, value
    if len(value) != 2:
        raise ValueError(f"{name} should be p, or p_h and p_c, got: {len(value)} of them")
    return _probability(name, value[0]), _probability(name, value[1])


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not number > 0 or not isfinite(number):
        raise ValueError(f"{name} should be positive and finite, got: {number}")
    return number


def _clip(name: str, value: Any) -> float | None:
    return value if value is None else _positive(name, value)


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def _activation(name: str, value: Any) -> str:
    if value not in ("tanh", "relu"):
        raise ValueError(f"{name} should be 'tanh' or 'relu', got: {value!r}")
    return str(value)


def _recurrent_activation(name: str, value: Any) -> tuple[str, float, float]:
    if value == "sigmoid":
        return SIGMOID
    if value == "hard_sigmoid":
        return "hard_sigmoid", *_HARD
    if isinstance(value, (tuple, list)) and len(value) == 3 and value[0] == "hard_sigmoid":
        return "hard_sigmoid", _positive(name, value[1]), _number(name, value[2])
    raise ValueError(
        f"{name} should be 'sigmoid', 'hard_sigmoid' or ('hard_sigmoid', alpha, beta), "
        f"got: {value!r}"
    )


def _heads(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} should be an integer, got: {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} should be positive, got: {value}")
    return value


_READ: dict[str, Any] = {
    "recurrent_dropout": _probability,
    "zoneout": _zoneout,
    "layer_norm": _bool,
    "reset_after": _bool,
    "recurrent_activation": _recurrent_activation,
    "activation": _activation,
    "use_peepholes": _bool,
    "input_forget": _bool,
    "cell_clip": _clip,
    "proj_clip": _clip,
    "num_heads": _heads,
}

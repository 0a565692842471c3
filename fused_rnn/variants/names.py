"""What is on in a variant of a cell, and the name that says so."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fused_rnn.cells import CELLS

__all__ = ["SIGMOID", "Variant", "variant_of"]

SIGMOID = "sigmoid", 0.0, 0.0


class Variant(NamedTuple):
    """A cell and its options; by default all are off."""

    cell: str  # a key of cells.CELLS
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)  # of h, of c
    layer_norm: float | None = None  # its eps
    reset_after: bool = True
    # Its alpha and beta, where it is the hard one: alpha x + beta between 0 and 1.
    recurrent_activation: tuple[str, float, float] = SIGMOID
    activation: str = "tanh"
    use_peepholes: bool = False
    input_forget: bool = False
    cell_clip: float | None = None
    proj_clip: float | None = None
    num_heads: int = 1

    @property
    def gates(self) -> int:
        """Return G, the blocks of H rows in the weights."""
        return CELLS[self.cell].gates - self.input_forget

    @property
    def changed(self) -> list[str]:
        """Return the names of the options that are on."""
        return [k for k in self._fields[1:] if getattr(self, k) != self._field_defaults[k]]

    def name(self) -> str:
        """Return what :func:`variant_of` reads; without options the plain cell's name."""
        return ";".join([self.cell, *(f"{k}={_written(getattr(self, k))}" for k in self.changed)])


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return value if isinstance(value, str) else repr(int(value) if value is True else value or 0)


def _numbers(text: str) -> tuple[float, float]:
    first, second = text.split(",")
    return float(first), float(second)


def _activation(text: str) -> tuple[str, float, float]:
    name, alpha, beta = text.split(",")
    return name, float(alpha), float(beta)


_READ: dict[str, Any] = {
    "recurrent_dropout": float,
    "zoneout": _numbers,
    "layer_norm": float,
    "reset_after": lambda text: text != "0",
    "recurrent_activation": _activation,
    "activation": str,
    "use_peepholes": lambda text: text != "0",
    "input_forget": lambda text: text != "0",
    "cell_clip": float,
    "proj_clip": float,
    "num_heads": int,
}


@lru_cache(maxsize=1024)
def _variant_of(name: str) -> Variant | None:
    cell, *options = name.split(";")
    if not options:
        return None
    pairs = (option.split("=") for option in options)
    return Variant(cell, **{key: _READ[key](text) for key, text in pairs})


def variant_of(name: str) -> Variant | None:
    """Return the variant of this name, or None for a plain cell's."""
    return _variant_of(name)


# TorchDynamo calls it while it traces; what backends.transforms has for that stands above.
variant_of._dynamo_marked_constant = True  # type: ignore[attr-defined]

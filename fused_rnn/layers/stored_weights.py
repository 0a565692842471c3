"""How a layer holds int8 or bfloat16 weights: as buffers, in the place of its parameters.

They are ``weight_hh_l0_int8`` with a ``weight_hh_l0_scale``, or ``weight_hh_l0_bfloat16``. No name
is that of a float weight, so that a state_dict of the other kind of layer has keys that are missing
and unexpected, and is not taken for one of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fused_rnn.backends.quantized import Scales, is_narrow, quantize_rows

__all__ = ["DTYPES", "StoredWeights"]

# How weights can be stored, and what a buffer's name ends with then.
DTYPES = {torch.int8: "_int8", torch.bfloat16: "_bfloat16"}
_SCALE = "_scale"


class StoredWeights(nn.RNNBase):
    """A layer whose weights are buffers: made of a float one, and undone, in place."""

    _stored: torch.dtype  # one of DTYPES
    _names: list[tuple[str | None, ...]]  # of each layer and direction, as an op takes them

    def take_weights(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """Put buffers in the place of the layer's parameters, and return these."""
        self._stored = dtype
        floats: dict[str, nn.Parameter] = {}
        for name in self._flat_weights_names:
            weight: Any = self._parameters.pop(name)
            floats[name] = weight
            numbers = weight.detach().float()
            if name.startswith("bias"):
                self.register_buffer(name, numbers.clone())
            elif dtype == torch.int8 and not self._is_narrow(name):
                q, scale = quantize_rows(numbers)
                self.register_buffer(name + DTYPES[dtype], q.to(dtype))
                self.register_buffer(name + _SCALE, scale.squeeze(-1))
            else:
                numbers = numbers.to(torch.bfloat16)
                self.register_buffer(name + DTYPES[numbers.dtype], numbers)
        self._names = [_names_of(names, self._buffers) for names in self._all_weights]
        self._flat_weights = [None] * len(self._flat_weights_names)
        return floats

    def give_weights(self, floats: dict[str, nn.Parameter]) -> None:
        """Undo :meth:`take_weights`."""
        for name in self._flat_weights_names:
            for suffix in ("", *DTYPES.values(), _SCALE):
                self._buffers.pop(name + suffix, None)
        learned = dict(self._parameters)
        self._parameters.clear()
        self._parameters.update(floats)  # first, as before
        self._parameters.update(learned)
        self._init_flat_weights()
        del self._stored, self._names

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        taken = name in own.get("_buffers", ()) and not isinstance(value, nn.Parameter)
        if name in own.get("_flat_weights_names", ()) and not taken:
            raise AttributeError(
                f"{type(self).__name__}: {name} is quantized, and cannot be assigned: see "
                "fused_rnn.dequantize"
            )
        super().__setattr__(name, value)

    def _weights(self) -> list[list[Any]]:
        """Return w_ih, w_hh[, b_ih, b_hh][, w_hr] of each layer and direction, as stored."""
        buffers = self._buffers
        rows = []
        for w_ih, _, w_hh, _, *others, w_hr, _ in self._names:
            names = (w_ih, w_hh, *others, w_hr)
            rows.append([buffers[name] for name in names if name is not None])
        return rows

    def _scales(self) -> list[Scales]:
        buffers = self._buffers
        return [
            Scales(*(None if name is None else buffers[name] for name in (s_ih, s_hh, s_hr)))
            for _, s_ih, _, s_hh, _, _, _, s_hr in self._names
        ]

    def _is_narrow(self, name: str) -> bool:
        """Return whether a weight is of an input for which int8 saves little and loses much."""
        return name.startswith("weight_ih_l0") and is_narrow(
            self.input_size, self.proj_size or self.hidden_size
        )

    def reset_parameters(self) -> None:
        """Raise: there is nothing to begin training with."""
        raise RuntimeError(f"{type(self).__name__}: a quantized layer has no weights to draw anew")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        numbers = {k: b for k, b in self._buffers.items() if b is not None}
        result = super()._apply(fn, recurse)
        for name, before in numbers.items():
            # A model's dtype is that of inputs and states here. Scales and biases are float32.
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return result

    def extra_repr(self) -> str:
        """Return the float layer's, and how the weights are stored."""
        return f"{super().extra_repr()}, weights={str(self._stored).removeprefix('torch.')}"


def _names_of(names: list[str], buffers: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the buffers of w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, w_hr and s_hr, None for none."""
    of = {name.split("_l")[0]: name for name in names}
    found: list[str | None] = []
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
        name = of.get(kind)
        if kind.startswith("bias"):
            found.append(name)
        else:
            stored = [
                f"{name}{suffix}" for suffix in DTYPES.values() if f"{name}{suffix}" in buffers
            ]
            found += stored or [None]
            found.append(f"{name}{_SCALE}" if f"{name}{_SCALE}" in buffers else None)
    return tuple(found)

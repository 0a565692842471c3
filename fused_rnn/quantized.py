"""The layers with int8 or bfloat16 weights, which :func:`fused_rnn.quantize` makes of others."""

from __future__ import annotations

from typing import Any

from torch import nn

from fused_rnn import modules
from fused_rnn.layers.quantized import Quantized

__all__ = ["QUANTIZED", "QuantizedGRU", "QuantizedLSTM", "QuantizedRNN"]


class _Made(Quantized):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__}: a quantized layer is made of a float one: "
            "fused_rnn.quantize(layer)"
        )


class QuantizedLSTM(_Made, modules.LSTM):
    r"""An LSTM for inference whose weights are int8 or bfloat16: see :func:`fused_rnn.quantize`.

    Calls, inputs and outputs are those of :class:`fused_rnn.LSTM`; there are no gradients, and no
    ``gates()``.

    Examples::

        >>> rnn = fused_rnn.quantize(torch.nn.LSTM(10, 20))
        >>> rnn
        QuantizedLSTM(10, 20, weights=int8)
        >>> output, (hn, cn) = rnn(torch.randn(5, 3, 10))
    """


class QuantizedGRU(_Made, modules.GRU):
    r"""A GRU for inference whose weights are int8 or bfloat16: see :func:`fused_rnn.quantize`.

    Calls, inputs and outputs are those of :class:`fused_rnn.GRU`; there are no gradients, and no
    ``gates()``.
    """


class QuantizedRNN(_Made, modules.RNN):
    r"""An RNN for inference whose weights are int8 or bfloat16: see :func:`fused_rnn.quantize`.

    Calls, inputs and outputs are those of :class:`fused_rnn.RNN`; there are no gradients, and no
    ``gates()``.
    """


modules.loaded += [QuantizedLSTM, QuantizedGRU, QuantizedRNN]

# What becomes what.
QUANTIZED: dict[type[nn.Module], type[Quantized]] = {
    nn.LSTM: QuantizedLSTM,
    nn.GRU: QuantizedGRU,
    nn.RNN: QuantizedRNN,
    modules.LSTM: QuantizedLSTM,
    modules.GRU: QuantizedGRU,
    modules.RNN: QuantizedRNN,
}

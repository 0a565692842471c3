"""Give the recurrent layers of a model int8 or bfloat16 weights, and the float ones back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from fused_rnn.backends.quantized import MOST_COLUMNS
from fused_rnn.convert import Report, Swap, is_recurrent, reporter, unparametrized
from fused_rnn.layers.quantized import Quantized
from fused_rnn.layers.stored_weights import DTYPES
from fused_rnn.quantized import QUANTIZED

__all__ = ["dequantize", "quantize"]

# In a quantized layer: what it was, with which parameters, if they were kept.
_FLOAT = "_fused_rnn_float"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Model = TypeVar("Model", bound=nn.Module)


def quantize(
    model: Model,
    *,
    dtype: torch.dtype = torch.int8,
    keep: bool = False,
    report: Report | bool | None = None,
) -> Model:
    r"""Give every recurrent layer of a model int8 or bfloat16 weights, in place.

    For inference on a CPU with few sequences at a time, whose weights are read for each step: they
    are a quarter of the bytes, or half of them. :class:`torch.nn.LSTM`, :class:`~torch.nn.GRU` and
    :class:`~torch.nn.RNN`, and those of :mod:`fused_rnn`, become :class:`~fused_rnn.QuantizedLSTM`,
    :class:`~fused_rnn.QuantizedGRU` and :class:`~fused_rnn.QuantizedRNN`. Each stays the same
    object and takes and returns what it did: packed sequences, lengths, resets, single steps,
    states, half types. It has no parameters but a learned initial state: the weights are buffers,
    which its ``state_dict`` has, and which load into another layer that was quantized.

    With int8 each row of a weight has a scale, the largest magnitude in it divided by 127, and so
    has each row of an input or state when it is multiplied: nothing has to be calibrated. The
    products are summed up in integers, exactly; biases, gates and the cell state are float32. A row
    of an input or state in which there is a NaN or an infinity gives NaN for its sequence, and
    leaves the others alone. An input of at most a quarter of the hidden size is not rounded: its
    weights, which are few, are bfloat16, and what is infinite in it is so to the gates. How much is
    lost depends on the model: compare its results before and after. With bfloat16 the weights are
    half the size, and nothing else is rounded: for where int8 loses too much.

    Left in float are cells, layers of a user's own class or with parametrized weights, and weights
    that are float64 or not finite; a ``report`` says why.

    Args:
        model (torch.nn.Module): the model, or itself a recurrent layer
        dtype (torch.dtype): ``torch.int8`` or ``torch.bfloat16``. Default: ``torch.int8``
        keep (bool): whether the float parameters are kept, in memory and where the layer is pickled
            (the ``state_dict`` has none of them), for :func:`dequantize`. Default: ``False``
        report (Callable or bool, optional): as for :func:`convert`. Default: ``None``

    Returns:
        the same model

    Raises:
        TypeError: if an argument is of another type; nothing has been changed then
        ValueError: if ``dtype`` is another; nothing has been changed then

    Examples::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.LSTM(4, 8))
        >>> model = fused_rnn.quantize(model, report=True)
        1: torch.nn.LSTM became fused_rnn.QuantizedLSTM.
        >>> with torch.no_grad():
        ...     output, state = model(torch.tensor([[1, 2, 3]]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    if not isinstance(keep, bool):
        raise TypeError(f"keep should be of type bool, got: {type(keep).__name__}")
    if dtype not in DTYPES:
        names = " or ".join(map(str, DTYPES))
        raise ValueError(f"dtype should be {names}, got: {dtype}")
    tell = reporter(report)
    swaps = []
    for name, module in model.named_modules():
        if not is_recurrent(module):
            continue
        old, reason = type(module), _reason_to_leave(module)
        if reason is None:
            _quantize(module, dtype, keep)
        swaps.append(Swap(name, old, type(module) if reason is None else None, reason))
    for swap in swaps:
        tell(swap)
    return model


def dequantize(model: Model, *, report: Report | bool | None = None) -> Model:
    r"""Give every layer that :func:`quantize` has changed its float weights back, in place.

    They are the very parameters from before, in their type then, and were kept if ``quantize`` was
    asked to ``keep`` them; a layer without is left quantized.

    Args:
        model (torch.nn.Module): the model, or itself a recurrent layer
        report (Callable or bool, optional): as for :func:`convert`. Default: ``None``

    Returns:
        the same model

    Raises:
        TypeError: if an argument is of another type; nothing has been changed then

    Examples::

        >>> model = fused_rnn.quantize(nn.GRU(4, 8), keep=True)
        >>> type(fused_rnn.dequantize(model)) is nn.GRU
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    tell = reporter(report)
    swaps = []
    for name, module in model.named_modules():
        if not isinstance(module, Quantized):
            continue
        old, kept = type(module), vars(module).get(_FLOAT)
        if kept is None:
            reason = "its float weights were not kept: that is quantize(model, keep=True)"
            swaps.append(Swap(name, old, None, reason))
            continue
        _dequantize(module, *kept)
        swaps.append(Swap(name, old, type(module), None))
    for swap in swaps:
        tell(swap)
    return model


def _reason_to_leave(module: nn.Module) -> str | None:
    """Return None, or why a recurrent module stays as it is."""
    cls = type(module)
    if cls in QUANTIZED.values():
        return "it is quantized already"
    if isinstance(module, (nn.LSTMCell, nn.GRUCell, nn.RNNCell)):
        return "it is a cell, and layers alone are quantized"
    if unparametrized(cls) is not cls:
        return (
            "its weights are parametrized: torch.nn.utils.parametrize.remove_parametrizations "
            "comes first"
        )
    if cls not in QUANTIZED:
        return "it is a class of its own, whose code a swap would lose"
    if "forward" in vars(module):
        return "its forward was replaced on the instance and would go on running the old code"
    names: Any = module._flat_weights_names
    for weight in map(module._parameters.get, names):
        if weight is None or weight.is_meta:
            return "its weights are not all plain parameters that have values"
        if weight.dtype not in _FLOATS:
            return f"its weights are {weight.dtype}, and int8 layers reckon in float32"
        if not weight.isfinite().all():
            return "a weight of it is not finite"
        if weight.dim() == 2 and weight.shape[1] > MOST_COLUMNS:
            return f"it has {weight.shape[1]} inputs, of which sums of 32 bits take {MOST_COLUMNS}"
    return None


def _quantize(module: Any, dtype: torch.dtype, keep: bool) -> None:
    old = type(module)
    module.__class__ = QUANTIZED[old]
    floats = module.take_weights(dtype)
    # Of training alone.
    recompute = vars(module).pop("recompute", None)
    if keep:
        vars(module)[_FLOAT] = old, floats, recompute


def _dequantize(
    module: Any,
    old: type[nn.Module],
    floats: dict[str, nn.Parameter],
    recompute: bool | None,
) -> None:
    device = next(module.buffers()).device
    for parameter in floats.values():
        parameter.data = parameter.data.to(device)
    del vars(module)[_FLOAT]  # once there is memory for all
    module.give_weights(floats)
    if recompute is not None:
        vars(module)["recompute"] = recompute
    module.__class__ = old

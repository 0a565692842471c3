"""Swap the recurrent layers of an existing model for those of fused_rnn, and back.

A layer is swapped by assigning its ``__class__``. The object itself stays, and with it all that
hangs on it or points to it: its parameters (and so an optimizer made before), hooks, mode, and
every place of the model that shares it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from fused_rnn import modules
from fused_rnn.quantized import QUANTIZED

Table = dict[type[nn.Module], type[nn.Module]]
_FUSED: Table = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
    nn.RNNCell: modules.RNNCell,
}
_TORCH = {fused: torchs for torchs, fused in _FUSED.items()}
_SHOWN = {cls: f"torch.nn.{cls.__name__}" for cls in _FUSED} | {
    cls: f"fused_rnn.{cls.__name__}" for cls in (*_TORCH, *QUANTIZED.values())
}
_NAMES = frozenset(cls.__name__ for cls in _FUSED)
_ORIGIN = "_fused_rnn_origin"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Swap:
    """What became of one recurrent module.

    Attributes:
        name: the module's name in ``model.named_modules()``; empty for the model itself
        old: its class before
        new: its class now, or ``None`` where the module was left alone
        reason: why it was left alone, or ``None`` where it was swapped
    """

    name: str
    old: type[nn.Module]
    new: type[nn.Module] | None
    reason: str | None

    def __str__(self) -> str:
        name = self.name or "the model itself"
        if self.new is None:
            return f"{name}: {_shown(self.old)} was left alone: {self.reason}."
        return f"{name}: {_shown(self.old)} became {_shown(self.new)}."


Report = Callable[[Swap], object]


def convert(model: Model, *, report: Report | bool | None = None) -> Model:
    r"""Replace every recurrent layer and cell of a model by its fused counterpart, in place.

    Layers of exactly the types :class:`torch.nn.LSTM`, :class:`~torch.nn.GRU`,
    :class:`~torch.nn.RNN`, :class:`~torch.nn.LSTMCell`, :class:`~torch.nn.GRUCell` and
    :class:`~torch.nn.RNNCell` are swapped, with or without parametrizations. Each stays the same
    object with the same Parameters, so that optimizers, hooks, tied modules, mode, device, dtype
    and state_dict are as before. Left alone are a user's own subclass, a layer whose ``forward``
    was replaced on the instance, and scripted or quantized layers. Only what ``model.modules()``
    lists is seen. Converting twice does no harm.

    ``isinstance(layer, torch.nn.LSTM)`` holds before and after. What no report can know is who asks
    for the exact ``type(layer)``: such tools, :func:`torch.ao.quantization.quantize_dynamic` for
    one, want the model reverted first.

    Args:
        model (torch.nn.Module): the model, or itself a recurrent layer
        report (Callable or bool, optional): called once for each recurrent module with a
            :class:`~fused_rnn.convert.Swap` (``name``, ``old``, ``new``, ``reason``) whose
            ``str()`` is a sentence, such as ``some_list.append``; ``True`` prints them.
            Default: ``None``

    Returns:
        the same model

    Raises:
        TypeError: if :attr:`model` is not a :class:`torch.nn.Module`, or ``report`` neither a
            function nor a bool; nothing has been changed then

    Examples::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.LSTM(4, 8))
        >>> model = fused_rnn.convert(model, report=True)
        1: torch.nn.LSTM became fused_rnn.LSTM.
    """
    return _swap(model, _FUSED, report)


def revert(model: Model, *, report: Report | bool | None = None) -> Model:
    r"""Replace every fused recurrent layer and cell of a model by :mod:`torch.nn`'s, in place.

    Undo :func:`convert` exactly: all types, including those that parametrizations made, are the
    ones from before. Layers that were built from :mod:`fused_rnn` to begin with become
    :mod:`torch.nn`'s as well, so that the model can be pickled for a machine that has only torch.
    Left alone are those with a learned initial state and those with options that make a variant of
    the cell (``layer_norm``, say), which :mod:`torch.nn` has not.

    Args:
        model (torch.nn.Module): the model, or itself a recurrent layer
        report (Callable or bool, optional): as for :func:`convert`. Default: ``None``

    Returns:
        the same model

    Raises:
        TypeError: if :attr:`model` is not a :class:`torch.nn.Module`, or ``report`` neither a
            function nor a bool; nothing has been changed then

    Examples::

        >>> model = fused_rnn.convert(nn.GRU(4, 8))
        >>> type(fused_rnn.revert(model)) is nn.GRU
        True
    """
    return _swap(model, _TORCH, report)


def _swap(
    model: Model,
    table: Table,
    report: Report | bool | None,
) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got: {type(model).__name__}")
    tell = reporter(report)
    swaps = []
    for name, module in model.named_modules():
        if not is_recurrent(module):
            continue
        old = type(module)
        reason = reason_to_leave(module, table)
        if reason is None:
            module.__class__ = _counterpart(old, table)
        swaps.append(Swap(name, old, type(module) if reason is None else None, reason))
    # Only now, so that a report that raises can't leave a model half swapped.
    for swap in swaps:
        tell(swap)
    return model


def reporter(report: Report | bool | None) -> Report:
    """Return the function that a caller wants to be told by, one that does nothing if none.

    Raises:
        TypeError: if it is neither a function nor a bool.
    """
    if report is True:
        return print
    if report is None or report is False:
        return lambda _: None
    if not callable(report):
        raise TypeError(f"report should be a function or True, got: {type(report).__name__}")
    return report


def is_recurrent(module: nn.Module) -> bool:
    """Tell whether a module is a recurrent layer or cell of torch.nn's family, swappable or not."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return True
    # torch's scripted, traced and quantized layers share only their name with the originals.
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", None) in _NAMES
    return _is_quantized(type(module)) and type(module).__name__ in _NAMES


def _is_quantized(cls: type) -> bool:
    return cls.__module__.startswith("torch.ao.nn.")


def reason_to_leave(module: nn.Module, table: Table = _FUSED) -> str | None:
    """Return None, or why a swap by ``table`` leaves a recurrent module alone."""
    cls = type(module)
    base = unparametrized(cls)
    if base in table.values():
        return f"it is of {_package(base)} already"
    if base in QUANTIZED.values():
        return "it is quantized, and fused_rnn.dequantize comes first"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript, which has fixed its code"
    if _is_quantized(cls):
        return "it is quantized, and fused_rnn has no kernels for that"
    if base not in table:
        return "it is a class of its own, whose code a swap would lose"
    if table is _TORCH and getattr(module, "learn_initial_state", False):
        return "torch.nn has no learned initial state"
    if table is _TORCH and getattr(module, "_variants", None) is not None:
        return f"torch.nn has no {module._lacking()}"  # type: ignore[operator]
    if "forward" in vars(module):
        return "its forward was replaced on the instance and would go on running the old code"
    return None


def _package(cls: type) -> str:
    return _SHOWN[cls].rpartition(".")[0]


def unparametrized(cls: type) -> type:
    """Return the class that parametrizations derived ``cls`` from, or ``cls`` itself."""
    return cls.__bases__[0] if cls.__module__ == parametrize.__name__ else cls


def _counterpart(cls: type, table: Table) -> type:
    """Return what ``cls`` is to become; parametrizations' class is made anew on the other base."""
    base = unparametrized(cls)
    if base is cls:
        return table[cls]
    origin = vars(cls).get(_ORIGIN)
    # Parametrizations added or removed since leave the origin behind.
    if origin is not None and _properties(origin) == _properties(cls):
        return origin
    namespace = {
        name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    return type(cls.__name__, (table[base],), namespace | {_ORIGIN: cls})


def _properties(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if isinstance(value, property)}


def _shown(cls: type) -> str:
    base = unparametrized(cls)
    name = _SHOWN.get(base, f"{base.__module__}.{base.__qualname__}")
    return name if base is cls else f"{name} (parametrized)"

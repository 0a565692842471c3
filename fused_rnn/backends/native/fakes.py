"""What the native ops return, for torch's tracers: sizes, dtypes and devices, nothing computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["register", "register_quantized", "register_step"]


def register(name: str) -> None:
    """Tell torch what the two ops of a name return, ``<name>_forward`` and ``<name>_backward``."""
    forward, backward = _SHAPES.get(name.partition("::")[2], (_simple_forward, _simple_backward))
    torch.library.register_fake(f"{name}_forward", forward)
    torch.library.register_fake(f"{name}_backward", backward)


def register_step(op: str) -> None:
    """Tell torch what an op of a single step returns: the states."""
    torch.library.register_fake(op, _lstm_step if op.endswith("lstm_step") else _simple_step)


def register_quantized() -> None:
    """Tell torch what the op of layers with int8 or bfloat16 weights returns."""
    torch.library.register_fake("fused_rnn::quantized_forward", _quantized_forward)


def _quantized_forward(cell: str, *args: Any) -> tuple[Tensor, ...]:
    _check_devices(*args)
    x, h0, c0 = args[:3]
    every_c = args[-1] and c0 is not None
    return (
        x.new_empty((*x.shape[:-1], h0.shape[-1])),
        h0.new_empty(h0.shape),
        x.new_empty(0 if c0 is None else c0.shape),
        x.new_empty((*x.shape[:-1], c0.shape[-1]) if every_c else 0),
    )


def _lstm_step(*args: Any) -> tuple[Tensor, Tensor]:
    _check_devices(*args)
    return args[1].new_empty(args[1].shape), args[2].new_empty(args[2].shape)


def _simple_step(*args: Any) -> Tensor:
    _check_devices(*args)
    return args[1].new_empty(args[1].shape)


def _check_devices(*args: Any) -> None:
    """Refuse what a kernel would: a single operand on the meta device brings a call here."""
    device = args[0].device
    for t in args:
        # batch_sizes, the only integers, stand on the CPU.
        if isinstance(t, Tensor) and t.device != device and t.dtype != torch.int64:
            raise RuntimeError(
                f"fused_rnn: all operands should be on the device of x, {device}, got {t.device}"
            )


def _lstm_forward(*args: Any) -> tuple[Tensor, ...]:
    operands, training = args[:9], args[10]
    every_c = len(args) > 11 and args[11]  # tracers leave a default away
    y, h_n, saved = _forward(*operands, training)
    c0 = operands[2]
    c = c0.new_empty((*y.shape[:-1], c0.shape[-1]) if every_c else 0)
    return y, h_n, c0.new_empty(c0.shape), c, saved


def _simple_forward(*args: Any) -> tuple[Tensor, ...]:
    return _forward(*args[:-2], args[-1])


def _forward(*args: Any) -> tuple[Tensor, ...]:
    operands, training = args[:-1], args[-1]
    _check_devices(*operands)
    x, h0 = operands[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # How much is saved is the kernel's own affair: a size only it knows, seen as such by tracers.
    saved = x.new_empty(torch.library.get_ctx().new_dynamic_size() if training else 0, dtype=dtype)
    return x.new_empty((*x.shape[:-1], h0.shape[-1])), h0.new_empty(h0.shape), saved


def _lstm_backward(*args: Any) -> tuple[Tensor, ...]:
    return _backward(args[:8], args[15], *args)


def _simple_backward(*args: Any) -> tuple[Tensor, ...]:
    return _backward(args[:6], args[-1], *args)


def _backward(operands: tuple[Tensor | None, ...], mask: int, *args: Any) -> tuple[Tensor, ...]:
    _check_devices(*args)
    return tuple(
        t.new_empty(t.shape) if t is not None and mask >> bit & 1 else args[0].new_empty(0)
        for bit, t in enumerate(operands)
    )


def _both_forward(cell: str, *args: Any) -> tuple[Tensor, ...]:
    operands, training = args[:13], args[14]
    _check_devices(*operands)
    directions = operands[:7], (operands[0], *operands[7:])
    return tuple(
        t
        for x, h0, c0, *weights in directions
        for y, h_n, saved in [_forward(x, h0, c0, *weights, training)]
        for t in (y, h_n, x.new_empty(0 if c0 is None else c0.shape), saved)
    )


def _both_backward(cell: str, *args: Any) -> tuple[Tensor, ...]:
    return _backward(args[:13], args[-1], *args)


def _marked_forward(*args: Any) -> tuple[Tensor, ...]:
    cell, x, h0, c0, _, w_hh = args[:6]
    _, training, every_c = args[11:]
    _check_devices(*args[1:11])
    n, h = h0.shape
    per_row = w_hh.shape[0] + (h if cell in ("lstm", "gru") else 0)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.new_empty((*x.shape[:2], h))
    saved = x.new_empty(x.shape[0] * n * per_row if training else 0, dtype=dtype)
    c = x.new_empty(y.shape if every_c else 0)
    return y, h0.new_empty((n, h)), x.new_empty(0 if c0 is None else (n, h)), c, saved


def _marked_backward(*args: Any) -> tuple[Tensor, ...]:
    _check_devices(*args[1:])
    x, mask = args[1], args[-1]
    operands = (*args[1:8], *args[9:11])  # without the marks
    return tuple(
        x.new_empty(t.shape if t is not None and mask >> bit & 1 else 0)
        for bit, t in enumerate(operands)
    )


# Of all but the cells that are alike.
_SHAPES = {
    "lstm": (_lstm_forward, _lstm_backward),
    "bidirectional": (_both_forward, _both_backward),
    "marked": (_marked_forward, _marked_backward),
}

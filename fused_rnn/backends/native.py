"""The compiled kernels: C++ on the CPU, CUDA C++ on the GPU, chosen by PyTorch's dispatcher.

They stand in two modules: ``_C`` has the ops and what runs on the CPU; ``_C_cuda`` adds what runs
on a GPU, and is loaded only into a torch that is built for CUDA.
"""

from __future__ import annotations

import os
from importlib import import_module, util
from math import prod
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Inputs, Problem
from fused_rnn.cells import CELLS

try:
    import fused_rnn._C  # noqa: F401 (loading it registers the ops)

    _missing: str | None = None
except ImportError as error:
    _missing = f"the native module was not built ({error}); install fused_rnn with a C++17 compiler"

__all__ = [
    "available",
    "backward",
    "check_devices",
    "checks_operands",
    "cuda_missing",
    "forward",
    "name",
    "plan",
    "raise_out_of_memory",
    "saved",
    "scan_states",
    "simd_level",
    "supports",
]

name = "native"
checks_operands = True

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OLDEST_GPU = (7, 5)
_FORWARD: dict[str, Any] = {}
_BACKWARD: dict[str, Any] = {}


def available() -> str | None:
    """Return None, or why the native module is not there."""
    return _missing


def cuda_missing() -> str | None:
    """Return None, or why there are no kernels for CUDA devices, and what to do about it."""
    return _missing or _cuda_missing


def simd_level() -> str:
    """Return the vector instructions in use: 'avx512', 'avx2' or 'portable'."""
    return torch.ops.fused_rnn.simd_level()


def plan(problem: Problem) -> str | None:
    """Return how the steps of a scan lie on a GPU, in words; None on other devices."""
    if problem.device.type != "cuda" or cuda_missing() is not None:
        return None
    if problem.marked:
        return "step by step: no persistent kernel reads lengths and resets on the device"
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    _tell_tf32(like)
    sizes = (problem.T, problem.N, problem.H, problem.P)
    forward, backward = (
        torch.ops.fused_rnn.persistent_plan(like, problem.cell, *sizes, backward, problem.training)
        for backward in (False, True)
    )
    if problem.states and problem.cell == "lstm":
        # A persistent inference keeps the last c alone, and no backward takes the others' gradient.
        if not problem.training and forward.startswith("persistent"):
            return "step by step: no persistent kernel keeps every step's c in inference"
        if backward.startswith("persistent"):
            backward += "; step by step where every step's c has a gradient"
    if not problem.training or forward == backward:
        return forward
    return f"forward {forward}; backward {backward}"


def _tell_tf32(x: Tensor) -> None:
    """Tell persistent kernels what torch allows its matrix products, which C++ cannot ask."""
    if x.is_cuda and x.dtype is torch.float32 and os.environ.get("FUSED_RNN_PERSISTENT") == "1":
        torch.ops.fused_rnn.persistent_tf32(torch.backends.cuda.matmul.fp32_precision == "tf32")


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this problem."""
    if problem.device.type not in ("cpu", "cuda"):
        return f"no kernel for device type {problem.device.type!r}"
    if problem.dtype not in _DTYPES:
        return f"no kernel for {problem.dtype}"
    if problem.transform is not None:
        return f"{problem.transform} needs torch's own operators"
    return _refused_gpu(problem.device) if problem.device.type == "cuda" else None


def _refused_gpu(device: torch.device) -> str | None:
    reason = cuda_missing()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        return "no kernel for sm_{}{}: the oldest is sm_{}{}".format(*capability, *_OLDEST_GPU)
    return None


def forward(
    cell: str, inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """See :meth:`fused_rnn.backends.Backend.forward`."""
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    if cell == "lstm":
        return _lstm_forward(inputs, batch_sizes, reverse, training, False)[:4]
    _tell_tf32(x)
    try:
        y, h_n, saved = _FORWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, training
        )
    except RuntimeError as error:
        raise_out_of_memory(error, x.device)
        raise
    return y, h_n, None, (saved,)


def scan_states(
    cell: str, inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Do as :func:`forward` for an LSTM, and return every step's c (T, N, H) | (rows, H) too."""
    return _lstm_forward(inputs, batch_sizes, reverse, training, True)


def _lstm_forward(
    inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool, every_c: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    _tell_tf32(inputs.x)
    try:
        y, h_n, c_n, c, saved = _FORWARD["lstm"](*inputs, batch_sizes, reverse, training, every_c)
    except RuntimeError as error:
        raise_out_of_memory(error, inputs.x.device)
        raise
    return y, h_n, c_n, (saved,), c


def saved(cell: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """See :meth:`fused_rnn.backends.Backend.saved`."""
    x, gates = inputs.x, CELLS[cell].gates
    h = int(inputs.w_hh.shape[0] // gates)  # the widths of a graph are fixed
    if x.device.type == "cuda":
        per_row = gates * h + (h if gates > 1 else 0)
    else:
        per_row = torch.ops.fused_rnn.saved_per_row(cell, x.dtype, h)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.new_empty(prod(x.shape[:-1]) * per_row, dtype=dtype),)


def backward(
    cell: str,
    inputs: Inputs,
    batch_sizes: Tensor | None,
    reverse: bool,
    y: Tensor,
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
    dc: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """See :meth:`fused_rnn.backends.Backend.backward`; dc: of every step's c."""
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    needed = needs if cell == "lstm" else (*needs[:2], *needs[3:7])
    mask = sum(need << bit for bit, need in enumerate(needed))
    _tell_tf32(x)
    try:
        if cell == "lstm":
            given = _BACKWARD[cell](
                *inputs, batch_sizes, reverse, y, *saved, dy, dh_n, dc_n, mask, dc
            )
            return tuple(d if need else None for d, need in zip(given, needs, strict=True))
        given = _BACKWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, y, *saved, dy, dh_n, mask
        )
    except RuntimeError as error:
        raise_out_of_memory(error, x.device)
        raise
    dx, dh0, *dweights = (d if need else None for d, need in zip(given, needed, strict=True))
    return dx, dh0, None, *dweights, None


def raise_out_of_memory(error: RuntimeError, device: torch.device) -> None:
    """Raise what torch would have raised where there was no room for a result.

    The stable ABI tells which call failed, but not why; making an empty tensor has one reason.
    """
    if "aoti_torch_empty_strided" not in str(error):
        return
    message = "out of memory: there is no room for a result or for what backward needs"
    if device.type == "cuda":
        raise torch.OutOfMemoryError(f"CUDA {message} on {device}") from error
    raise RuntimeError(f"fused_rnn: {message}") from error


def _register() -> None:
    """Find the ops, and tell torch's tracers the shapes they return."""
    ops = torch.ops.fused_rnn
    for cell in CELLS:
        _FORWARD[cell] = getattr(ops, f"{cell}_forward").default
        _BACKWARD[cell] = getattr(ops, f"{cell}_backward").default
        lstm = cell == "lstm"
        forward_shapes = _fake_lstm_forward if lstm else _fake_simple_forward
        backward_shapes = _fake_lstm_backward if lstm else _fake_simple_backward
        torch.library.register_fake(f"fused_rnn::{cell}_forward", forward_shapes)
        torch.library.register_fake(f"fused_rnn::{cell}_backward", backward_shapes)


def check_devices(*args: Any) -> None:
    """Refuse what a kernel would: a single operand on the meta device brings a call here."""
    device = args[0].device
    for t in args:
        # batch_sizes, the only integers, stand on the CPU.
        if isinstance(t, Tensor) and t.device != device and t.dtype != torch.int64:
            raise RuntimeError(
                f"fused_rnn: all operands should be on the device of x, {device}, got {t.device}"
            )


def _fake_lstm_forward(*args: Any) -> tuple[Tensor, ...]:
    operands, training = args[:9], args[10]
    every_c = len(args) > 11 and args[11]  # tracers leave a default away
    y, h_n, saved = _fake_forward(*operands, training)
    c0 = operands[2]
    c = c0.new_empty((*y.shape[:-1], c0.shape[-1]) if every_c else 0)
    return y, h_n, c0.new_empty(c0.shape), c, saved


def _fake_simple_forward(*args: Any) -> tuple[Tensor, ...]:
    return _fake_forward(*args[:-2], args[-1])


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    operands, training = args[:-1], args[-1]
    check_devices(*operands)
    x, h0 = operands[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # How much is saved is the kernel's own affair: a size only it knows, seen as such by tracers.
    saved = x.new_empty(torch.library.get_ctx().new_dynamic_size() if training else 0, dtype=dtype)
    return x.new_empty((*x.shape[:-1], h0.shape[-1])), h0.new_empty(h0.shape), saved


def _fake_lstm_backward(*args: Any) -> tuple[Tensor, ...]:
    return _fake_backward(args[:8], args[15], *args)


def _fake_simple_backward(*args: Any) -> tuple[Tensor, ...]:
    return _fake_backward(args[:6], args[-1], *args)


def _fake_backward(
    operands: tuple[Tensor | None, ...], mask: int, *args: Any
) -> tuple[Tensor, ...]:
    check_devices(*args)
    return tuple(
        t.new_empty(t.shape) if t is not None and mask >> bit & 1 else args[0].new_empty(0)
        for bit, t in enumerate(operands)
    )


def _load_cuda() -> str | None:
    """Load the kernels for CUDA devices; return None, or why they are not there."""
    if torch.version.cuda is None:
        if torch.version.hip is not None:
            return f"this torch ({torch.__version__}) is built for ROCm, the kernels for CUDA"
        return f"this torch ({torch.__version__}) is a CPU build; install one built for CUDA"
    if util.find_spec("fused_rnn._C_cuda") is None:
        return (
            "the CUDA module was not built: run `make cuda` in the source tree, or install "
            "fused_rnn again with nvcc at hand"
        )
    try:
        import_module("fused_rnn._C_cuda")  # registers the ops' CUDA kernels
    except ImportError as error:
        return f"the CUDA module cannot be loaded ({error}); build it again with `make cuda`"
    return None


_cuda_missing: str | None = None
if _missing is None:
    _register()
    _cuda_missing = _load_cuda()

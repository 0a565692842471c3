"""The compiled kernels: C++ on the CPU, CUDA C++ on the GPU, chosen by PyTorch's dispatcher.

They stand in two modules: ``_C`` has the ops and what runs on the CPU; ``_C_cuda`` adds what runs
on a GPU, and is loaded only into a torch that is built for CUDA.
"""

from __future__ import annotations

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
    "checks_operands",
    "cuda_missing",
    "forward",
    "name",
    "saved",
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


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this problem."""
    if problem.device.type not in ("cpu", "cuda"):
        return f"no kernel for device type {problem.device.type!r}"
    if problem.dtype not in _DTYPES:
        return f"no kernel for {problem.dtype}"
    if problem.transform is not None:
        return f"{problem.transform} needs torch's own operators"
    if problem.states and CELLS[problem.cell].has_cell_state:
        return "it keeps the cell states of the steps in between to itself"
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
    try:
        if cell == "lstm":
            y, h_n, c_n, saved = _FORWARD[cell](*inputs, batch_sizes, reverse, training)
            return y, h_n, c_n, (saved,)
        y, h_n, saved = _FORWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, training
        )
    except RuntimeError as error:
        _raise_out_of_memory(error, x.device)
        raise
    return y, h_n, None, (saved,)


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
) -> tuple[Tensor | None, ...]:
    """See :meth:`fused_rnn.backends.Backend.backward`."""
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    needed = needs if cell == "lstm" else (*needs[:2], *needs[3:7])
    mask = sum(need << bit for bit, need in enumerate(needed))
    try:
        if cell == "lstm":
            given = _BACKWARD[cell](*inputs, batch_sizes, reverse, y, *saved, dy, dh_n, dc_n, mask)
            return tuple(d if need else None for d, need in zip(given, needs, strict=True))
        given = _BACKWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, y, *saved, dy, dh_n, mask
        )
    except RuntimeError as error:
        _raise_out_of_memory(error, x.device)
        raise
    dx, dh0, *dweights = (d if need else None for d, need in zip(given, needed, strict=True))
    return dx, dh0, None, *dweights, None


def _raise_out_of_memory(error: RuntimeError, device: torch.device) -> None:
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
        torch.library.register_fake(f"fused_rnn::{cell}_forward", _fake_forward)
        torch.library.register_fake(f"fused_rnn::{cell}_backward", _fake_backward)


def _check_devices(*args: Any) -> None:
    """Refuse what a kernel would: a single operand on the meta device brings a call here."""
    device = args[0].device
    for t in args:
        # batch_sizes, the only integers, stand on the CPU.
        if isinstance(t, Tensor) and t.device != device and t.dtype != torch.int64:
            raise RuntimeError(
                f"fused_rnn: all operands should be on the device of x, {device}, got {t.device}"
            )


def _fake_forward(x: Tensor, h0: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _check_devices(x, h0, *others)
    training = others[-1]
    c_n = (others[0].new_empty(others[0].shape),) if len(others) > 7 else ()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # How much is saved is the kernel's own affair: a size only it knows, seen as such by tracers.
    saved = x.new_empty(torch.library.get_ctx().new_dynamic_size() if training else 0, dtype=dtype)
    return (
        x.new_empty((*x.shape[:-1], h0.shape[-1])),
        h0.new_empty(h0.shape),
        *c_n,
        saved,
    )


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    _check_devices(*args)
    mask = args[-1]
    operands = args[:8] if len(args) == 16 else args[:6]
    return tuple(
        t.new_empty(t.shape) if t is not None and mask >> bit & 1 else operands[0].new_empty(0)
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

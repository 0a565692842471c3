"""The compiled kernels: C++ on the CPU, CUDA C++ on the GPU, chosen by PyTorch's dispatcher.

They stand in two modules: ``_C`` has the ops and what runs on the CPU; ``_C_cuda`` adds what runs
on a GPU, and is loaded only into a torch that is built for CUDA.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module, util
from math import prod
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import transforms
from fused_rnn.backends.base import AnyInputs, Inputs, Problem, VariantInputs
from fused_rnn.backends.native import fakes, marked, persistent, variants
from fused_rnn.backends.native.device import facts
from fused_rnn.backends.native.errors import raise_out_of_memory
from fused_rnn.backends.native.marked import marked_backward, marked_forward
from fused_rnn.backends.native.persistent import tell_tf32
from fused_rnn.backends.native.planned import Way, names
from fused_rnn.cells import CELLS

try:
    import fused_rnn._C  # noqa: F401 (loading it registers the ops)

    _missing: str | None = None
except ImportError as error:
    _missing = f"the native module was not built ({error}); install fused_rnn with a C++17 compiler"

__all__ = [
    "available",
    "backward",
    "backward_both",
    "checks_operands",
    "cuda_missing",
    "facts",
    "forward",
    "forward_both",
    "marked_backward",
    "marked_forward",
    "name",
    "plan",
    "quantized_forward",
    "quantized_missing",
    "quantized_step",
    "saved",
    "scan_states",
    "simd_level",
    "step",
    "supports",
    "takes_both",
    "takes_marks",
    "way",
    "ways",
]

name = "native"
checks_operands = True

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OLDEST_GPU = (7, 5)
# Of the ops, beside the names of the cells: both directions at once, any cell, on GPUs only.
_BOTH = "bidirectional"
_QUANTIZED = "quantized"
_FORWARD: dict[str, Any] = {}
_BACKWARD: dict[str, Any] = {}
_STEP: dict[str, Any] = {}


def available() -> str | None:
    """Return None, or why the native module is not there."""
    return _missing


def cuda_missing() -> str | None:
    """Return None, or why there are no kernels for CUDA devices, and what to do about it."""
    return _missing or _cuda_missing


def simd_level() -> str:
    """Return the vector instructions in use: 'amx', 'avx512', 'avx2' or 'portable'."""
    return torch.ops.fused_rnn.simd_level()


def plan(problem: Problem, together: bool = False, regardless: bool = False) -> str | None:
    """Return how a scan runs, in words: on a GPU how its steps lie there, on a CPU the SIMD level.

    None where no kernel runs. What tile registers cannot carry (infinities, numbers that are tiny
    throughout) runs on the level below theirs, which is not known before.

    Args:
        problem: of one direction
        together: whether the other direction may be scanned along with it
        regardless: whether to say what a plan would be where persistent kernels are not wanted
    """
    if problem.device.type == "cpu" and available() is None:
        if problem.stored is not None:
            level = torch.ops.fused_rnn.quantized_level(problem.stored)
            stored = filter(None, (problem.stored_ih, problem.stored))
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in stored)
            return f"{level}, {names} weights"
        return _level_for(problem)
    if problem.device.type != "cuda" or cuda_missing() is not None:
        return None
    if problem.marked:
        return "step by step: no persistent kernel reads lengths and resets on the device"
    return persistent.words(problem, together, regardless)


def ways(problem: Problem, seconds: dict[str, float]) -> list[str]:
    """See :meth:`fused_rnn.backends.Backend.ways`: on a GPU step by step, or plan by plan."""
    return names(problem, seconds) if problem.device.type == "cuda" else []


def way(name: str) -> Way:
    """See :meth:`fused_rnn.backends.Backend.way`."""
    return Way(sys.modules[__name__], name)


def _level_for(problem: Problem) -> str:
    """Return the SIMD level of a problem on the CPU, or those that it may be by its lengths."""
    if problem.cell not in CELLS:
        return simd_level().replace("amx", "avx512")  # variants have no kernels on tiles
    dense, dtype = (problem.T, problem.N), problem.dtype
    fewest = (problem.T, 1) if problem.ragged else dense  # rows: at each step one sequence
    levels = (
        torch.ops.fused_rnn.simd_level_of(problem.cell, dtype, *sizes, problem.H, problem.P)
        for sizes in (dense, fewest)
    )
    return " or ".join(dict.fromkeys(levels))


def supports(problem: Problem) -> str | None:
    """Return None, or why no kernel takes this problem."""
    if problem.device.type not in ("cpu", "cuda"):
        return f"no kernel for device type {problem.device.type!r}"
    if problem.dtype not in _DTYPES:
        return f"no kernel for {problem.dtype}"
    if problem.transform not in (None, transforms.COUNTING):
        return f"{problem.transform} needs torch's own operators"
    if problem.cell not in CELLS:
        return variants.supports(problem)
    return _refused_gpu(problem.device) if problem.device.type == "cuda" else None


def quantized_missing(problem: Problem) -> str | None:
    """Return None, or why no kernel takes a problem whose weights are int8 or bfloat16."""
    if _missing is not None:
        return _missing
    if problem.device.type != "cpu":
        return f"no kernel for {problem.stored} weights on device type {problem.device.type!r}"
    if problem.transform not in (None, transforms.AUTOCAST, transforms.COUNTING):
        return f"{problem.transform} needs torch's own operators"
    return None


def quantized_forward(
    cell: str,
    inputs: Inputs,
    scales: tuple[Tensor | None, Tensor | None, Tensor | None],
    batch_sizes: Tensor | None,
    reverse: bool,
    every_c: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Scan one layer with int8 or bfloat16 weights; return y, h_n, c_n and every step's c."""
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = inputs
    s_ih, s_hh, s_hr = scales
    y, h_n, c_n, c = _FORWARD[_QUANTIZED](
        cell, x, h0, c0, w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, w_hr, s_hr, batch_sizes, reverse,
        every_c,
    )  # fmt: skip
    return y, h_n, None if c0 is None else c_n, c if every_c else None


def quantized_step(
    cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`quantized_forward` without a choice, with weights as the op takes them."""
    y, h_n, c_n, _ = _FORWARD[_QUANTIZED](cell, x, h0, c0, *weights, None, False, False)
    return y, h_n, c_n


def _refused_gpu(device: torch.device) -> str | None:
    reason = cuda_missing()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        return "no kernel for sm_{}{}: the oldest is sm_{}{}".format(*capability, *_OLDEST_GPU)
    if facts(device).capability == 0:
        major, minor = capability
        return (
            f"this build has no kernels for sm_{major}{minor}: "
            f"TORCH_CUDA_ARCH_LIST={major}.{minor} make cuda makes them"
        )
    return None


def forward(
    cell: str, inputs: AnyInputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """See :meth:`fused_rnn.backends.Backend.forward`."""
    if isinstance(inputs, VariantInputs):
        return variants.forward(cell, inputs, batch_sizes, reverse, training)[:4]
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    if cell == "lstm":
        return _lstm_forward(inputs, batch_sizes, reverse, training, False)[:4]
    tell_tf32(x)
    try:
        y, h_n, saved = _FORWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, training
        )
    except RuntimeError as error:
        raise_out_of_memory(error, x.device)
        raise
    return y, h_n, None, (saved,)


def step(
    cell: str, x: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """See :meth:`fused_rnn.backends.Backend.step`."""
    if not x.is_cpu:
        _, h_n, c_n, _ = forward(cell, Inputs(x, h, c, *weights, None), None, False, False)
        return h_n, c_n
    try:
        if cell == "lstm":
            return _STEP[cell](x, h, c, *weights)
        return _STEP[cell](x, h, *weights), None
    except RuntimeError as error:
        raise_out_of_memory(error, x.device)
        raise


def scan_states(
    cell: str, inputs: AnyInputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Do as :func:`forward` for an LSTM, and return every step's c (T, N, H) | (rows, H) too."""
    if isinstance(inputs, VariantInputs):
        found: Any = variants.forward(cell, inputs, batch_sizes, reverse, training, True)
        return found
    return _lstm_forward(inputs, batch_sizes, reverse, training, True)


def _lstm_forward(
    inputs: Inputs, batch_sizes: Tensor | None, reverse: bool, training: bool, every_c: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    tell_tf32(inputs.x)
    try:
        y, h_n, c_n, c, saved = _FORWARD["lstm"](*inputs, batch_sizes, reverse, training, every_c)
    except RuntimeError as error:
        raise_out_of_memory(error, inputs.x.device)
        raise
    return y, h_n, c_n, (saved,), c


def saved(cell: str, inputs: AnyInputs) -> tuple[Tensor, ...]:
    """See :meth:`fused_rnn.backends.Backend.saved`."""
    if isinstance(inputs, VariantInputs):
        return variants.saved(cell, inputs)
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
    inputs: AnyInputs,
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
    if isinstance(inputs, VariantInputs):
        given = dy, dh_n, dc_n, dc
        return variants.backward(cell, inputs, batch_sizes, reverse, saved, given, needs)
    x, h0, _, w_ih, w_hh, b_ih, b_hh, _ = inputs
    needed = needs if cell == "lstm" else (*needs[:2], *needs[3:7])
    mask = _mask(needed)
    tell_tf32(x)
    try:
        if cell == "lstm":
            given = _BACKWARD[cell](
                *inputs, batch_sizes, reverse, y, *saved, dy, dh_n, dc_n, mask, dc
            )
            return tuple([d if need else None for d, need in zip(given, needs, strict=True)])
        given = _BACKWARD[cell](
            x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, y, *saved, dy, dh_n, mask
        )
    except RuntimeError as error:
        raise_out_of_memory(error, x.device)
        raise
    dx, dh0, *dweights = [d if need else None for d, need in zip(given, needed, strict=True)]
    return dx, dh0, None, *dweights, None


@cache  # few of them come, and each of them often
def _mask(needed: tuple[bool, ...]) -> int:
    return sum(need << bit for bit, need in enumerate(needed))


def takes_both(problem: Problem) -> bool:
    """See :meth:`fused_rnn.backends.Backend.takes_both`."""
    on_gpu = _cuda_missing is None and problem.device.type == "cuda"
    return on_gpu and persistent.takes_both(problem)


def forward_both(
    cell: str, inputs: tuple[Inputs, Inputs], batch_sizes: Tensor | None, training: bool
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """See :meth:`fused_rnn.backends.Backend.forward_both`."""
    tell_tf32(inputs[0].x)
    try:
        found = _FORWARD[_BOTH](cell, *_operands_of_both(inputs), batch_sizes, training)
    except RuntimeError as error:
        raise_out_of_memory(error, inputs[0].x.device)
        raise
    forward, reverse = (
        (y, h_n, c_n if cell == "lstm" else None, (saved,))
        for y, h_n, c_n, saved in (found[:4], found[4:])
    )
    return forward, reverse


def backward_both(
    cell: str,
    inputs: tuple[Inputs, Inputs],
    batch_sizes: Tensor | None,
    y: tuple[Tensor, Tensor],
    saved: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    given: tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """See :meth:`fused_rnn.backends.Backend.backward_both`."""
    needed = (*needs[:7], *needs[8:14])
    mask = _mask(needed)
    incoming = (t for k in (0, 1) for t in (y[k], *saved[k], *given[k]))
    tell_tf32(inputs[0].x)
    try:
        found = _BACKWARD[_BOTH](cell, *_operands_of_both(inputs), batch_sizes, *incoming, mask)
    except RuntimeError as error:
        raise_out_of_memory(error, inputs[0].x.device)
        raise
    gradients = [d if need else None for d, need in zip(found, needed, strict=True)]
    return *gradients[:7], None, *gradients[7:], None


def takes_marks(device: torch.device, projected: bool) -> bool:
    """See :meth:`fused_rnn.backends.Backend.takes_marks`."""
    return device.type == "cuda" and not projected


def _operands_of_both(inputs: tuple[Inputs, Inputs]) -> tuple[Tensor | None, ...]:
    """Return x, then the others of either direction, without projections."""
    return *inputs[0][:7], *inputs[1][1:7]


def _register(*names: str) -> None:
    """Find the ops of these names, and tell torch's tracers the shapes they return."""
    for of in names:
        _FORWARD[of] = getattr(torch.ops.fused_rnn, f"{of}_forward").default
        _BACKWARD[of] = getattr(torch.ops.fused_rnn, f"{of}_backward").default
        fakes.register(f"fused_rnn::{of}")


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
    _register(*CELLS)
    for _cell in CELLS:
        _STEP[_cell] = getattr(torch.ops.fused_rnn, f"{_cell}_step").default
        fakes.register_step(f"fused_rnn::{_cell}_step")
    marked.register()
    _FORWARD[_QUANTIZED] = torch.ops.fused_rnn.quantized_forward.default
    fakes.register_quantized()
    _cuda_missing = _load_cuda()
    if _cuda_missing is None:
        _register(_BOTH)

"""Where a whole sequence is one launch, and how it is launched.

A program keeps W_hh, padded to a power of two, in its registers, and moves it there by way of
shared memory. Which sizes fit without spilling is known from compiling them, see
``tests/backends/triton/test_compile.py``; whether a device has the shared memory is asked of it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn.backends.triton.scan import Gradients, Scan

__all__ = ["LIMITS", "Whole", "padded", "plan", "whole_backward", "whole_forward"]

# Sequences of a program: the least that a matrix product takes.
_ROWS = 16
_REGISTERS = 255  # of a thread: 8 warps fill a processor

# The largest padded hidden size by cell and bytes of an element.
LIMITS = {
    ("lstm", 2): 64,
    ("gru", 2): 64,
    ("rnn_tanh", 2): 128,
    ("rnn_relu", 2): 128,
    ("lstm", 4): 32,
    ("gru", 4): 32,
    ("rnn_tanh", 4): 64,
    ("rnn_relu", 4): 64,
}


# Where these are known to hold, and not to trip an assertion of Triton's, which ends the process.
# Other GPUs get a launch for each step.
COMPILED_FOR = {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}

# Triton's interpreter multiplies the bit patterns of these (seen in 3.6 and 3.9).
MISINTERPRETED = {torch.bfloat16}


class Whole(NamedTuple):
    """How the whole-sequence kernels are compiled for a hidden size."""

    HP: int
    warps: int


def padded(H: int) -> int:
    """Return the next power of two, from 16 on: the least that a matrix product takes."""
    return max(16, 1 << (H - 1).bit_length())


def plan(scan: Scan) -> Whole | None:
    """Return how one launch runs the scan, or None where it takes a launch for each step."""
    x = scan.inputs.x
    size = padded(scan.H)
    if scan.inputs.w_hr is not None or size > LIMITS.get((scan.cell, x.itemsize), 0):
        return None
    needed = scan.G * size * size * x.itemsize
    if x.is_cuda:
        # The first row of each step comes from the host, at an address that a graph would keep.
        if scan.batch_sizes is not None and torch.cuda.is_current_stream_capturing():
            return None
        if torch.version.cuda is None or capability(x.device) not in COMPILED_FOR:
            return None
        # Beside the weights stand the gates of _ROWS sequences, on their way to another layout.
        needed += _ROWS * size * 8
        if needed > _shared_memory(x.device):
            return None
    elif x.device.type != "cpu" or x.dtype in MISINTERPRETED:
        return None  # nothing is known of another device's shared memory
    return Whole(size, 4 if size * x.itemsize <= 64 else 8)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability."""
    return torch.cuda.get_device_capability(device)


@cache
def _shared_memory(device: torch.device) -> int:
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) or getattr(
        properties, "shared_memory_per_block", 0
    )


def _options(scan: Scan, whole: Whole) -> dict[str, Any]:
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return {
        "CELL": scan.cell,
        "REVERSE": scan.reverse,
        "PRECISION": "ieee" if exact else "tf32",
        "BN": _ROWS,
        "HP": whole.HP,
        "num_warps": whole.warps,
        "num_stages": 1,  # what is loaded ahead, the kernels load ahead themselves
        "enable_fp_fusion": True,
        # Left alone, the assembler spills a little to have more programs on a processor.
        "maxnreg": _REGISTERS,
    }


def _starts(scan: Scan) -> Tensor | None:
    if scan.batch_sizes is None:
        return None
    # Not pinned: the copy is taken before the call returns, and nothing waits for the device.
    return torch.tensor(scan.starts()).to(scan.inputs.x.device, non_blocking=True)


def whole_forward(
    kernels: Any,
    scan: Scan,
    whole: Whole,
    gates: Tensor,  # (rows, G*H); in training the activated gates are left in it
    extra: Tensor | None,  # (rows, H), in training, where the cell has one
    y: Tensor,  # (rows, H)
    h_n: Tensor,  # (N, H)
    c_n: Tensor | None,  # (N, H)
    training: bool,
) -> None:
    """Run all steps forward in one launch."""
    inputs = scan.inputs
    kernels.forward_sequence[(-(-scan.N // _ROWS),)](
        gates,
        inputs.w_hh,
        inputs.b_ih,
        inputs.b_hh,
        inputs.h0,
        inputs.c0,
        _starts(scan),
        extra,
        y,
        h_n,
        c_n,
        scan.T,
        scan.N,
        scan.H,
        TRAINING=training,
        **_options(scan, whole),
    )


def whole_backward(
    kernels: Any,
    scan: Scan,
    whole: Whole,
    gates: Tensor,
    extra: Tensor | None,
    y: Tensor,  # (rows, H)
    dy: Tensor | None,  # (rows, H)
    dh_n: Tensor | None,  # (N, H)
    dc_n: Tensor | None,  # (N, H)
) -> Gradients:
    """Run all steps backward in one launch."""
    inputs, gru = scan.inputs, scan.cell == "gru"
    dgates_x = scan.empty(scan.rows, scan.G * scan.H)
    dgates_h = torch.empty_like(dgates_x) if gru else dgates_x
    dh0 = torch.empty_like(inputs.h0)
    dc0 = None if inputs.c0 is None else torch.empty_like(inputs.c0)
    kernels.backward_sequence[(-(-scan.N // _ROWS),)](
        gates,
        extra,
        y,
        inputs.w_hh,
        scan.initial if scan.G > 1 else None,
        _starts(scan),
        dy,
        dh_n,
        dc_n,
        dgates_x,
        dgates_h if gru else None,
        dh0,
        dc0,
        scan.T,
        scan.N,
        scan.H,
        **_options(scan, whole),
    )
    return Gradients(dgates_x, dgates_h, dh0, dc0, None, None)

"""Runs quantized scans on each SIMD level: those of the shipped module, and modelled ones."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fused_rnn.backends import Inputs
from fused_rnn.backends.quantized import Scales
from fused_rnn.cells import CELLS

from .build import NATIVE, ROOT, Target, Unit, build, cpu_flags, shipped_flags, shipped_library

# A level, with the instructions by Linux's names that it needs beside those that torch does.
SHIPPED = {
    "portable": (),
    "avx2": ("avx2", "fma"),
    "avx_vnni": ("avx2", "fma", "avx_vnni"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl"),
    "avx512_vnni": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"),
}
# A model, with its registers' bytes and number, and the instruction in plain C++.
MODELS = {
    "model_avx512": (64, 32, "PlainDot"),
    "model_avx_vnni": (32, 16, "VnniDot<VnniModel>"),
    "model_avx512_vnni": (64, 32, "VnniDot<VnniModel>"),
}
STORED = (torch.int8, torch.bfloat16)  # as Stored counts; w_hh's


class Results(NamedTuple):
    """What a scan gives; no c_n and c without a cell state."""

    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    c: Tensor | None


def target() -> Target:
    """Return the library of the models, and of what calls a level."""
    warnings = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter")
    flags = (*shipped_flags(), "-O1", *warnings, "-fPIC")
    units = [Unit(NATIVE / "quantized.cpp", flags), Unit(ROOT / "csrc/cpu/scratch.cpp", flags)]
    for level, (bytes_, registers, dot) in MODELS.items():
        defines = [f"-DFUSED_RNN_LEVEL={level}", f"-DFUSED_RNN_VECTOR_BYTES={bytes_}"]
        defines += [f"-DFUSED_RNN_VECTOR_REGISTERS={registers}", f"-DFUSED_RNN_DOT={dot}"]
        units.append(Unit(NATIVE / "quantized_level.cpp", (*flags, *defines)))
    return Target("bench/quantized.so", tuple(units), ("-shared", "-pthread"))


@functools.cache
def library() -> ctypes.CDLL:
    """Build the library if need be, and load it."""
    return ctypes.CDLL(str(build(target())))


def lacks(level: str) -> str | None:
    """Return None, or why a level cannot run here."""
    missing = set(SHIPPED.get(level, ())) - (cpu_flags() or set())
    return f"the CPU has no {', '.join(sorted(missing))}" if missing else None


def _address(level: str, stored: torch.dtype) -> int:
    shipped = level in SHIPPED
    name = f"quantized_{level}" if shipped else level
    of = "5kInt8E" if stored == torch.int8 else "9kBFloat16E"
    # Loaded with torch's libraries, as the module is by now.
    where = ctypes.CDLL(str(shipped_library())) if shipped else library()
    found = ctypes.c_char.in_dll(where, f"_ZN9fused_rnn{len(name)}{name}{of}")
    return ctypes.addressof(found)


def is_built(level: str, stored: torch.dtype) -> bool:
    """Return whether the module has a level; it may have been built for one alone."""
    try:
        _address(level, stored)
    except ValueError:
        return False
    return True


def run(
    level: str,
    cell: str,
    inputs: Inputs,
    scales: Scales,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    threads: int = 1,
) -> Results:
    """Run a scan on a level; all that it should write is NaN before."""
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = inputs
    n, r = h0.shape
    h, has_c = w_hh.shape[0] // CELLS[cell].gates, CELLS[cell].has_cell_state
    lead = x.shape[:-1]
    y, h_n = x.new_full((*lead, r), torch.nan), x.new_full((n, r), torch.nan)
    c_n = x.new_full((n, h), torch.nan) if has_c else None
    c = x.new_full((*lead, h), torch.nan) if has_c else None
    steps = len(x) if batch_sizes is None else len(batch_sizes)
    kinds = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # as CellKind counts
    p = 0 if w_hr is None else r
    sizes = kinds.index(cell), steps, n, x.shape[-1], h, p, reverse, STORED.index(w_hh.dtype)
    tensors = [x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, *scales, batch_sizes, y, h_n, c_n, c]
    assert all(t is None or t.is_contiguous() for t in tensors)
    pointers = (ctypes.c_void_p * len(tensors))(
        *(t if t is None else t.data_ptr() for t in tensors)
    )
    of_level = ctypes.c_void_p(_address(level, w_hh.dtype))
    library().quantized_scan(of_level, (ctypes.c_int64 * len(sizes))(*sizes), pointers, threads)
    return Results(y, h_n, c_n, c)

"""Calls the kernels of one SIMD level with arrays between guard bytes, without a dispatcher."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet

from fused_rnn.backends import Inputs, native
from fused_rnn.cells import CELLS

from .build import (
    LEVELS,
    TILES,
    UnbuildableError,
    bench,
    levels_of,
    shipped_library,
    vectors_are_modelled,
)

GRADIENTS = tuple(f"d{name}" for name in Inputs._fields)


@functools.cache
def _bench_or_reason() -> ModuleType | str:
    try:
        return bench()
    except UnbuildableError as reason:
        return str(reason)


def _lacks(level: str) -> str | None:
    missing = native.available()
    if missing is not None:
        return missing
    if level not in levels_of(shipped_library()):
        return "the module was built without it"
    order, best = list(LEVELS), native.simd_level()
    return None if order.index(level) <= order.index(best) else f"{best} is the most that runs here"


def _tiles_lack(level: str) -> str | None:
    if native.available() is None and "amx" not in levels_of(shipped_library()):
        return "the module was built without amx"
    if level == "amx_always":
        return _lacks("amx")
    return _lacks("avx2" if vectors_are_modelled() else "avx512")


def _marked(level: str, reason: str | None) -> ParameterSet:
    mark = pytest.mark.skipif(reason is not None, reason=f"{level}: {reason}")
    return pytest.param(level, marks=mark)


# By name; skipped by a mark where it cannot run, so that the core tier knows (tiers.py).
EACH_LEVEL = [_marked(level, _lacks(level)) for level in LEVELS]
# What csrc/cpu/tiles/ has, whether it pays or not, on AMX's registers and on their model.
EACH_TILES = [_marked(level, _tiles_lack(level)) for level in TILES]


def bench_for(level: str) -> ModuleType:
    """Return the bench for a level that can run; skip the running test where there is none."""
    found = _bench_or_reason()
    if isinstance(found, str):
        pytest.skip(found)
    assert found.levels()[level] is None
    return found


class Arrays(dict[str, np.ndarray]):
    """Arrays by name, each between guard bytes and aligned to its elements only.

    Guards, and outputs before the call, are all ones: NaN in every type, so that reading what is
    not given, or not writing what is asked for, shows in the results too.
    """

    GUARD = 128

    def __init__(self) -> None:
        self._blocks: dict[str, np.ndarray] = {}
        self._given: dict[str, bytes] = {}
        self._form: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}

    def want(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make room for an output."""
        element = torch.empty(0, dtype=dtype).element_size()
        size = int(np.prod(shape)) * element
        begin = self.GUARD + element
        block = torch.full((begin + size + self.GUARD,), 0xFF, dtype=torch.uint8).numpy()
        self._blocks[name], self._form[name] = block, (dtype, shape)
        self[name] = block[begin : begin + size]

    def give(self, name: str, tensor: torch.Tensor | None) -> None:
        """Add a copy of an input, if there is one."""
        if tensor is not None:
            self.want(name, tuple(tensor.shape), tensor.dtype)
            self[name][:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            self.freeze(name)

    def freeze(self, *names: str) -> None:
        """Make outputs of the last call inputs of the next one."""
        self._given |= {name: self[name].tobytes() for name in names}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a copy of an array."""
        dtype, shape = self._form[name]
        return torch.from_numpy(self[name].copy()).view(dtype).view(shape)

    def check(self) -> None:
        """Assert that the last call wrote to outputs only."""
        for name, given in self._given.items():
            assert self[name].tobytes() == given, f"the input {name} was written to"
        for name, block in self._blocks.items():
            end = len(block) - self.GUARD
            assert (block[: end - self[name].size] == 0xFF).all(), f"written before {name}"
            assert (block[end:] == 0xFF).all(), f"written past {name}"


class Scan(NamedTuple):
    """A scan's operands, and the gradients of y, h_n and c_n that are fed back (None: zero)."""

    cell: str
    inputs: Inputs
    batch_sizes: torch.Tensor | None = None
    reverse: bool = False
    gradients: tuple[torch.Tensor | None, ...] = (None, None, None)

    def problem(self, threads: int, parallel: str) -> dict[str, object]:
        """Return what is not an array, as the bench takes it."""
        x, h0, w_hr = self.inputs.x, self.inputs.h0, self.inputs.w_hr
        return {
            "cell": self.cell,
            "dtype": str(x.dtype).removeprefix("torch."),
            "T": len(x) if self.batch_sizes is None else len(self.batch_sizes),
            "N": len(h0),
            "I": x.shape[-1],
            "H": len(self.inputs.w_hh) // CELLS[self.cell].gates,
            "P": 0 if w_hr is None else len(w_hr),
            "reverse": self.reverse,
            "threads": threads,
            "parallel": parallel,
        }


Results = dict[str, torch.Tensor]


def run(
    level: str,
    scan: Scan,
    *,
    threads: int = 1,
    parallel: str = "threads",
    training: bool = True,
    wanted: tuple[str, ...] = GRADIENTS,
) -> Results:
    """Scan, and where ``training`` go back; return y, h_n, c_n and the wanted gradients by name."""
    kernels = bench_for(level)
    problem = scan.problem(threads, parallel)
    x, h0, c0 = scan.inputs.x, scan.inputs.h0, scan.inputs.c0
    arrays = Arrays()
    for name, tensor in zip(Inputs._fields, scan.inputs, strict=True):
        arrays.give(name, tensor)
    arrays.give("batch_sizes", scan.batch_sizes)
    arrays.want("y", (*x.shape[:-1], h0.shape[1]), x.dtype)
    arrays.want("h_n", tuple(h0.shape), x.dtype)
    if c0 is not None:
        arrays.want("c_n", tuple(c0.shape), x.dtype)
    if training:
        compute = torch.promote_types(x.dtype, torch.float32)
        arrays.want("saved", (kernels.saved_elements(level, problem, arrays),), compute)
    kernels.forward(level, problem, arrays)
    arrays.check()
    names = ["y", "h_n", *(["c_n"] if c0 is not None else [])]
    if training:
        arrays.freeze(*names, "saved")
        for name, gradient in zip(("dy", "dh_n", "dc_n"), scan.gradients, strict=True):
            arrays.give(name, gradient)
        for name, operand in zip(GRADIENTS, scan.inputs, strict=True):
            if operand is not None and name in wanted:
                arrays.want(name, tuple(operand.shape), x.dtype)
                names.append(name)
        kernels.backward(level, problem, arrays)
        arrays.check()
    return {name: arrays.tensor(name) for name in names}


def assert_same_bits(found: Results, expected: Results) -> None:
    """Assert that two runs gave the very same numbers."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (tensor, expected[name]))
        assert torch.equal(a, b), f"{name} differs in its bits"


__all__ = [
    "EACH_LEVEL",
    "EACH_TILES",
    "GRADIENTS",
    "LEVELS",
    "Arrays",
    "Results",
    "Scan",
    "assert_same_bits",
    "bench_for",
    "run",
]

"""Runs the persistent forward kernels on the host bench, and what they are to be compared with."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fused_rnn.cells import CELLS, State, Weights

from . import gates
from .build import ROOT
from .core import Arrays, Results
from .gates import DTYPES, EVERY_ARRAY, Buffers, Step
from .simt.library import SIMT, Machine, machine

KERNELS = (ROOT / "csrc/cuda/persistent/forward.cu", SIMT / "persistent_forward.cpp")
MEMORY, CLUSTER = "memory", "cluster"  # where the blocks of a group meet


class Layout(NamedTuple):
    """How the weights lie over blocks, as Plan in persistent/params.h; the rest of it follows."""

    shape: int
    meeting: str
    blocks: int
    chunks: int = 1


class Case(NamedTuple):
    """A scan and how it is laid out; ``reverse`` has one element for each direction."""

    cell: str
    dtype: torch.dtype
    lengths: tuple[int, ...]  # of the sequences, longest first
    H: int
    layout: Layout
    reverse: tuple[bool, ...] = (False,)
    tf32: bool = False
    training: bool = True
    biases: tuple[str, ...] = ("b_ih", "b_hh")

    @property
    def compute(self) -> torch.dtype:
        """The arithmetic's type."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of each time."""
        return [sum(length > t for length in self.lengths) for t in range(max(self.lengths))]

    @property
    def extra(self) -> str | None:
        """What is saved beside the gates, as the gate kernels call it."""
        return {"lstm": "c", "gru": "a_nh"}.get(self.cell)

    def numbers(self) -> ctypes.Array[ctypes.c_int64]:
        """Return what is not an array, as the C interface takes it."""
        shape, meeting, blocks, chunks = self.layout
        rows, columns = shape_of(shape)
        units = -(-self.H // blocks)
        assert units * CELLS[self.cell].gates <= rows, "the blocks are too few"
        N = len(self.lengths)
        values = (
            *(list(CELLS).index(self.cell), DTYPES.index(self.dtype), self.tf32, self.training),
            *(max(self.lengths), N, self.H, len(self.reverse), *(*self.reverse, False)[:2]),
            *(shape, units, blocks, blocks if meeting == CLUSTER else 0),
            *(chunks, -(-N // (columns * chunks))),
        )
        return (ctypes.c_int64 * len(values))(*values)


def bench() -> Machine:
    """Return the kernels; skip the running test where they cannot be built."""
    return machine("persistent_forward", KERNELS)


def shape_of(index: int) -> tuple[int, int]:
    """Return the rows and columns of a compiled tile shape."""
    rows, columns = ctypes.c_int(), ctypes.c_int()
    bench().library.simt_shape(index, ctypes.byref(rows), ctypes.byref(columns))
    return rows.value, columns.value


def fewest_blocks(cell: str, H: int, shape: int) -> int:
    """Return how many blocks of a shape the weights need."""
    return -(-H // (shape_of(shape)[0] // CELLS[cell].gates))


def shapes_of(meeting: str) -> Iterator[int]:
    """Yield the tile shapes that a kernel is compiled for."""
    library = bench().library
    for shape in range(library.simt_shape_count()):
        if library.simt_forward_is_compiled(shape, meeting == CLUSTER):
            yield shape


def draw(case: Case) -> Results:
    """Return the random operands of one direction."""
    N, H, S = len(case.lengths), case.H, case.dtype
    rows, columns = sum(case.lengths), CELLS[case.cell].gates * H
    given = {name: torch.randn(columns).to(S) for name in case.biases}
    given["w_hh"] = ((2 * torch.rand(columns, H) - 1) * H**-0.5).to(S)
    given |= {"gates": torch.randn(rows, columns).to(case.compute), "h0": torch.randn(N, H).to(S)}
    if case.cell == "lstm":
        given["c0"] = torch.randn(N, H).to(S)
    return given


class Visit(NamedTuple):
    """A step in the order of the scan: its time, its sequences, and those before and after it."""

    t: int
    n: int
    before: int
    after: int


def visits(case: Case, reverse: bool) -> list[Visit]:
    """Return the steps of a scan."""
    sizes = case.batch_sizes
    times = range(len(sizes))[:: -1 if reverse else 1]
    counts = [0, *(sizes[t] for t in times), 0]
    return [Visit(t, counts[k + 1], counts[k], counts[k + 2]) for k, t in enumerate(times)]


def joined(state: Tensor, initial: Tensor, visit: Visit) -> Tensor:
    """Return the state that a step's sequences come with, some of which begin."""
    inner = min(visit.before, visit.n)
    return torch.cat([state[:inner], initial[inner : visit.n].to(state.dtype)])


def expected(case: Case, given: Results, reverse: bool) -> Results:
    """Apply the specification in float64."""
    wide = {name: tensor.double() for name, tensor in given.items()}
    initial = [wide["h0"], wide.get("c0")]
    state = State(*initial)
    last = [torch.empty_like(s) for s in initial if s is not None]
    y: dict[int, Tensor] = {}
    nothing = torch.zeros(wide["gates"].shape[1], 1, dtype=torch.float64)
    products = wide["gates"].split(case.batch_sizes)
    for visit in visits(case, reverse):
        state = State(
            *(
                None if s is None else joined(s, i, visit)
                for s, i in zip(state, initial, strict=True)
            )
        )
        x = products[visit.t] + wide.get("b_ih", 0)
        weights = Weights(nothing, wide["w_hh"], x, wide.get("b_hh"))
        state = CELLS[case.cell].step(nothing[:1].expand(visit.n, 1), state, weights)
        y[visit.t] = state.h
        for whole, part in zip(last, state, strict=False):
            whole[visit.after : visit.n] = part[visit.after :]
    ends = dict(zip(("h_n", "c_n"), last, strict=False))
    return {"y": torch.cat([y[t] for t in sorted(y)])} | ends


def step_by_step(case: Case, given: Results, found: Results, reverse: bool) -> Results:
    """Run the gate kernels for each step, from the states that the persistent kernel found."""
    kept: dict[int, Results] = {}
    parts = {name: found[name].split(case.batch_sizes) for name in ("y", "extra") if name in found}
    products = given["gates"].split(case.batch_sizes)
    h, c = given["h0"], given.get("c0")
    for visit in visits(case, reverse):
        inner = min(visit.before, visit.n)
        step = Step(case.cell, case.dtype, visit.n, case.H, inner, visit.n, case.biases, wanted=())
        before = joined(h, given["h0"], visit)
        recurrent = (before.double() @ given["w_hh"].double().T).to(case.compute)
        operands = given | {"gates": products[visit.t], "recurrent": recurrent}
        if c is not None:
            operands |= {"prev": c[:inner].to(case.compute), "initial": given["c0"][: visit.n]}
        elif step.has_state:
            operands |= {"prev": h[:inner], "initial": given["h0"][: visit.n]}
        kept[visit.t] = gates.forward(step, operands)
        h = parts["y"][visit.t]
        c = parts["extra"][visit.t] if c is not None else None
    names = {"gates": "gates", "y": "h"} | ({"extra": case.extra} if case.extra else {})
    return {name: torch.cat([kept[t][of] for t in sorted(kept)]) for name, of in names.items()}


def forward(case: Case, operands: list[Results]) -> list[Results]:
    """Run the kernel; return the outputs of each direction by name."""
    kernels, numbers = bench(), case.numbers()
    names = _names(kernels)
    scratch_bytes = kernels.library.simt_persistent_forward_scratch
    scratch_bytes.restype = ctypes.c_int64
    common = Buffers(None)
    common.hold("scratch", torch.zeros(scratch_bytes(numbers), dtype=torch.uint8))
    ragged = len(set(case.lengths)) > 1
    if ragged:
        common.give("lengths", torch.tensor(case.lengths, dtype=torch.int32))
    directions = [_arrays(case, given) for given in operands]
    at = [a[name].ctypes.data if name in a else None for a in directions for name in names]
    kernels.function("simt_persistent_forward")(
        numbers,
        ctypes.c_void_p(common["lengths"].ctypes.data if ragged else None),
        ctypes.c_void_p(common["scratch"].ctypes.data),
        (ctypes.c_void_p * len(at))(*at),
    )
    for arrays in (common, *directions):
        arrays.check()
    wanted = {"y", "h_n", "c_n"} | ({"gates", "extra"} if case.training else set())
    return [{name: a.tensor(name) for name in wanted & a.keys()} for a in directions]


def _names(kernels: Machine) -> list[str]:
    list_names = kernels.library.simt_persistent_forward_arrays
    list_names.restype = ctypes.c_char_p
    return list_names().decode().split()


def _arrays(case: Case, given: Results) -> Arrays:
    N, rows, H = len(case.lengths), sum(case.lengths), case.H
    arrays = Buffers(EVERY_ARRAY)  # the kernels ask for no alignment beyond an element
    for name, tensor in given.items():
        if name == "gates" and case.training:
            arrays.hold(name, tensor)
        else:
            arrays.give(name, tensor)
    arrays.want("y", (rows, H), case.dtype)
    for name in ("h_n", "c_n") if case.cell == "lstm" else ("h_n",):
        arrays.want(name, (N, H), case.dtype)
    if case.training and case.extra:
        arrays.want("extra", (rows, H), case.compute)
    return arrays

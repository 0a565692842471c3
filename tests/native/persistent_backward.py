"""Runs the persistent backward kernels on the host bench, and what they are to be compared with."""

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
from .gates import DTYPES, Buffers, Incoming, Step
from .persistent_forward import joined, visits
from .simt.library import SIMT, Machine, machine

KERNELS = (ROOT / "csrc/cuda/persistent/backward.cu", SIMT / "persistent_backward.cpp")
MEETINGS = ("memory", "cluster", "clusters")  # as enum Meeting counts


class Layout(NamedTuple):
    """How the weights lie over blocks, as Plan in persistent/params.h; the rest of it follows."""

    shape: int
    cluster: int
    blocks: int
    chunks: int = 1

    @property
    def meeting(self) -> str:
        """How the blocks of a group meet."""
        return MEETINGS[0 if self.cluster == 0 else 1 if self.cluster == self.blocks else 2]


class Case(NamedTuple):
    """A scan and how it is laid out; ``reverse`` has one element for each direction."""

    cell: str
    dtype: torch.dtype
    lengths: tuple[int, ...]  # of the sequences, longest first
    H: int
    layout: Layout
    reverse: tuple[bool, ...] = (False,)
    tf32: bool = False
    absent: tuple[str, ...] = ()  # gradients that are zero, or not wanted

    @property
    def compute(self) -> torch.dtype:
        """The arithmetic's type."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of each time."""
        return [sum(length > t for length in self.lengths) for t in range(max(self.lengths))]

    @property
    def outputs(self) -> dict[str, tuple[int, int]]:
        """What a direction writes: its shape by name."""
        rows, columns = sum(self.lengths), CELLS[self.cell].gates * self.H
        found = {"dgates_x": (rows, columns), "dh0": (len(self.lengths), self.H)}
        if self.cell == "gru":
            found["dgates_h"] = (rows, columns)
        if self.cell == "lstm":
            found["dc0"] = (len(self.lengths), self.H)
        return {name: shape for name, shape in found.items() if name not in self.absent}

    def numbers(self) -> ctypes.Array[ctypes.c_int64]:
        """Return what is not an array, as the C interface takes it."""
        shape, cluster, blocks, chunks = self.layout
        rows, columns = shape_of(shape)
        units = -(-self.H // blocks)
        assert units * max(cluster, 1) <= rows, "the blocks are too few"
        N = len(self.lengths)
        values = (
            *(list(CELLS).index(self.cell), DTYPES.index(self.dtype), self.tf32),
            *(max(self.lengths), N, self.H, len(self.reverse), *(*self.reverse, False)[:2]),
            *(shape, units, blocks, cluster, chunks, -(-N // (columns * chunks))),
        )
        return (ctypes.c_int64 * len(values))(*values)


def bench() -> Machine:
    """Return the kernels; skip the running test where they cannot be built."""
    return machine("persistent_backward", KERNELS)


def shape_of(index: int) -> tuple[int, int]:
    """Return the rows and columns of a tile shape."""
    rows, columns = ctypes.c_int(), ctypes.c_int()
    bench().library.simt_shape(index, ctypes.byref(rows), ctypes.byref(columns))
    return rows.value, columns.value


def shapes_of(meeting: str) -> Iterator[int]:
    """Yield the tile shapes that a kernel is compiled for."""
    library = bench().library
    for shape in range(library.simt_shape_count()):
        if library.simt_backward_is_compiled(shape, MEETINGS.index(meeting)):
            yield shape


def draw(case: Case) -> Results:
    """Return the random operands of one direction, and gradients to feed back."""
    N, H, S = len(case.lengths), case.H, case.dtype
    rows, columns = sum(case.lengths), CELLS[case.cell].gates * H
    products = torch.randn(rows, columns)
    weights = (2 * torch.rand(columns, H) - 1) * H**-0.5
    if case.cell == "rnn_relu":
        # Far from zero, where a gradient is there or not by a rounding.
        products, weights = products.sign() * (products.abs() + 2), weights * 0.2
    given = {"products": products.to(case.compute), "w_hh": weights.to(S)}
    sizes = {"h0": N, "dy": rows, "dh_n": N} | ({"c0": N, "dc_n": N} if _has_c(case) else {})
    given |= {name: torch.randn(size, H).to(S) for name, size in sizes.items()}
    return {name: tensor for name, tensor in given.items() if name not in case.absent}


def _has_c(case: Case) -> bool:
    return CELLS[case.cell].has_cell_state


def _has_extra(case: Case) -> bool:
    return case.cell in ("lstm", "gru")


def saved_by_forward(case: Case, given: Results, reverse: bool) -> Results:
    """Scan with the fused gate kernels; return gates, extra and y of all rows."""
    kept: dict[int, Results] = {}
    h, c = given["h0"], given.get("c0")
    products = given["products"].split(case.batch_sizes)
    for visit in visits(case, reverse):
        step = _step(case, visit.n, visit.before, visit.n)
        before = joined(h, given["h0"], visit)
        recurrent = (before.double() @ given["w_hh"].double().T).to(case.compute)
        operands = {"gates": products[visit.t], "recurrent": recurrent}
        if step.has_state:
            prev, initial = (h, given["h0"]) if c is None else (c.to(case.compute), given["c0"])
            operands |= {"prev": prev[: step.inner], "initial": initial[: visit.n]}
        kept[visit.t] = gates.forward(step, operands)
        h, c = kept[visit.t]["h"], kept[visit.t].get("c")
    names = {"gates": "gates", "y": "h"}
    if _has_extra(case):
        names["extra"] = "c" if _has_c(case) else "a_nh"
    return {name: torch.cat([kept[t][of] for t in sorted(kept)]) for name, of in names.items()}


def _step(case: Case, n: int, before: int, after: int) -> Step:
    return Step(
        case.cell, case.dtype, n, case.H, min(before, n), min(after, n), biases=(), wanted=()
    )


def expected(case: Case, given: Results, reverse: bool) -> Results:
    """Differentiate the specification in float64."""
    wide = {name: tensor.double() for name, tensor in given.items()}
    products, h0 = wide["products"].requires_grad_(), wide["h0"].requires_grad_()
    c0 = wide["c0"].requires_grad_() if "c0" in wide else None
    past = torch.zeros_like(products).requires_grad_()  # what is added to W_hh h of each row
    x, b, dy = (
        None if t is None else t.split(case.batch_sizes) for t in (products, past, wide.get("dy"))
    )
    identity = torch.eye(products.shape[1], dtype=torch.float64)
    state, total = State(h0, c0), torch.zeros((), dtype=torch.float64)
    for visit in visits(case, reverse):
        state = State(
            *(
                None if s is None else joined(s, i, visit)
                for s, i in zip(state, (h0, c0), strict=True)
            )
        )
        weights = Weights(identity, wide["w_hh"], None, b[visit.t])
        state = CELLS[case.cell].step(x[visit.t], state, weights)
        if dy is not None:
            total = total + (state.h * dy[visit.t]).sum()
        for s, gradient in zip(state, (wide.get("dh_n"), wide.get("dc_n")), strict=True):
            if s is not None and gradient is not None:
                total = total + (s[visit.after :] * gradient[visit.after : visit.n]).sum()
    leaves = {"dgates_x": products, "dgates_h": past, "dh0": h0, "dc0": c0}
    wanted = [leaves[name] for name in case.outputs]
    return dict(zip(case.outputs, torch.autograd.grad(total, wanted), strict=True))


def step_by_step(case: Case, given: Results, found: Results, reverse: bool) -> Results:
    """Run the gate kernels for each step, on the gradients that the persistent kernel found."""
    parts = {
        name: given[name].split(case.batch_sizes)
        for name in ("gates", "extra", "y", "dy")
        if name in given
    }
    name_h = "dgates_h" if "dgates_h" in found else "dgates_x"
    passing = found[name_h].split(case.batch_sizes)
    made: dict[int, Results] = {}
    order = visits(case, reverse)
    carry = torch.full((len(case.lengths), case.H), torch.nan, dtype=case.compute)
    for k in reversed(range(len(order))):
        t, n, before, after = order[k]
        step = _step(case, n, before, after)
        operands, state = {}, "extra" if _has_c(case) else "y"
        if step.has_state:
            previous = parts[state][order[k - 1].t] if k > 0 else given["y"][:0]
            prev_type = case.compute if _has_c(case) else case.dtype
            operands["prev"] = previous[: step.inner].to(prev_type)
            operands["initial"] = given["c0" if _has_c(case) else "h0"][:n]
        kept = {"gates": parts["gates"][t]}
        if step.has_state:
            kept["c"] = parts["extra"][t]
        later = passing[order[k + 1].t][: step.outer] if k + 1 < len(order) else passing[t][:0]
        incoming = Incoming(
            dy=parts["dy"][t] if "dy" in parts else None,
            recurrent=(later.double() @ given["w_hh"].double()).to(case.compute),
            dh_n=given["dh_n"][:n] if "dh_n" in given else None,
            dc_n=given["dc_n"][:n] if "dc_n" in given else None,
            carry=carry[:n].clone() if step.has_state else None,
        )
        made[t] = gates.backward(step, operands, kept, incoming)
        if step.has_state:
            carry[:n] = made[t]["carry"]
    names = [name for name in found if name.startswith("dgates")]
    return {name: torch.cat([made[t][name] for t in sorted(made)]) for name in names}


def backward(case: Case, operands: list[Results]) -> list[Results]:
    """Run the kernel; return the outputs of each direction by name."""
    kernels, numbers = bench(), case.numbers()
    library = kernels.library
    library.simt_persistent_backward_arrays.restype = ctypes.c_char_p
    names = library.simt_persistent_backward_arrays().decode().split()
    library.simt_persistent_backward_scratch.restype = ctypes.c_int64
    size = library.simt_persistent_backward_scratch(numbers)
    common = Buffers(None)
    common.hold("scratch", torch.zeros(size, dtype=torch.uint8))
    ragged = len(set(case.lengths)) > 1
    if ragged:
        common.give("lengths", torch.tensor(case.lengths, dtype=torch.int32))
    directions = [_arrays(case, names, given) for given in operands]
    at = [a[name].ctypes.data if name in a else None for a in directions for name in names]
    kernels.function("simt_persistent_backward")(
        numbers,
        ctypes.c_void_p(common["lengths"].ctypes.data if ragged else None),
        ctypes.c_void_p(common["scratch"].ctypes.data),
        (ctypes.c_void_p * len(at))(*at),
    )
    for arrays in (common, *directions):
        arrays.check()
    return [{name: a.tensor(name) for name in case.outputs} for a in directions]


def _arrays(case: Case, names: list[str], given: Results) -> Arrays:
    arrays = Arrays()
    for name in names:
        tensor: Tensor | None = given.get(name)
        arrays.give(name, tensor)
    for name, shape in case.outputs.items():
        arrays.want(name, shape, case.dtype)
    return arrays

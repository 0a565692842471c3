"""Runs the fused gate kernels on the host bench, and what the specification makes of a step."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from fused_rnn.cells import CELLS, State, Weights

from .core import Arrays, Results
from .simt.library import GATES, Machine, machine

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # as Dtype counts
PRODUCTS = ("gates", "recurrent")  # of the input and of h, as ForwardStep calls them
EVERY_ARRAY = "every array"


class Step(NamedTuple):
    """One step: its sizes as in steps.h, which arrays it has, and where they are."""

    cell: str
    dtype: torch.dtype
    N: int
    H: int
    inner: int
    outer: int
    biases: tuple[str, ...] = ("b_ih", "b_hh")
    training: bool = True
    wanted: tuple[str, ...] = ("h_again", "h_n", "c_again")  # the last of an LSTM only
    in_place: bool = False  # the state before is overwritten
    unaligned: str | None = None  # an array that 16 does not divide the address of

    @property
    def compute(self) -> torch.dtype:
        """The arithmetic's type."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def columns(self) -> int:
        """G*H."""
        return CELLS[self.cell].gates * self.H

    @property
    def has_state(self) -> bool:
        """Whether the elementwise state enters: an LSTM's c, a GRU's h."""
        return self.cell in ("lstm", "gru")


class Incoming(NamedTuple):
    """What comes back to a step, as in steps.h."""

    dh: Tensor | None = None
    dy: Tensor | None = None
    recurrent: Tensor | None = None
    dh_n: Tensor | None = None
    dc_n: Tensor | None = None
    dc: Tensor | None = None
    carry: Tensor | None = None


class Buffers(Arrays):
    """Arrays between guard bytes at addresses that 16 divides, but for those asked for."""

    def __init__(self, unaligned: str | None) -> None:
        super().__init__()
        self._unaligned = unaligned

    def want(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make room for an output."""
        super().want(name, shape, dtype)
        block, size = self._blocks[name], self[name].size
        assert block.ctypes.data % 16 == self.GUARD % 16 == 0
        if self._unaligned not in (name, EVERY_ARRAY):
            self._blocks[name] = block[: 2 * self.GUARD + size]
            self[name] = block[self.GUARD : self.GUARD + size]

    def tensor(self, name: str) -> Tensor:
        """Return a copy of an array, also of an empty one."""
        dtype, shape = self._form[name]
        return super().tensor(name) if self[name].size else torch.empty(shape, dtype=dtype)

    def hold(self, name: str, tensor: Tensor) -> None:
        """Add what is both read and written."""
        self.want(name, tuple(tensor.shape), tensor.dtype)
        self[name][:] = tensor.contiguous().view(-1).view(torch.uint8).numpy()


def bench() -> Machine:
    """Return the kernels; skip the running test where they cannot be built."""
    return machine("gates", GATES)


def rows_from(first: int, tensor: Tensor) -> Tensor:
    """Return the tensor with NaN in the rows before: nobody may read them."""
    return tensor.index_fill(0, torch.arange(first), torch.nan)


def draw(step: Step) -> Results:
    """Return random operands of a step's forward."""
    N, H = step.N, step.H
    given = {name: torch.randn(N, step.columns).to(step.compute) for name in PRODUCTS}
    given |= {name: torch.randn(step.columns).to(step.dtype) for name in step.biases}
    if step.has_state:
        kept = step.compute if step.cell == "lstm" else step.dtype
        given["prev"] = torch.randn(step.inner, H).to(kept)
        given["initial"] = rows_from(step.inner, torch.randn(N, H).to(step.dtype))
    return given


def draw_incoming(step: Step, whole: bool = False, leave_out: tuple[str, ...] = ()) -> Incoming:
    """Return random gradients; ``whole``: that of h as one."""
    N, H, S, T = step.N, step.H, step.dtype, step.compute
    given = {"dh": torch.randn(N, H).to(T)}
    if not whole:
        given = {
            "dy": torch.randn(N, H).to(S),
            "recurrent": torch.randn(step.outer, H).to(T),
            "dh_n": rows_from(step.outer, torch.randn(N, H).to(S)),
        }
    if step.cell == "lstm":
        given["dc_n"] = rows_from(step.outer, torch.randn(N, H).to(S))
        given["dc"] = torch.randn(N, H).to(S)
    if step.has_state:
        given["carry"] = torch.randn(N, H).to(T)
        given["carry"][step.outer :] = torch.nan
    return Incoming(**{name: t for name, t in given.items() if name not in leave_out})


def expected_step(step: Step, given: Results) -> tuple[tuple[Tensor, ...], State]:
    """Apply the specification in float64; return what to differentiate for, and the new state.

    That is the products with their biases, which reach the cell as biases of each sequence beside
    products of zeros, and the elementwise state.
    """
    N, H = step.N, step.H
    x, past = (
        (given[name].double() + given.get(bias, torch.zeros(1)).double()).requires_grad_()
        for name, bias in zip(PRODUCTS, ("b_ih", "b_hh"), strict=True)
    )
    before = torch.zeros(N, H, dtype=torch.float64)
    if step.has_state:
        before = torch.cat([given["prev"].double(), given["initial"][step.inner :].double()])
    before.requires_grad_()
    nothing = torch.zeros(step.columns, H, dtype=torch.float64)
    weights = Weights(nothing[:, :1], nothing, x, past)
    lstm = step.cell == "lstm"
    state = State(torch.zeros_like(before) if lstm else before, before if lstm else None)
    return (x, past, before), CELLS[step.cell].step(nothing[:1, :1].expand(N, 1), state, weights)


def expected_gradients(step: Step, given: Results, incoming: Incoming) -> Results:
    """Differentiate the specification; return a backward step's outputs by name."""
    leaves, state = expected_step(step, given)
    dh = torch.zeros(step.N, step.H, dtype=torch.float64)
    dstate = torch.zeros_like(dh)
    going_on, ending = slice(None, step.outer), slice(step.outer, None)
    for total, rows, part in (
        *((dh, slice(None), incoming.dh), (dh, slice(None), incoming.dy)),
        *((dh, going_on, incoming.recurrent), (dstate, going_on, incoming.carry)),
        *((dh, ending, incoming.dh_n), (dstate, ending, incoming.dc_n)),
        (dstate, slice(None), incoming.dc),
    ):
        if part is not None:
            total[rows] += part[rows].double()
    # A GRU's elementwise state is h itself.
    results = (state.h, state.h if state.c is None else state.c)
    gradients = torch.autograd.grad(results, leaves, (dh, dstate), allow_unused=True)
    names = ("dgates_x", "dgates_h", "carry")
    found = dict(zip(names, gradients, strict=True)) | {"h": state.h.detach()}
    return {name: found[name] for name in backward_outputs(step)}


def backward_outputs(step: Step) -> dict[str, tuple[int, torch.dtype]]:
    """Return what a backward step writes: columns and type by name."""
    outputs = {"dgates_x": (step.columns, step.dtype)}
    if step.cell == "gru":
        outputs["dgates_h"] = (step.columns, step.dtype)
    if step.has_state:
        outputs["carry"] = (step.H, step.compute)
    if step.cell == "lstm":
        outputs["h"] = (step.H, step.dtype)
    return outputs


def _call(kernel: str, step: Step, arrays: Buffers, aliases: dict[str, str] | None = None) -> None:
    kernels = bench()
    list_names = kernels.library[f"simt_{kernel}_arrays"]
    list_names.restype = ctypes.c_char_p
    names = list_names().decode().split()
    assert arrays.keys() <= set(names)
    at = {name: array.ctypes.data for name, array in arrays.items()}
    at |= {name: at[other] for name, other in (aliases or {}).items()}
    numbers = (
        *(list(CELLS).index(step.cell), DTYPES.index(step.dtype)),
        *(step.N, step.H, step.inner, step.outer, step.training),
    )
    kernels.function(f"simt_{kernel}_step")(
        (ctypes.c_int64 * len(numbers))(*numbers),
        (ctypes.c_void_p * len(names))(*(at.get(name) for name in names)),
    )
    arrays.check()


def forward(step: Step, given: Results) -> Results:
    """Run the forward kernel; return its outputs by name, of h_n and c_n only the rows that end."""
    N, H, S, T = step.N, step.H, step.dtype, step.compute
    arrays = Buffers(step.unaligned)
    for name in ("recurrent", "b_ih", "b_hh", "initial"):
        arrays.give(name, given.get(name))
    outputs = {"h": S} | dict.fromkeys(step.wanted, S)
    if step.cell == "lstm":
        outputs |= {"c": T, "c_n": S}
    else:
        outputs.pop("c_again", None)
    if step.cell == "gru" and step.training:
        outputs["a_nh"] = T
    aliases = {"prev": "c" if step.cell == "lstm" else "h_again"} if step.in_place else {}
    for name, dtype in outputs.items():
        arrays.want(name, (N, H), dtype)
    if step.in_place:
        room = torch.full((N, H), torch.nan, dtype=given["prev"].dtype)
        room[: step.inner] = given["prev"]
        arrays.hold(aliases["prev"], room)
    else:
        arrays.give("prev", given.get("prev"))
    if step.training:
        arrays.hold("gates", given["gates"])
        outputs["gates"] = T
    else:
        arrays.give("gates", given["gates"])
    _call("forward", step, arrays, aliases)
    found = {name: arrays.tensor(name) for name in outputs}
    for name in found.keys() & {"h_n", "c_n"}:
        going_on = arrays[name][: step.outer * H * S.itemsize]
        assert (going_on == 0xFF).all(), f"{name} of sequences that go on was written"
        found[name] = found[name][step.outer :]
    return found


def backward(step: Step, given: Results, kept: Results, incoming: Incoming) -> Results:
    """Run the backward kernel on what the forward kernel kept; return its outputs by name."""
    arrays = Buffers(step.unaligned)
    for name in ("prev", "initial"):
        arrays.give(name, given.get(name))
    arrays.give("gates", kept["gates"])
    arrays.give("extra", kept.get("c", kept.get("a_nh")))
    for name, gradient in incoming._asdict().items():
        if name == "carry" and gradient is not None:
            arrays.hold(name, gradient)
        else:
            arrays.give(name, gradient)
    for name, (columns, dtype) in backward_outputs(step).items():
        if name not in arrays:
            arrays.want(name, (step.N, columns), dtype)
    _call("backward", step, arrays)
    return {name: arrays.tensor(name) for name in backward_outputs(step)}


def hidden(step: Step, incoming: Incoming) -> Tensor:
    """Run the kernel that adds up the gradient of a projected h."""
    arrays = Buffers(step.unaligned)
    for name in ("dy", "recurrent", "dh_n"):
        arrays.give(name, getattr(incoming, name))
    arrays.want("dh", (step.N, step.H), step.dtype)
    _call("hidden", step, arrays)
    return arrays.tensor("dh")


def took_wide_accesses(step: Step) -> bool:
    """Return whether a thread of the last launch had several units."""
    launch = bench().last_launch()
    assert launch is not None
    return launch.grid[0] * launch.block[0] < step.H

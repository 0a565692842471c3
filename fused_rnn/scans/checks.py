"""Which operands a kernel may see: plain tensors of the right shapes, of one dtype, on one device.

A check that says no is not yet an error: torch.nn has its own words for most mistakes, and its own
ways with some oddities. What is raised from here is only what torch.nn would not notice: it may
read past the end of a weight of the wrong shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_rnn.backends import transforms
from fused_rnn.cells import CELLS
from fused_rnn.variants import cell_of, extra_sizes, variant_of

__all__ = [
    "Row",
    "Stack",
    "cell_fits",
    "check_batch_sizes",
    "check_bool",
    "check_cell",
    "check_weights",
    "expected_shapes",
    "foreign",
    "misfit",
]

# One layer and direction: w_ih, w_hh[, b_ih, b_hh][, w_hr].
Row = Sequence[Tensor]

# A subclass may mean anything by its operations; of these two it is known.
_PLAIN = frozenset({Tensor, Parameter})


def _is_plain(t: Any) -> bool:
    known = type(t) in _PLAIN or _stands_in(t)
    return known and t.layout is torch.strided and not t.is_nested


def _stands_in(t: object) -> bool:
    """Return whether torch.export has put this in a plain tensor's place."""
    return transforms.exporting() and type(t).__name__ in ("FakeTensor", "FunctionalTensor")


class Stack(NamedTuple):
    """The sizes of a stack of layers."""

    cell: str
    input_size: int
    hidden_size: int
    proj_size: int  # 0 without a projection
    layers: int
    directions: int
    bias: bool

    @classmethod
    def of(cls, cell: str, rows: Sequence[Row], bidirectional: bool) -> Stack:
        """Return the stack that these weights make, going by the first layer's.

        Raises:
            TypeError: if they are not sequences of tensors.
            RuntimeError: if they make none.
        """
        directions = 2 if bidirectional else 1
        _check_rows(cell, rows, directions)
        row = rows[0]
        proj_size = row[-1].shape[0] if len(row) % 2 else 0
        return cls(
            cell,
            row[0].shape[1],
            row[1].shape[0] // CELLS[cell].gates,
            proj_size,
            len(rows) // directions,
            directions,
            len(row) >= 4,
        )


def _check_rows(cell: str, rows: Any, directions: int) -> None:
    projection = CELLS[cell].has_cell_state
    of_row = f"(w_ih, w_hh[, b_ih, b_hh]{'[, w_hr]' if projection else ''})"
    expected = f"{cell}: weights should be a sequence with {of_row} for each layer and direction"
    if isinstance(rows, (Tensor, dict)) or not hasattr(rows, "__len__"):
        raise TypeError(f"{expected}, got: {type(rows).__name__}")
    for k, row in enumerate(rows):
        if isinstance(row, Tensor):
            raise TypeError(f"{expected}, got a flat sequence: weights[{k}] is a tensor")
        if not isinstance(row, Sequence) and not hasattr(row, "__len__"):
            raise TypeError(f"{expected}, got: weights[{k}], a {type(row).__name__}")
    if not rows or len(rows) % directions:
        of = f"a multiple of {directions} rows, one for each direction of each layer"
        raise RuntimeError(
            f"{cell}: weights should have {of if directions > 1 else 'a row for each layer'}, "
            f"got {len(rows)}"
        )
    row = rows[0]
    if len(row) not in ((2, 3, 4, 5) if projection else (2, 4)):
        raise RuntimeError(f"{cell}: weights[0] should be {of_row}, got {len(row)} tensors")
    for i, w in enumerate(row):
        if not isinstance(w, Tensor):
            raise TypeError(f"{cell}: weights[0][{i}] should be a tensor, got: {type(w).__name__}")
    for name, w in zip(("w_ih", "w_hh"), row, strict=False):
        if w.dim() != 2:
            raise RuntimeError(f"{cell}: {name} of weights[0] should be 2-D, got {w.dim()}-D")


@lru_cache(maxsize=256)
def _weight_shapes(
    cell: str, input_size: int, h: int, p: int, layers: int, directions: int, bias: bool
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    rows, r = cell_of(cell).gates * h, p or h
    variant = variant_of(cell)
    heads = 1 if variant is None else variant.num_heads
    w_hh = (rows, r) if heads == 1 else (heads, rows // heads, r // heads)
    extra = () if variant is None else [(size * h,) for size in extra_sizes(variant).values()]
    shapes: list[tuple[tuple[int, ...], ...]] = []
    for layer in range(layers):
        w_ih = (rows, r * directions if layer else input_size)
        biases = ((rows,), (rows,)) if bias else ()
        projection = ((p, h),) if p else ()
        row = (w_ih, w_hh, *biases, *projection, *extra)
        # TorchDynamo of torch 2.11 fails to compare a shape with a plain tuple that is a constant.
        shapes += [tuple(torch.Size(shape) for shape in row)] * directions
    return tuple(shapes)


@transforms.constant_in_graphs
def expected_shapes(*stack: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the shapes of the weights of a :class:`Stack`, for each layer and direction."""
    # TorchDynamo warns of a cached function that it has to trace through.
    return _weight_shapes(*stack)


def foreign(x: object, h0: object, c0: object, rows: Sequence[Sequence[object]]) -> str | None:
    """Return None if the operands are plain tensors (or None for a state), or why they are not."""
    if transforms.jit_traces():
        return f"the sizes are not known to {transforms.TRACING}"
    if not _is_plain(x):
        return f"the input is no plain tensor but a {type(x).__name__}"
    for state in (h0, c0):
        if state is not None and not _is_plain(state):
            return f"an initial state is no plain tensor but a {type(state).__name__}"
    for row in rows:
        for w in row:
            if not _is_plain(w):
                return f"a weight is no plain tensor but a {type(w).__name__}"
    return None


def misfit(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    n: int,
    weight: Tensor,
    any_dtype: bool,
) -> str | None:
    """Return None if the input and the states fit together and to a weight, or the reason why not.

    Args:
        stack: the sizes
        x: (T, N, I), or (rows, I) for packed data
        h0: (L*D, N, R), or None
        c0: (L*D, N, H), or None
        n: the number of sequences
        weight: whose dtype and device count
        any_dtype: whether dtypes may differ, as under autocast
    """
    dtype, device = weight.dtype, weight.device
    if stack.proj_size and not cell_of(stack.cell).has_cell_state:
        return "only an LSTM has projections"
    if x.shape[-1] != stack.input_size:
        return f"the input has {x.shape[-1]} features instead of {stack.input_size}"
    if not x.shape[0]:
        return "the sequence is empty"
    if x.device != device or (x.dtype is not dtype and not any_dtype):
        return f"the input is {x.dtype} on {x.device}, the weights are {dtype} on {device}"
    states, h = stack.layers * stack.directions, stack.hidden_size
    for name, state, size in (("h", h0, stack.proj_size or h), ("c", c0, h)):
        if state is None:
            continue
        if state.shape != (states, n, size):
            shape = tuple(state.shape)
            return f"the initial {name} has shape {shape} instead of {(states, n, size)}"
        if state.device != device or (state.dtype is not dtype and not any_dtype):
            where = f"{state.dtype} on {state.device}"
            return f"the initial {name} is {where}, the weights are {dtype} on {device}"
    return None


def check_weights(
    stack: Stack,
    rows: Sequence[Row],
    any_dtype: bool,
    names: Sequence[Sequence[str]] | None = None,
) -> None:
    """Check the weights of a stack against its sizes and against each other.

    Raises:
        RuntimeError: if a weight has the wrong shape, or not the dtype and device of the first one.
    """
    dtype, device = rows[0][0].dtype, rows[0][0].device
    shapes = expected_shapes(*stack)
    if len(rows) != len(shapes):
        raise RuntimeError(f"weights should have {len(shapes)} rows, got {len(rows)}")
    for k, (row, row_shapes) in enumerate(zip(rows, shapes, strict=True)):
        if len(row) != len(row_shapes):
            name = "weights" if names is None else "the layer's weights"
            raise RuntimeError(f"{name}[{k}] should have {len(row_shapes)} tensors, got {len(row)}")
        for i, (w, shape) in enumerate(zip(row, row_shapes, strict=True)):
            if w.shape != shape or w.device != device or (w.dtype is not dtype and not any_dtype):
                name = names[k][i] if names else f"weights[{k}][{i}]"
                raise RuntimeError(
                    f"{name} should be {tuple(shape)}, {dtype}, on {device}; "
                    f"it is {tuple(w.shape)}, {w.dtype}, on {w.device}"
                )


def check_bool(name: str, value: object) -> None:
    """Check that an option is True or False, as torch.nn does where it checks one.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_batch_sizes(x: Tensor, batch_sizes: Tensor) -> list[int]:
    """Return the batch sizes of packed data as numbers.

    Raises:
        RuntimeError: if they are not those of a packed sequence, or not of this one.
    """
    if (
        batch_sizes.device.type != "cpu"
        or batch_sizes.dtype != torch.int64
        or batch_sizes.dim() != 1
    ):
        raise RuntimeError(
            "batch_sizes should be a 1-D int64 tensor on the CPU, got "
            f"{batch_sizes.dim()}-D {batch_sizes.dtype} on {batch_sizes.device}"
        )
    sizes = batch_sizes.tolist()
    if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise RuntimeError(f"batch_sizes should be positive and never increase, got {sizes}")
    if sum(sizes) != x.shape[0]:
        raise RuntimeError(
            f"batch_sizes add up to {sum(sizes)}, but the packed data has {x.shape[0]} rows"
        )
    return sizes


def cell_fits(
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> bool:
    """Return whether these are the operands of one step, x (N, I) and the others to match."""
    if not _is_plain(x) or not _is_plain(h) or x.dim() != 2 or h.dim() != 2:
        return False
    if (c is not None) != CELLS[cell].has_cell_state:
        return False
    n, i = x.shape
    size = h.shape[1]
    if not i or not size:  # torch.nn allows cells without features; kernels need not
        return False
    rows = CELLS[cell].gates * size
    dtype, device = x.dtype, x.device
    needed = [(h, (n, size)), (w_ih, (rows, i)), (w_hh, (rows, size))]
    optional = [(c, (n, size)), (b_ih, (rows,)), (b_hh, (rows,))]
    for t, shape in needed + [(t, shape) for t, shape in optional if t is not None]:
        if not _is_plain(t) or t.shape != shape or t.dtype is not dtype or t.device != device:
            return False
        # Autograd refuses to save these; torch.nn may get by without.
        if t.is_inference() and torch.is_grad_enabled():
            return False
    return True


def check_cell(
    name: str,
    gates: int,
    size: int,
    x: Tensor,
    states: Sequence[tuple[str, Any]],
    weights: Sequence[Any],
) -> None:
    """Check of a step what torch.nn's own cells do not, which run it next.

    They read past the end of a state whose rank is not the input's, and repeat a weight or a bias
    that has one row, or one element, for many.

    Args:
        name: of the cell, for messages
        gates: how many times as many rows as hidden units the weights have
        size: of the hidden state
        x: (N, I) or (I,)
        states: (N, H) or (H,), each after its name
        weights: w_ih, w_hh, b_ih, b_hh

    Raises:
        ValueError: if a state has not the input's rank
        RuntimeError: if a weight or a bias has not the shape that goes with the hidden size
    """
    rank = x.dim()
    for label, state in states:
        if isinstance(state, Tensor) and state.dim() != rank:
            raise ValueError(
                f"{name}: Expected {label} to be {rank}D as the input is, "
                f"got {state.dim()}D instead"
            )
    if transforms.jit_traces():  # to which sizes are no numbers
        return
    w_ih, w_hh, b_ih, b_hh = weights
    rows = gates * size
    if (
        w_hh.shape == (rows, size)
        and w_ih.dim() == 2
        and len(w_ih) == rows
        and (b_ih is None or b_ih.shape == (rows,))
        and (b_hh is None or b_hh.shape == (rows,))
    ):
        return  # the common case, in a microsecond
    for label, w in (("weight_ih", w_ih), ("weight_hh", w_hh)):
        if w.dim() != 2:
            raise RuntimeError(f"{name}: {label} should be 2D, got {w.dim()}D")
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        ("weight_ih", w_ih, (rows, w_ih.shape[1])),
        ("weight_hh", w_hh, (rows, size)),
    ]
    expected += [(n, b, (rows,)) for n, b in (("bias_ih", b_ih), ("bias_hh", b_hh))]
    for label, t, shape in expected:
        if t is not None and t.shape != shape:
            raise RuntimeError(f"{name}: {label} should be {shape}, got {tuple(t.shape)}")

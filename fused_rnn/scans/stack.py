"""Stacks of layers made of scans, and single steps: what runs once the operands are known to fit.

Layers, directions, dropout and packing live here; the functions and the modules on top of it differ
only in what they do about operands that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn.functional import dropout as drop

from fused_rnn.backends import Inputs, Problem, Selection, note, select, select_step, transforms
from fused_rnn.cells import CELLS
from fused_rnn.scans import autograd
from fused_rnn.scans.checks import Row, Stack, cell_fits, check_cell
from fused_rnn.scans.marks import takes_marks
from fused_rnn.scans.noise import Noise, Whose, inputs_for, operands
from fused_rnn.variants import cell_of, variant_of

__all__ = [
    "CELL_MISFIT",
    "TORCH_CELLS",
    "TORCH_LAYERS",
    "choose",
    "initial_states",
    "outside_the_graph",
    "run_cell",
    "run_stack",
    "torch_cell",
    "torch_stack",
]

# torch's own operators, by the names of CELLS.
TORCH_LAYERS = {name: getattr(_VF, name) for name in CELLS}
TORCH_CELLS = {name: getattr(_VF, f"{name}_cell") for name in CELLS}

# Said of a call that went to torch.nn since the operands do not plainly fit together.
CELL_MISFIT = "its operands are not plain tensors of one dtype and device that fit together"


def run_cell(
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    layer: int = 0,
) -> tuple[Tensor, Tensor | None] | None:
    """Run one step, or return None where its operands do not plainly fit together.

    A step is short enough for checks to be felt, and a kernel that checks its operands anyway need
    not wait for ours: they are made where it has failed, to tell whose mistake it was.

    Shape:
        - x: (N, I); h, c and the results: (N, H)
    """
    try:
        training = torch.is_grad_enabled() and (
            w_ih.requires_grad
            or w_hh.requires_grad
            or x.requires_grad
            or h.requires_grad
            or (c is not None and c.requires_grad)
            or (b_ih is not None and b_ih.requires_grad)
            or (b_hh is not None and b_hh.requires_grad)
        )
        transform = transforms.active()
        if transform is transforms.TRACING:  # sizes are not numbers then
            return None
        n, i = x.shape
        size = h.shape[1]
        problem = (cell, x.device, x.dtype, 1, n, i, size, 0, False, training, transform)
        selection = select_step(problem)
        backend = selection.backend
        if backend is None:
            state = torch_cell(cell, x, h, c, w_ih, w_hh, b_ih, b_hh)
        elif backend.checks_operands:
            state = autograd.step(backend, cell, training, x, h, c, w_ih, w_hh, b_ih, b_hh)
        elif cell_fits(cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
            dense = (t if t is None else t.contiguous() for t in (x, h, c, w_ih, w_hh, b_ih, b_hh))
            state = autograd.step(backend, cell, training, *dense)
        else:
            return None
    except Exception:
        # Operands that do not fit may raise anything on the way here (no tensor, no such dim):
        # torch says it better. Those that fit lose nothing.
        if cell_fits(cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
            raise
        return None
    note(problem, selection, layer)
    return state


def torch_cell(
    cell: str, x: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Run one step by torch's own operator.

    Raises:
        ValueError, RuntimeError: if the ranks or the weights' shapes do not fit
    """
    if x.dim() != 2:
        raise ValueError(f"{cell}_cell: Expected input to be 2D, got {x.dim()}D instead")
    states = (("hx", h),) if c is None else (("hx[0]", h), ("hx[1]", c))
    check_cell(f"{cell}_cell", CELLS[cell].gates, weights[1].shape[-1], x, states, weights)
    if CELLS[cell].has_cell_state:
        return TORCH_CELLS[cell](x, (h, c), *weights)
    return TORCH_CELLS[cell](x, h, *weights), None


@torch._disable_dynamo  # type: ignore[attr-defined]
def outside_the_graph(run: Callable[..., Any], *args: Any) -> Any:
    """Run with a break of the graph around, as TorchDynamo makes it for every layer of torch.nn.

    Traced into, the layers would be unrolled to thousands of nodes.
    """
    return run(*args)


def run_stack(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    batch_sizes: Tensor | None,
    n: int,
    dropout: float,
    training: bool,
    backends: Sequence[Any] | None = None,
    scan: Callable[..., tuple[Tensor, Tensor, Tensor | None]] = autograd.scan,
    cut: bool = False,
    recompute: bool = False,
    whose: Whose | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run layers on layers of scans over operands that are known to fit together.

    Args:
        backends: what ``scan`` runs each layer on; by default it is chosen here
        scan: runs one layer in one direction, as :func:`fused_rnn.scans.autograd.scan` does; only
            that one gives way to :func:`fused_rnn.scans.autograd.scan_both`
        cut, recompute: see :func:`choose`
        whose: what variants have to know of the order of sequences, where it is not the user's
        masks: recurrent dropout's (L*D, N, R), where they are not to be drawn

    Shape:
        - x: (T, N, I), or (rows, I) for packed data
        - h0: (L*D, N, R), c0: (L*D, N, H), or None for zeros
        - results: y (T, N, D*R) | (rows, D*R), h_n and c_n as h0 and c0
    """
    together: list[int] = []
    if backends is None:
        both = stack.directions == 2 and scan is autograd.scan
        operands_of = stack, x, h0, c0, rows, batch_sizes, n
        backends, together = choose(*operands_of, both=both, cut=cut, recompute=recompute)
    if backends is None:
        return torch_stack(stack, x, h0, c0, rows, batch_sizes, n, dropout, training)
    x = x.contiguous()
    h0s, c0s = _initial_states(stack, x, h0, c0, n)
    variant = variant_of(stack.cell)
    noise = None if variant is None else Noise(variant, stack, x, n, training, whose, masks)
    h_n: list[Tensor] = []
    c_n: list[Tensor] = []
    y: Any  # what each direction gave out
    for layer, backend in enumerate(backends):
        if layer and dropout and training:
            x = drop(x, dropout, True)
        if layer in together:
            both_inputs = tuple(
                Inputs(x, h0s[k], c0s[k], *operands(rows[k])) for k in (2 * layer, 2 * layer + 1)
            )
            results = autograd.scan_both(backend, stack.cell, both_inputs, batch_sizes)
            y, h, c = zip(*results, strict=True)
            h_n += h
            c_n += c
        else:
            y = []
            for reverse in (False, True)[: stack.directions]:
                k = len(h_n)
                inputs = inputs_for(x, h0s[k], c0s[k], rows[k], k, variant, noise)
                y_k, h_k, c_k = scan(backend, stack.cell, inputs, batch_sizes, reverse)
                y.append(y_k)
                h_n.append(h_k)
                c_n.append(c_k)
        x = y[0] if stack.directions == 1 else torch.cat(y, -1)
    return x, _join(h_n), None if c_n[0] is None else _join(c_n)


def choose(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    batch_sizes: Tensor | None,
    n: int,
    every_state: bool = False,
    marked: bool = False,
    both: bool = False,
    cut: bool = False,
    recompute: bool = False,
) -> tuple[list[Any] | None, list[int]]:
    """Return a backend for each layer, or None if one has none: torch's operator runs them all.

    Args:
        every_state: whether they have to return the states of every step
        marked: whether x is padded, with marks; then None says that not all have kernels for that
        both: whether the two directions of a layer may be scanned at once
        cut: whether the sequences are what lengths and resets have left of a padded batch
        recompute: whether ``scan`` makes anew in backward what it needs

    Returns:
        the backends, and the layers whose directions are to be scanned at once
    """
    cell, i, h, p, layers, directions, _ = stack
    steps = x.shape[0] if batch_sizes is None else len(batch_sizes)
    ragged, transform = batch_sizes is not None, transforms.active()
    grad = torch.is_grad_enabled()
    needs = grad and any(t is not None and t.requires_grad for t in (x, h0, c0))
    choices = []
    for layer in range(layers):
        of_layer = chain.from_iterable(rows[layer * directions : (layer + 1) * directions])
        needs = needs or (grad and any(w.requires_grad for w in of_layer))
        problem = Problem(
            cell, x.device, x.dtype, steps, n, i, h, p, ragged, needs, transform, every_state,
            marked, cut, recompute, layers, directions, stack.input_size,
        )  # fmt: skip
        choices.append((problem, select(problem)))
        i = (p or h) * directions
    backends = [selection.backend for _, selection in choices]
    if marked and not all(takes_marks(backend, x.device, p > 0) for backend in backends):
        return None, []
    by_torch = None in backends
    together: list[int] = []
    for layer, (problem, selection) in enumerate(choices):
        if by_torch and selection.backend is not None:
            reason = "torch.nn runs all layers or none, and another one needs it"
            refusals = {**selection.refusals, selection.backend.name: reason}
            selection = Selection(None, refusals)
        note(problem, selection, layer, directions, both)
        if both:
            takes_both = getattr(selection.backend, "takes_both", None)
            if takes_both is not None and takes_both(problem):
                together.append(layer)
    return None if by_torch else backends, together


def _initial_states(
    stack: Stack, x: Tensor, h0: Tensor | None, c0: Tensor | None, n: int
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    h, p, states = stack.hidden_size, stack.proj_size, stack.layers * stack.directions
    has_c = cell_of(stack.cell).has_cell_state
    # Nobody writes to an initial state, so one tensor of zeros does for all.
    if h0 is None:
        h0s: Sequence[Tensor] = (x.new_zeros(n, p or h),) * states
        c0s: Sequence[Tensor | None] = h0s if not p else (x.new_zeros(n, h),) * states
    else:
        h0s = [state.contiguous() for state in h0.unbind(0)]
        c0s = [state.contiguous() for state in c0.unbind(0)] if has_c else ()
    return h0s, c0s if has_c else (None,) * states


def _join(states: list[Tensor]) -> Tensor:
    return states[0].unsqueeze(0) if len(states) == 1 else torch.stack(states)


def initial_states(
    stack: Stack, x: Tensor, n: int, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return h (L*D, N, R) and c (L*D, N, H), zeros where there is no h."""
    if h is not None:
        return h, c
    k, size = stack.layers * stack.directions, stack.hidden_size
    h = x.new_zeros(k, n, stack.proj_size or size)
    return h, x.new_zeros(k, n, size) if cell_of(stack.cell).has_cell_state else None


def torch_stack(
    stack: Stack,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    batch_sizes: Tensor | None,
    n: int,
    dropout: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run layers on layers by torch's own operator; see :func:`run_stack`."""
    has_c = CELLS[stack.cell].has_cell_state
    h0, c0 = initial_states(stack, x, n, h0, c0)
    hx = (h0, c0) if has_c else h0
    flat = list(chain.from_iterable(rows))
    how = stack.bias, stack.layers, dropout, training, stack.directions == 2
    operator = TORCH_LAYERS[stack.cell]
    if batch_sizes is None:
        y, h_n, *c_n = operator(x, hx, flat, *how, False)
    else:
        y, h_n, *c_n = operator(x, batch_sizes, hx, flat, *how)
    return y, h_n, c_n[0] if has_c else None

"""The reference backend: a scan over the equations of ``cells.py``, differentiated by autograd.

Slow, and right for every dtype, device and transform that plain torch is right for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends import ANEW, BEGINS, DEAD, AnyInputs, Marked, Problem, inputs_of
from fused_rnn.cells import CELLS, State, Weights
from fused_rnn.variants import VariantWeights, cell_of

name = "reference"
checks_operands = False

# What makes of a step's input, the state before it and its time the state after it.
Step = Callable[[Tensor, State, int], State]

# Kernels keep states and sums of these in float32, and so does the specification.
_HALF = (torch.float16, torch.bfloat16)


def available() -> str | None:
    """Return None: plain torch is always there."""
    return None


def supports(problem: Problem) -> str | None:
    """Return None: every problem is taken."""
    return None


def forward(
    cell: str, inputs: AnyInputs, batch_sizes: Tensor | None, reverse: bool, training: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Scan one layer in one direction; nothing is saved, the result carries autograd's own graph.

    Shape:
        - y: (T, N, R), (rows, R) for packed data, or (N, R) for a single step
        - h_n: (N, R), c_n: (N, H) or None
    """
    dtype = inputs.x.dtype
    if inputs.x.dim() == 2 and batch_sizes is None:
        inputs = _widened(inputs)
        state = _after(_step_of(cell, inputs), inputs.x, State(inputs.h0, inputs.c0), 0)
        y = state.h
    else:
        inputs = _widened(inputs)
        steps, state = scan_steps(
            partial(_after, _step_of(cell, inputs)), inputs, batch_sizes, reverse
        )
        y = in_time([step.h for step in steps], batch_sizes)
    return y.to(dtype), *_final(state, dtype), ()


def scan_states(
    cell: str, inputs: AnyInputs, batch_sizes: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scan one layer of a cell with a cell state, and return every step's.

    Shape:
        - y, h_n, c_n as in :func:`forward`; c: (T, N, H), or (rows, H) for packed data
    """
    dtype = inputs.x.dtype
    inputs = _widened(inputs)
    steps, state = scan_steps(partial(_after, _step_of(cell, inputs)), inputs, batch_sizes, reverse)
    y = in_time([step.h for step in steps], batch_sizes)
    c = in_time([step.c for step in steps if step.c is not None], batch_sizes)
    h_n, c_n = _final(state, dtype)
    return y.to(dtype), h_n, c_n, c.to(dtype)  # type: ignore[return-value]  # with a cell state


def scan_marked(
    cell: str, inputs: AnyInputs, marked: Marked, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Scan one layer over padded sequences, every step for all of them.

    Shape:
        - y: (T, N, R), h_n: (N, R), c_n: (N, H) or None, c: (T, N, H) or None
    """
    dtype = inputs.x.dtype
    marks = marked.marks.unsqueeze(2)
    live = marks != DEAD
    # What is past an end may be anything, and a gradient of zero times NaN is NaN.
    inputs = _widened(inputs._replace(x=torch.where(live, inputs.x, 0)))
    given, step = State(inputs.h0, inputs.c0), _step_of(cell, inputs)
    anew = State(*(0 if a is None else a.to(inputs.x.dtype) for a in (marked.h, marked.c)))
    state, times, states = given, range(len(marks)), []
    for t in reversed(times) if reverse else times:
        before = _where(marks[t] == BEGINS, given, _where(marks[t] == ANEW, anew, state))
        after = _after(step, inputs.x[t], before, t)
        state = _where(live[t], after, state)
        states.append(_where(live[t], after, State(0, 0)))
    h, every_c = zip(*states[::-1] if reverse else states, strict=True)
    c = None if state.c is None else torch.stack(every_c).to(dtype)
    return torch.stack(h).to(dtype), *_final(state, dtype), c


def _final(state: State, dtype: torch.dtype) -> State:
    """Return the final states as tensors of their own.

    The last step's are saved for its derivative, and they are given out to be changed.
    """
    return State(*(s if s is None else s.to(dtype, copy=True) for s in state))


def _where(condition: Tensor, state: State, other: State) -> State:
    c = None if state.c is None or other.c is None else torch.where(condition, state.c, other.c)
    return State(torch.where(condition, state.h, other.h), c)


def _widened(inputs: AnyInputs) -> AnyInputs:
    if inputs.x.dtype not in _HALF:
        return inputs
    return inputs_of([t if t is None or t.dtype not in _HALF else t.float() for t in inputs])


def _step_of(cell: str, inputs: AnyInputs) -> tuple[Any, ...]:
    """Return a cell's step with what it takes of the operands, for :func:`_after`."""
    if len(inputs) == len(Weights._fields) + 3:
        return CELLS[cell].step, Weights(*inputs[3:])
    return cell_of(cell).step, inputs[3:]


def _after(step: tuple[Any, ...], x: Tensor, state: State, t: int) -> State:
    """Return the state after a step, given its input, the state before it and its time."""
    of_cell, weights = step
    if isinstance(weights, Weights):
        return of_cell(x, state, weights)
    *others, mask, draws = weights
    # Of a packed batch the first sequences are those that have this step.
    rows = [m if m is None else m[: x.shape[0]] for m in (mask, draws)]
    return of_cell(x, state, VariantWeights(*others, *rows, t))


def in_time(steps: list[Tensor], batch_sizes: Tensor | None) -> Tensor:
    """Return what every step left as y (T, N, R), or (rows, R) for packed data."""
    return torch.stack(steps) if batch_sizes is None else torch.cat(steps)


def scan_steps(
    step: Step, inputs: AnyInputs, batch_sizes: Tensor | None, reverse: bool
) -> tuple[list[State], State]:
    """Return the state after every step, in the order of time, and the final one."""
    scan = _scan_dense if batch_sizes is None else partial(_scan_packed, sizes=batch_sizes.tolist())
    states, final = scan(step, inputs, reverse)
    return states[::-1] if reverse else states, final


def _scan_dense(step: Step, inputs: AnyInputs, reverse: bool) -> tuple[list[State], State]:
    state = State(inputs.h0, inputs.c0)
    steps = list(enumerate(inputs.x.unbind(0)))
    states = []
    for t, x in reversed(steps) if reverse else steps:
        state = step(x, state, t)
        states.append(state)
    return states, state


def _scan_packed(
    step: Step, inputs: AnyInputs, reverse: bool, sizes: list[int]
) -> tuple[list[State], State]:
    first = State(inputs.h0, inputs.c0)
    steps = list(enumerate(inputs.x.split(sizes)))
    states, ended = [], []
    # Sequences stand longest first: forwards the last rows drop out, in reverse they come in.
    state = _rows(first, 0, sizes[-1] if reverse else sizes[0])
    for t, x in reversed(steps) if reverse else steps:
        running, n = len(state.h), len(x)
        if n < running:
            ended.append(_rows(state, n, running))
            state = _rows(state, 0, n)
        elif n > running:
            state = _join([state, _rows(first, running, n)])
        state = step(x, state, t)
        states.append(state)
    return states, _join([state, *reversed(ended)])


def _rows(state: State, start: int, stop: int) -> State:
    return State(*(s if s is None else s[start:stop] for s in state))


def _join(states: list[State]) -> State:
    if len(states) == 1:
        return states[0]
    return State(*(s[0] if s[0] is None else torch.cat(s) for s in zip(*states, strict=True)))


def saved(cell: str, inputs: AnyInputs) -> tuple[Tensor, ...]:
    """Return nothing: backward begins anew."""
    return ()


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
    """Differentiate a scan by running it again; differentiable itself where grad mode is on.

    Returns:
        The gradients in the order of :class:`Inputs`, None where ``needs`` is False.
    """

    def run(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if dc is None:
            return forward(cell, inputs_of(tensors), batch_sizes, reverse, True)[:3]
        return scan_states(cell, inputs_of(tensors), batch_sizes, reverse)

    return _differentiate(run, inputs, needs, (dy, dh_n, dc_n, dc))


def marked_forward(
    cell: str, inputs: AnyInputs, marked: Marked, reverse: bool, training: bool, every_c: bool
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...], Tensor | None]:
    """See :meth:`fused_rnn.backends.Backend.marked_forward`."""
    y, h_n, c_n, c = scan_marked(cell, inputs, marked, reverse)
    return y, h_n, c_n, (), c if every_c else None


def marked_backward(
    cell: str,
    inputs: AnyInputs,
    marked: Marked,
    reverse: bool,
    y: Tensor,
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
    dc: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Differentiate :func:`scan_marked` as :func:`backward` does a scan.

    Returns:
        The gradients in the order of :class:`Inputs`, then of the state after a reset.
    """

    def run(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        *operands, h, c = tensors
        return scan_marked(cell, inputs_of(operands), Marked(marked.marks, h, c), reverse)

    return _differentiate(run, (*inputs, marked.h, marked.c), needs, (dy, dh_n, dc_n, dc))


def _differentiate(
    run: Callable[..., tuple[Tensor | None, ...]],
    operands: Sequence[Tensor | None],
    needs: tuple[bool, ...],
    given: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the operands' gradients, given those of what ``run`` makes of them."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Where one input was computed from another (h0 from x, say), autograd.grad would follow
        # that path too and count it a second time; an alias of each input ends it here.
        aliases = list(map(_alias, operands, needs))
        used = [(r, d) for r, d in zip(run(*aliases), given) if d is not None]  # noqa: B905 (no c)
        gradients = iter(
            torch.autograd.grad(
                [r for r, _ in used],
                [t for t, need in zip(aliases, needs, strict=True) if need],
                [d for _, d in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(next(gradients) if need else None for need in needs)


def _alias(tensor: Tensor | None, need: bool) -> Tensor | None:
    if tensor is None or not need:
        return tensor
    alias = tensor.view_as(tensor)
    return alias if alias.requires_grad else alias.requires_grad_()

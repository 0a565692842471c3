"""What is being done to torch itself while a layer runs: transforms, modes, tracing.

A kernel computes plain numbers. Where torch calls are being batched, differentiated forwards,
recast, traced or intercepted, only code made of torch's own operators does the right thing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch._C import _is_any_autocast_enabled, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import CInterpreter, TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "BY_HAND",
    "COUNTING",
    "ONLY_REFERENCE",
    "TORCH_FUNC",
    "active",
    "constant_in_graphs",
    "differentiates_forward",
    "exporting",
    "jit_traces",
    "may_break",
    "onnx_exports",
    "untraced",
]

Function = TypeVar("Function", bound=Callable[..., Any])

VMAP = "vmap"
FORWARD_AD = "forward-mode AD"
AUTOCAST = "autocast"
TORCH_FUNC = "a torch.func transform"
TRACING = "torch.jit.trace"
COUNTING = "a FlopCounterMode"

# What may be active around a node of autograd's that has no rule for anything else.
BY_HAND = (None, AUTOCAST, COUNTING)

# torch's own recurrent operators have no rule for these, not all of them and not for every dtype.
ONLY_REFERENCE = frozenset({VMAP, FORWARD_AD})


def constant_in_graphs(function: Function) -> Function:
    """Have TorchDynamo call a function while it traces, and take the result for a constant.

    What :func:`torch.compiler.assume_constant_result` does, which imports TorchDynamo for it: that
    takes seconds, and importing fused_rnn shall not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def exporting() -> bool:
    """Return whether torch.export is at work.

    Not torch's own function: TorchDynamo of torch 2.11 takes that for true wherever it traces.
    """
    return torch.compiler.is_exporting()


def may_break() -> bool:
    """Return whether TorchDynamo, which traces, may leave the graph: without ``fullgraph=True``.

    For functions that are :func:`constant_in_graphs`, which it calls while it traces.
    """
    tracer = getattr(
        sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslator", None
    )
    try:
        tracing = tracer.current_tx()
        return not (tracing.one_graph or tracing.error_on_graph_break)
    except AttributeError:  # it is not tracing, or does not say: then a break might be an error
        return False


@constant_in_graphs
def jit_traces() -> bool:
    """Return whether torch.jit.trace is at work, to which sizes are not numbers."""
    return _is_tracing()


@contextmanager
def untraced() -> Iterator[None]:
    """Have torch.jit.trace, which may be at work, look away: sizes are numbers again."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@constant_in_graphs
def onnx_exports() -> bool:
    """Return whether torch.onnx.export is at work, by either of its ways."""
    return (exporting() or jit_traces()) and torch.onnx.is_in_onnx_export()


@constant_in_graphs
def active() -> str | None:
    """Return the name of what is active, or None; on the path of every call, so one C call each."""
    # Not peek_interpreter_stack, whose result TorchDynamo takes for something else than None where
    # it compiles this very function, after a break of the graph.
    stack = get_interpreter_stack()
    if stack:
        return _functorch(stack)
    if forward_ad._current_level >= 0:
        return FORWARD_AD
    if _is_any_autocast_enabled():
        return AUTOCAST
    if _len_torch_dispatch_stack():
        return COUNTING if _is_only_counted() else "a TorchDispatchMode"
    if _is_tracing():
        return TRACING
    return None


@constant_in_graphs
def differentiates_forward() -> bool:
    """Return whether forward-mode AD is active, under whatever else is."""
    return forward_ad._current_level >= 0 or any(
        interpreter.key() == TransformType.Jvp for interpreter in get_interpreter_stack() or ()
    )


def _is_only_counted() -> bool:
    """Return whether no mode is active but counters of operations, which take any op as it is."""
    counter = getattr(sys.modules.get("torch.utils.flop_counter"), "_FlopCounterMode", None)
    return all(type(mode) is counter for mode in _get_current_dispatch_mode_stack())


def _functorch(stack: list[CInterpreter]) -> str:
    kinds = {interpreter.key() for interpreter in stack}
    if TransformType.Vmap in kinds:
        return VMAP
    if TransformType.Jvp in kinds:
        return FORWARD_AD
    return TORCH_FUNC

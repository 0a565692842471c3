"""Where all steps of a scan are one launch on a GPU, and how they lie there.

Whether they may be is the environment's switch, or what was told to the ops before (``ways.py``).
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fused_rnn.backends.base import Problem

__all__ = ["ops", "takes_both", "tell_tf32", "words"]

_PERSISTENT, _STEP_BY_STEP = "persistent", "step by step: "  # what the op's answers begin with


def ops() -> Any:
    """Return the ops that tell of plans, and are told of them."""
    return torch.ops.fused_rnn


def _is_wanted() -> bool:
    return os.environ.get("FUSED_RNN_PERSISTENT") == "1"


def tell_tf32(x: Tensor, regardless: bool = False) -> None:
    """Tell persistent kernels what torch allows its matrix products, which C++ cannot ask.

    Args:
        x: an operand of the products
        regardless: whether to tell it though the environment does not want these kernels
    """
    if x.is_cuda and x.dtype is torch.float32 and (regardless or _is_wanted()):
        ops().persistent_tf32(_tf32())


def _tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def words(problem: Problem, together: bool, regardless: bool = False) -> str:
    """Return how the steps of a scan lie on a GPU; see :func:`~fused_rnn.backends.native.plan`."""
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    tell_tf32(like)
    forward, backward = (
        _pass(like, problem, backward, together, regardless) for backward in (False, True)
    )
    if problem.states and problem.cell == "lstm":
        # A persistent inference keeps the last c alone, and no backward takes the others' gradient.
        if not problem.training and forward.startswith(_PERSISTENT):
            return _STEP_BY_STEP + "no persistent kernel keeps every step's c in inference"
        if backward.startswith(_PERSISTENT):
            backward += "; step by step where every step's c has a gradient"
    if not problem.training or forward == backward:
        return forward
    return f"forward {forward}; backward {backward}"


def _pass(like: Tensor, problem: Problem, backward: bool, together: bool, regardless: bool) -> str:
    sizes = problem.T, problem.N, problem.H, problem.P
    scan = like, problem.cell, *sizes, backward, problem.training
    if regardless:
        return ops().persistent_plan(*scan, 2 if together else 1, True)
    alone = ops().persistent_plan(*scan)
    if not together:
        return alone
    both = ops().persistent_plan(*scan, 2)
    if both.startswith(_PERSISTENT):
        return both
    if alone.startswith(_PERSISTENT):
        alone += f"; one direction after the other: {both.removeprefix(_STEP_BY_STEP)}"
    return alone


def takes_both(problem: Problem, told: str = "") -> bool:
    """Return whether a pass over both directions has a plan on the problem's GPU.

    ``told`` is the way that the ops were told, or else the environment has its say.
    """
    if not (told or _is_wanted()):
        return False
    return _has_plan(problem, problem.dtype is torch.float32 and _tf32(), told)


@lru_cache(maxsize=4096)
def _has_plan(problem: Problem, tf32: bool, told: str) -> bool:
    """Return whether one of the passes has one; another runs one direction after the other.

    ``tf32`` and ``told`` are there for what is remembered: they are what the kernels are told.
    """
    like = torch.empty(0, dtype=problem.dtype, device=problem.device)
    tell_tf32(like)
    sizes, training = (problem.T, problem.N, problem.H, problem.P), problem.training
    plan = ops().persistent_plan
    return any(
        plan(like, problem.cell, *sizes, backward, training, 2).startswith(_PERSISTENT)
        for backward in ((False, True) if training else (False,))
    )

"""What the ops count for in :class:`torch.utils.flop_counter.FlopCounterMode`.

As torch counts: the matrix products alone, a multiplication and an addition each two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

from fused_rnn.cells import CELLS

__all__ = ["tell_counter"]

_COUNTER = "torch.utils.flop_counter"
# A tensor's shape, None where there is none: what torch hands to a formula.
Shape = Sequence[int]


def _forward(x: Shape, w_ih: Shape, w_hh: Shape, w_hr: Shape | None = None) -> int:
    """Return the operations of one layer in one direction, x (T, N, I) | (rows, I) | (N, I)."""
    return 2 * prod(x[:-1]) * (prod(w_ih) + prod(w_hh) + _projection(w_hr))


def _backward(
    x: Shape, h0: Shape, w_ih: Shape, w_hh: Shape, w_hr: Shape | None, needs: Sequence[Any]
) -> int:
    """Return those of its backward.

    Args:
        needs: whether the gradients are wanted of x, of a state that is given (h0, say), of w_ih,
            of w_hh and of w_hr
    """
    dx, dh0, dw_ih, dw_hh, dw_hr = map(bool, needs)
    rows = prod(x[:-1])
    # From step to step; beyond the first one only where somebody asks for it.
    carried = rows if dh0 else rows - h0[0]
    return 2 * (
        rows * prod(w_ih) * (dx + dw_ih)
        + prod(w_hh) * (carried + rows * dw_hh)
        + rows * _projection(w_hr) * (1 + dw_hr)
    )


def _projection(w_hr: Shape | None) -> int:
    return 0 if w_hr is None else prod(w_hr)


def _bits(mask: int, *places: int) -> list[int]:
    return [mask >> place & 1 for place in places]


def _lstm_forward(x: Shape, h0: Shape, c0: Shape, *others: Any, **_: Any) -> int:
    w_ih, w_hh, _b_ih, _b_hh, w_hr = others[:5]
    return _forward(x, w_ih, w_hh, w_hr)


def _lstm_backward(x: Shape, h0: Shape, c0: Shape, *others: Any, **_: Any) -> int:
    w_ih, w_hh, _b_ih, _b_hh, w_hr = others[:5]
    return _backward(x, h0, w_ih, w_hh, w_hr, _bits(others[12], 0, 1, 3, 4, 7))


def _simple_forward(x: Shape, h0: Shape, w_ih: Shape, w_hh: Shape, *_: Any, **__: Any) -> int:
    return _forward(x, w_ih, w_hh)


def _simple_backward(x: Shape, h0: Shape, w_ih: Shape, w_hh: Shape, *others: Any, **_: Any) -> int:
    return _backward(x, h0, w_ih, w_hh, None, [*_bits(others[8], 0, 1, 2, 3), False])


def _both_forward(cell: str, x: Shape, *others: Any, **_: Any) -> int:
    # h0, c0, w_ih, w_hh and two biases of either direction
    return sum(_forward(x, others[k + 2], others[k + 3]) for k in (0, 6))


def _both_backward(cell: str, x: Shape, *others: Any, **_: Any) -> int:
    mask = others[23]
    return sum(
        _backward(
            x, others[k], others[k + 2], others[k + 3], None,
            [*_bits(mask, 0, k + 1, k + 3, k + 4), False],
        )
        for k in (0, 6)
    )  # fmt: skip


def _marked_forward(cell: str, x: Shape, h0: Shape, c0: Any, *weights: Any, **_: Any) -> int:
    # Every step of every sequence: what a kernel does that reads no mark in advance.
    return _forward(x, weights[0], weights[1])


def _marked_backward(cell: str, x: Shape, h0: Shape, c0: Any, *others: Any, **_: Any) -> int:
    dx, dh0, dw_ih, dw_hh, danew = _bits(others[14], 0, 1, 3, 4, 7)
    return _backward(x, h0, others[0], others[1], None, [dx, dh0 or danew, dw_ih, dw_hh, False])


def _node_forward(name: str, cell: str, x: Shape, *others: Any, **_: Any) -> int:
    _h0, _c0, w_ih, w_hh, _b_ih, _b_hh, w_hr = others[:7]
    return _forward(x, w_ih, w_hh, w_hr)


def _node_backward(name: str, cell: str, x: Shape, *others: Any, **_: Any) -> int:
    h0, _c0, w_ih, w_hh, _b_ih, _b_hh, w_hr = others[:7]
    saved, needs = others[13], others[-1]
    wanted = needs[0], needs[1] or needs[8], needs[3], needs[4], needs[7]
    # What nobody has saved is made again.
    again = 0 if prod(saved) else _forward(x, w_ih, w_hh, w_hr)
    return again + _backward(x, h0, w_ih, w_hh, w_hr, wanted)


def _variant_forward(name: str, cell: str, x: Shape, *others: Any, **_: Any) -> int:
    return _node_forward(name, cell, x, *others[:7])


def _variant_backward(name: str, cell: str, x: Shape, *others: Any, **_: Any) -> int:
    *of_inputs, anew_h, anew_c = others[-1]
    # Without what a plain node has not: three operands, and their gradients.
    needs = *of_inputs[:8], anew_h, anew_c
    return _node_backward(name, cell, x, *others[:7], *others[10:-1], needs)


def _quantized_forward(cell: str, x: Shape, h0: Shape, c0: Any, *others: Any, **_: Any) -> int:
    w_ih, _s_ih, w_hh, _s_hh, _b_ih, _b_hh, w_hr = others[:7]
    return _forward(x, w_ih, w_hh, w_hr)


def _variant_scan(
    cell: str, gates_x: Shape, h0: Shape, c0: Any, w_hh: Shape, b_ih: Any, b_hh: Any, w_hr: Any,
    *_: Any,
) -> int:  # fmt: skip
    # One product with each weight, in either direction; torch counts those of its own around it.
    return 2 * gates_x[0] * (prod(w_hh) + _projection(w_hr))


_FORMULAS: dict[str, tuple[Callable[..., int], Callable[..., int]]] = {
    **{cell: (_simple_forward, _simple_backward) for cell in CELLS},
    "lstm": (_lstm_forward, _lstm_backward),
    "bidirectional": (_both_forward, _both_backward),
    "marked": (_marked_forward, _marked_backward),
    "layer": (_node_forward, _node_backward),
    "variant": (_variant_forward, _variant_backward),
}


def _lstm_step(x: Shape, h0: Shape, c0: Shape, *weights: Any, **_: Any) -> int:
    return _forward(x, weights[0], weights[1])


_STEPS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(CELLS, _simple_forward),
    "lstm": _lstm_step,
}


def _register(counter: ModuleType) -> None:
    formulas = {
        f"{name}_{way}": formula
        for name, both in _FORMULAS.items()
        for way, formula in zip(("forward", "backward"), both, strict=True)
    }
    formulas.update((f"{name}_step", formula) for name, formula in _STEPS.items())
    formulas["quantized_forward"] = _quantized_forward
    formulas |= {"variant_scan": _variant_scan, "variant_scan_backward": _variant_scan}
    for name, formula in formulas.items():
        # Without the module for CUDA, or without any, there are not all of them.
        op = getattr(torch.ops.fused_rnn, name, None)
        if op is not None:
            counter.register_flop_formula(op)(partial(_without_results, formula))


def _without_results(formula: Callable[..., int], *args: Any, out_shape: Any, **others: Any) -> int:
    return formula(*args, **others)


class _WhenImported(MetaPathFinder):
    """Registers the formulas when somebody imports the counter."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)  # not to find itself
        try:
            spec = util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                run(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def tell_counter() -> None:
    """Tell torch's counter of operations what our ops count for."""
    if _COUNTER in sys.modules:
        _register(import_module(_COUNTER))
    else:
        # Not imported for it: it imports Triton, and takes longer than fused_rnn.
        sys.meta_path.insert(0, _WhenImported())

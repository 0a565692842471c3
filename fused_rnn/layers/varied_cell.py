"""Variants of the cells as cells: one step of a layer of one step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fused_rnn.backends import transforms
from fused_rnn.graph.compiled import run_stack_in_graph
from fused_rnn.layers.varied import MaybeVaried
from fused_rnn.scans.autocast import recast
from fused_rnn.scans.checks import Stack, check_weights, foreign, misfit
from fused_rnn.scans.noise import checked_mask, masks_for
from fused_rnn.scans.stack import run_stack
from fused_rnn.variants import extra_sizes, from_options

__all__ = ["VariedCell"]


class VariedCell(MaybeVaried, nn.RNNCellBase):
    """The part of LSTMCell, GRUCell and RNNCell that makes them variants of themselves."""

    _torch: ClassVar[type[nn.Module]]

    if TYPE_CHECKING:  # what DropIn has

        def _as_node(self, input: Any, hx: Any, **options: Any) -> Any | None: ...

    def _vary(self, cell: str, **options: Any) -> None:
        """Become the variant of a plain cell that these options make, with its own parameters."""
        variant = from_options(self._torch.__name__, cell, self.hidden_size, 0, **options)
        if not variant.changed:
            return
        self._name(variant)
        size, heads, rows = self.hidden_size, variant.num_heads, variant.gates * self.hidden_size
        anew: dict[str, tuple[int, ...]] = {
            name: (times * size,) for name, times in extra_sizes(variant).items()
        }
        if heads > 1:
            anew["weight_hh"] = heads, rows // heads, size // heads
        elif variant.input_forget:
            anew["weight_hh"] = rows, size
        if variant.input_forget:
            anew["weight_ih"] = rows, self.input_size
            anew |= dict.fromkeys(("bias_ih", "bias_hh") if self.bias else (), (rows,))
        like: Tensor = self.weight_ih
        for name, shape in anew.items():
            self.register_parameter(name, nn.Parameter(like.new_empty(shape)))
        if anew:  # else the weights for a seed are the plain cell's
            self.reset_parameters()

    def __prepare_scriptable__(self) -> nn.Module:
        if self._variants is not None:
            raise RuntimeError(
                f"torch.jit.script compiles torch.nn's cell, which has no {self._lacking()}"
            )
        return super().__prepare_scriptable__()  # type: ignore[misc]

    def recurrent_mask(self, n: int) -> Tensor | None:
        """Draw the mask of ``recurrent_dropout`` that a call takes, one for all steps.

        Args:
            n: how many sequences

        Returns:
            zeros and ones of shape :math:`(N, H_{out})`, in the weights' dtype and on their device;
            ``None`` in eval mode, or without ``recurrent_dropout``

        Examples::

            >>> rnn = fused_rnn.GRUCell(10, 20, recurrent_dropout=0.25)
            >>> hx, mask = torch.zeros(3, 20), rnn.recurrent_mask(3)
            >>> for x in torch.randn(5, 3, 10):
            ...     hx = rnn(x, hx, mask=mask)
        """
        variant = self._variant()
        if variant is None or not self._mask_expected():
            return None
        return masks_for(self.weight_ih, variant.recurrent_dropout, 1, n, self.hidden_size)[0]

    def _pair(self, hx: Any) -> tuple[Any, Any]:
        """Return h and c of an LSTM.

        Raises:
            TypeError: if they are not two tensors.
        """
        name = self._torch.__name__
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise TypeError(f"{name}: Expected hx to be a pair of tensors, got {type(hx).__name__}")
        for state in hx:
            if state is None:
                raise TypeError(f"{name}: Expected hx to be a pair of tensors, got None in it")
        return hx[0], hx[1]

    def _run_varied(self, input: Any, hx: Any, mask: Any) -> Any:
        """Run one step from hx, None for zeros, or return the node that it is to torch.fx.

        Raises:
            RuntimeError: if the operands do not fit, or no kernel takes them.
            TypeError, ValueError: if they are no tensors, or of other ranks.
        """
        node = self._as_node(input, hx, mask=mask)
        if node is not None:
            return node
        h, c = self._pair(hx) if self._torch is nn.LSTMCell and hx is not None else (hx, None)
        name = self._torch.__name__
        if self._variants is None:
            raise RuntimeError(f"{name}: mask goes with recurrent_dropout, which is off")
        states = ("the hidden state", h), ("the cell state", c)
        for label, t in (("input", input), *states, ("mask", mask)):
            if t is None and label != "input":
                continue
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}: {label} should be a tensor, got: {type(t).__name__}")
            if t.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected {label} to be 1D or 2D, got {t.dim()}D instead")
            if t.dim() != input.dim():
                raise ValueError(
                    f"{name}: Expected {label} to be {input.dim()}D as the input is, "
                    f"got {t.dim()}D instead"
                )
        batched = input.dim() == 2
        x, h0, c0, m = (
            t if not isinstance(t, Tensor) else t if t.dim() == 2 else t.unsqueeze(0)
            for t in (input, h, c, mask)
        )
        masks = None
        if mask is not None or self._mask_expected():
            shape = x.shape[0], self.hidden_size
            masks = checked_mask(name, m, shape, x, self._mask_expected()).unsqueeze(0)
        x, h0, c0 = (t if t is None else t.unsqueeze(0) for t in (x, h0, c0))
        result = self._scan(x, h0, c0, masks)
        if isinstance(result, str):
            lacking = self._lacking()
            raise RuntimeError(f"{name}: {result}, and torch.nn's own cell has no {lacking}")
        _, h_n, c_n = result
        after = [t.squeeze(0) if batched else t[0, 0] for t in (h_n, c_n) if t is not None]
        return after[0] if c_n is None else tuple(after)

    def _scan(self, x: Tensor, h0: Any, c0: Any, masks: Tensor | None) -> Any:
        """Run a layer of one step, or return the reason why these operands cannot be."""
        variant = self._variant()
        assert self._variants is not None
        assert variant is not None
        names = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if self.bias else ())]
        names += extra_sizes(variant)
        rows = [[getattr(self, name) for name in names]]
        cell = self._variants[0 if self.training else 1]
        stack = Stack(cell, self.input_size, self.hidden_size, 0, 1, 1, self.bias)
        any_dtype = transforms.active() == transforms.AUTOCAST
        n = x.shape[1]
        reason = foreign(x, h0, c0, rows)
        if reason is None:
            reason = misfit(stack, x, h0, c0, n, rows[0][0], any_dtype)
        if reason is not None:
            return reason
        check_weights(stack, rows, any_dtype, [names])
        run: Any = run_stack_in_graph if torch.compiler.is_compiling() else run_stack
        run = partial(run, masks=masks)
        if any_dtype:
            run = partial(recast, run)
        return run(stack, x, h0, c0, rows, None, n, 0.0, self.training)

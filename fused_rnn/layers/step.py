"""Single steps of a layer: ``step``, and calls whose sequence is one step long."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from fused_rnn.backends import TORCH, asked_for, only_rules, transforms
from fused_rnn.graph.compiled import run_stack_in_graph
from fused_rnn.scans.checks import Stack, expected_shapes
from fused_rnn.scans.noise import checked_mask
from fused_rnn.scans.stack import TORCH_LAYERS, run_cell, run_stack

__all__ = ["SingleSteps", "State"]

# The state of a layer: a tensor h, of an LSTM a pair h, c.
State = TypeVar("State")


class SingleSteps(nn.RNNBase, Generic[State]):
    """The part of LSTM, GRU and RNN that runs them one step at a time."""

    # On the class, for layers that were torch.nn's until convert() came by.
    learn_initial_state: bool = False

    if TYPE_CHECKING:  # what Beyond and Layers have

        def _states(self, hx: Any) -> tuple[Tensor | None, Tensor | None] | None: ...
        def _weights(self) -> list[list[Any]]: ...
        def _sizes(self) -> Stack: ...
        def _learned_for(self, n: int | None) -> Any: ...

        def _forward_dense(self, input: Any, hx: Any, run: Any) -> Any: ...
        def _mask_expected(self) -> bool: ...

        _variants: tuple[str, str] | None

    def step(
        self, input: Tensor, state: State | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        r"""Run all layers for one step: for input that arrives, or is generated, step by step.

        The weights are those of the sequence call, and its results are these, step by step. Between
        layers dropout is applied in training mode, with a fresh mask for each step. Forward hooks
        do not fire.

        Args:
            input: one step of the input
            state: the state after the previous step, as this method or the sequence call returned
                it; ``None`` for the initial one. Default: ``None``
            mask: that of ``recurrent_dropout`` in training mode, the same for all steps of a
                sequence: what :meth:`recurrent_mask` draws. Default: ``None``

        Shape:
            - input: :math:`(N, H_{in})` or :math:`(H_{in})`
            - state: as ``hx`` of the sequence call
            - mask: :math:`(\text{num\_layers}, N, H_{out})`, :math:`N` one for unbatched input
            - output: :math:`(N, H_{out})` or :math:`(H_{out})`, and the state in the shape it came

        Raises:
            RuntimeError: for a bidirectional layer, which begins at both ends; in training mode
                with ``recurrent_dropout`` and no mask.
            TypeError, ValueError: if ``input`` is no tensor, or of another rank.

        Examples::

            >>> rnn = fused_rnn.LSTM(10, 20, num_layers=2)
            >>> state = None
            >>> for x in torch.randn(5, 3, 10):
            ...     output, state = rnn.step(x, state)
        """
        if self.bidirectional:
            raise RuntimeError(
                "step: a bidirectional layer begins at both ends of the sequence, and needs all of "
                "it at once"
            )
        if not isinstance(input, Tensor):
            raise TypeError(f"step: input should be a tensor, got: {type(input).__name__}")
        rank = input.dim()
        if rank not in (1, 2):
            raise ValueError(f"step: input should be 1-D or 2-D, got {rank}-D")
        if state is None and self.learn_initial_state:
            state = self._learned_for(None if rank == 1 else input.shape[0])
        plain = self._variants is None and mask is None
        cells = plain and not torch.compiler.is_compiling()
        result = self._step_by_cells(input, state) if cells else None
        if result is not None:
            return result
        time = 1 if self.batch_first and rank == 2 else 0
        if self._mask_expected() or mask is not None:
            n = 1 if rank == 1 else input.shape[0]
            run = run_stack_in_graph if torch.compiler.is_compiling() else run_stack
            masked = partial(run, masks=self._checked_mask(mask, n, input))
            output, state = self._forward_dense(input.unsqueeze(time), state, masked)
            return output.squeeze(time), state
        # Not a call of the module: its hooks would fire for some steps and not for others.
        output, state = self.forward(input.unsqueeze(time), state)
        return output.squeeze(time), state

    def _checked_mask(self, mask: Any, n: int, x: Tensor) -> Tensor:
        """Return recurrent dropout's masks (L, N, R) for a step of x.

        Raises:
            RuntimeError: if there are none, or there is nothing to be dropped.
            TypeError, ValueError: if they are no tensor, or of another shape.
        """
        shape = self.num_layers, n, self.proj_size or self.hidden_size
        return checked_mask("step", mask, shape, x, self._mask_expected())

    def _forward_one_step(self, input: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Run a sequence of one step as such, or return None where it is not one, or does not fit.

        What is checked and chosen for a sequence takes longer than a step of few sequences.
        """
        if self.bidirectional or self._variants is not None or not isinstance(input, Tensor):
            return None
        rank = input.dim()
        # To a trace sizes are no numbers.
        if rank not in (2, 3) or input.is_nested or transforms.jit_traces():
            return None
        time = 1 if self.batch_first and rank == 3 else 0
        if input.shape[time] != 1:
            return None
        if rank == 3 and self.mode in ("RNN_TANH", "RNN_RELU"):
            plain = self._step_by_operator(input, hx)
            if plain is not None:
                return plain
        if asked_for() == TORCH:  # who asks for torch.nn's layers shall get these
            return None
        result = self._step_by_cells(input.select(time, 0), hx)
        return result if result is None else (result[0].unsqueeze(time), result[1])

    def _step_by_operator(self, x: Tensor, h: Any) -> tuple[Tensor, Tensor] | None:
        """Run a plain RNN that trains by torch's operator for all of it, or return None.

        What :func:`run_cell` comes to in each layer if nobody has asked for something else. The
        checks are those that torch.nn makes, and of the weights, each no longer than it must be: a
        tenth of the time of a short step is theirs.
        """
        if not torch.is_grad_enabled() or not only_rules() or transforms.active() is not None:
            return None
        layers, size, n = self.num_layers, self.hidden_size, x.shape[0 if self.batch_first else 1]
        if h is None:
            h = x.new_zeros(layers, n, size)
        elif not isinstance(h, Tensor) or h.shape != (layers, n, size):
            return None
        weights = [*chain.from_iterable(self._weights())]
        shapes = chain.from_iterable(expected_shapes(*self._sizes()))
        if [getattr(w, "shape", None) for w in weights] != list(shapes):
            return None
        if {w.dtype for w in weights} != {x.dtype} or x.shape[2] != self.input_size:
            return None
        if not weights[0].requires_grad:
            return None
        how = self.bias, layers, self.dropout, self.training, False, self.batch_first
        return TORCH_LAYERS[self.mode.lower()](x, h, weights, *how)

    def _step_by_cells(self, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
        """Run one cell for each layer; return None where the operands do not plainly fit."""
        h0: Any  # a tensor, then one for each layer
        c0: Any
        row: Any
        # A projection has no kernel for a single step, and autocast's dtypes are a layer's.
        if self.proj_size or transforms.active() == transforms.AUTOCAST:
            return None
        given = self._states(state)
        if given is None:
            return None
        (h0, c0), lstm, layers = given, self.mode == "LSTM", self.num_layers
        batched = x.dim() == 2
        if any(s is not None and s.dim() != x.dim() + 1 for s in given):
            return None
        if not batched:
            x = x.unsqueeze(-2)
            h0, c0 = (t if t is None else t.unsqueeze(-2) for t in (h0, c0))
        if h0 is None:
            zeros = x.new_zeros(len(x), self.hidden_size)
            h0, c0 = (zeros,) * layers, (zeros if lstm else None,) * layers
        elif len(h0) != layers or (lstm and len(c0) != layers):
            return None
        else:
            h0, c0 = h0.unbind(0), c0.unbind(0) if lstm else (None,) * layers
        h_n: list[Any] = []
        c_n: list[Any] = []
        cell = self.mode.lower()
        for layer, row in enumerate(self._weights()):
            if layer and self.dropout and self.training:
                x = drop(x, self.dropout, True)
            biases = row[2:] if self.bias else (None, None)
            after = run_cell(cell, x, h0[layer], c0[layer], *row[:2], *biases, layer)
            if after is None:
                return None
            x, c = after
            h_n.append(x)
            c_n.append(c)
        if x.requires_grad and self.mode not in ("LSTM", "GRU"):
            x = x.clone()  # torch's own operator, where it ran, has kept what it gave out
        # Copied, of a single layer too: what is done to the output in place shall not reach it.
        h = torch.stack(h_n)
        c = None if not lstm else c.unsqueeze(0) if layers == 1 else torch.stack(c_n)
        if not batched:
            x, h, c = x.squeeze(0), h.squeeze(1), c if c is None else c.squeeze(1)
        return x, (h, c) if lstm else h

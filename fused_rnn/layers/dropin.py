"""What makes a layer a drop-in: how a call reaches the kernels, or torch.nn's own forward.

Constructors, parameters, argument checks and their messages are torch.nn's, inherited or borrowed.
A call that is not plainly legal goes to torch.nn's own forward, which finds the words for what is
wrong with it, or has its own ways with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError
from torch.nn.utils.rnn import PackedSequence

from fused_rnn.backends import asked_for, torch_ran, transforms
from fused_rnn.graph.compiled import run_stack_in_graph
from fused_rnn.layers.beyond import Beyond, PackedStates, State
from fused_rnn.layers.proxy import Proxied
from fused_rnn.layers.signatures import like
from fused_rnn.scans.autocast import recast
from fused_rnn.scans.checks import (
    Stack,
    check_batch_sizes,
    check_weights,
    foreign,
    misfit,
)
from fused_rnn.scans.noise import Whose
from fused_rnn.scans.stack import outside_the_graph, run_stack

__all__ = ["DropIn", "Layers"]

_RANKS = "the arguments are not tensors of the right ranks"


class DropIn(nn.Module):
    """What layers and cells have in common."""

    _torch: ClassVar[type[nn.Module]]  # the class of torch.nn that this one stands in for

    def _by_torch(self, input: Any, hx: Any, reason: str) -> Any:
        node = self._as_node(input, hx)
        if node is not None:
            return node
        if torch.compiler.is_compiling() and not transforms.exporting():
            return outside_the_graph(self.forward, input, hx)
        self._refuse_torch(input, hx, reason)
        self._check_for_torch(input, hx)
        result = self._torch.forward(self, input, hx)
        torch_ran(reason)
        return result

    def _as_node(self, input: Any, hx: Any, **options: Any) -> Any | None:
        """Return the one node that a call is to torch.fx, or None where torch.fx does not trace.

        Of torch.nn's modules it knows by their address that it is not to trace into them.
        """
        states = hx if isinstance(hx, (tuple, list)) else (hx,)
        for argument in (input, *states, *options.values()):
            if isinstance(argument, Proxy):
                tracer: Any = argument.tracer
                if tracer.root is self:
                    raise TraceError(
                        "symbolically traced variables cannot be used as inputs to control flow: "
                        "torch.fx takes this module for one node, of a module that has it"
                    )
                path = tracer.path_of_module(self)
                given = {k: v for k, v in options.items() if v is not None and v is not False}
                return tracer.create_proxy("call_module", path, (input, hx), given)
        return None

    def _refuse_torch(self, input: Any, hx: Any, reason: str) -> None:
        """Raise where torch.nn's own forward, which comes next, is not what was asked for."""

    def _check_for_torch(self, input: Any, hx: Any) -> None:
        """Check what torch.nn's own forward, which comes next, should and does not."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig" and self._torch is not nn.RNN:  # of which there is no quantized one
            warnings.warn(
                f"torch.ao.quantization goes by exact types and leaves a fused_rnn."
                f"{self._torch.__name__} in floating point; to have it quantized, call "
                "fused_rnn.revert(model) first",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what torch.jit.script compiles for us: the torch.nn module of the same state."""
        if "_torch" not in vars(type(self)):  # a user's subclass, whose forward may be another
            return self
        twin = self._torch.__new__(self._torch)
        object.__setattr__(twin, "__dict__", self.__dict__)
        return twin


class Layers(Beyond[State, PackedStates], DropIn, Proxied, nn.RNNBase):
    """What LSTM, GRU and RNN have in common."""

    _torch: ClassVar[type[nn.RNNBase]]

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Tensor, State]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        return_states: Literal[False] = False,
    ) -> tuple[PackedSequence, State]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: Literal[True],
    ) -> tuple[Tensor, State, State]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        return_states: Literal[True],
    ) -> tuple[PackedSequence, State, PackedStates]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        # By name, as the overloads have it; but torch.onnx.export(dynamo=False) gives all defaults
        # by place, and a trace makes a tensor of False.
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool | None = None,
    ) -> tuple[Any, ...]:
        """Run the layers over a sequence, or a batch of them."""
        if hx is None and self.learn_initial_state:
            hx = self._learned(input)
        if return_states is None:
            return_states = False
        asked = return_states is not False or self.recompute is not False
        if self._variants is not None and transforms.jit_traces():
            asked = transforms.onnx_exports()  # torch's own layers, written by a trace, are plain
        if lengths is not None or resets is not None or asked:
            return self._forward_with_options(input, hx, lengths, resets, return_states)
        if torch.compiler.is_compiling():
            if isinstance(input, PackedSequence):
                return self._by_torch(input, hx, "sizes of batches are not known to a graph")
            return self._forward_dense(input, hx, run_stack_in_graph)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        # On a GPU a sequence of one step is cuDNN's too, unless something else was asked for.
        by_cells = not isinstance(input, Tensor) or input.is_cpu or asked_for() is not None
        result = self._forward_one_step(input, hx) if by_cells else None
        return self._forward_dense(input, hx) if result is None else result

    if TYPE_CHECKING:  # torch.nn.Module's takes anything, and returns anything

        @like(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def _forward_dense(
        self, input: Tensor, hx: Any, run: Callable[..., Any] = run_stack
    ) -> tuple[Any, Any]:
        states = self._states(hx)
        rank = input.dim() if isinstance(input, Tensor) else 0
        if states is None or rank not in (2, 3):
            return self._by_torch(input, hx, _RANKS)
        h0, c0 = states
        if rank == 3:
            x = input.transpose(0, 1) if self.batch_first else input
        else:
            x = input.unsqueeze(1)
            if h0 is not None:
                if h0.dim() != 2 or (c0 is not None and c0.dim() != 2):
                    return self._by_torch(input, hx, _RANKS)
                h0, c0 = h0.unsqueeze(1), c0 if c0 is None else c0.unsqueeze(1)

        result = self._run(x, h0, c0, None, run)
        if isinstance(result, str):
            return self._by_torch(input, hx, result)
        y, h_n, c_n = result
        if rank == 2:
            y, h_n, c_n = y.squeeze(1), h_n.squeeze(1), c_n if c_n is None else c_n.squeeze(1)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, h_n if c_n is None else (h_n, c_n)

    def _forward_packed(
        self, input: PackedSequence, hx: Any, run: Callable[..., Any] = run_stack
    ) -> tuple[Any, Any]:
        x, batch_sizes, sorted_indices, unsorted_indices = input
        given = self._states(hx)
        if given is None or x.dim() != 2:
            return self._by_torch(input, hx, _RANKS)
        if sorted_indices is not None:
            n = len(sorted_indices)
            if any(s is not None and s.dim() == 3 and s.shape[1] > n for s in given):
                # Permuted, those that are too many would be left out without a word.
                self.check_forward_args(x, hx, batch_sizes)
        permuted = hx if hx is None else self.permute_hidden(hx, sorted_indices)
        h0, c0 = self._states(permuted)  # type: ignore[misc]  # which were two before
        if self._variants is not None and sorted_indices is not None:
            run = partial(run, whose=Whose(len(sorted_indices), sorted_indices))
        result = self._run(x, h0, c0, batch_sizes, run)
        if isinstance(result, str):
            # torch.nn.LSTM checks nothing of a packed input: a mistake surfaces wherever it may.
            if permuted is None:
                self.check_input(x, batch_sizes)
            else:
                self.check_forward_args(x, permuted, batch_sizes)
            return self._by_torch(input, hx, result)
        y, h_n, c_n = result
        output = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(h_n if c_n is None else (h_n, c_n), unsorted_indices)

    def _states(self, hx: Any) -> tuple[Tensor | None, Tensor | None] | None:
        """Return h and c, each None for zeros, or None if ``hx`` is something else altogether."""
        if hx is None:
            return None, None
        return (hx, None) if isinstance(hx, Tensor) else None

    def _run(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        run: Callable[..., Any] = run_stack,
    ) -> tuple[Tensor, Tensor, Tensor | None] | str:
        """Run the layers, or return the reason why these operands are torch.nn's business."""
        rows = self._weights()
        stack = self._sizes()
        any_dtype = transforms.active() == transforms.AUTOCAST
        if run is not run_stack and transforms.jit_traces() and transforms.onnx_exports():
            # What torch.nn has not cannot be left to it, and is written to ONNX from a trace too.
            with transforms.untraced():
                reason = self._misfit(stack, x, h0, c0, x.shape[1], rows, any_dtype)
            n = x.shape[1]
        else:
            reason = foreign(x, h0, c0, rows)
            if reason is not None:
                return reason
            n = x.shape[1] if batch_sizes is None else check_batch_sizes(x, batch_sizes)[0]
            reason = self._misfit(stack, x, h0, c0, n, rows, any_dtype)
        if reason is not None:
            return reason
        if any_dtype:
            run = partial(recast, run)
        return run(stack, x, h0, c0, rows, batch_sizes, n, self.dropout, self.training)

    def _misfit(
        self,
        stack: Stack,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        n: int,
        rows: list[list[Any]],
        any_dtype: bool,
    ) -> str | None:
        reason = misfit(stack, x, h0, c0, n, rows[0][0], any_dtype)
        if reason is None:
            check_weights(stack, rows, any_dtype, self._all_weights)
        return reason

    def _sizes(self) -> Stack:
        return Stack(
            self._cell_name(),
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
        )

    def _check_for_torch(self, input: Any, hx: Any) -> None:
        # It reads past the end of a weight that is too small, and of states it takes the first two.
        weights, width = self._flat_weights, len(self._all_weights[0])
        # To a trace of torch.jit sizes are no numbers.
        if not transforms.jit_traces() and all(isinstance(w, Tensor) for w in weights):
            rows = [weights[k : k + width] for k in range(0, len(weights), width)]
            check_weights(self._sizes(), rows, True, self._all_weights)
        if self._torch is nn.LSTM and isinstance(hx, (Tensor, tuple, list)) and len(hx) > 2:
            raise RuntimeError("lstm expects two hidden states")

    def _weights(self) -> list[list[Any]]:
        """Return the weights of each layer and direction.

        Each is read once: reading a parametrized weight computes it.
        """
        parameters, rows = self._parameters, []
        # To a graph the attributes are what has been traced.
        kept = None if torch.compiler.is_compiling() else self._flat_weights
        k, as_kept = 0, True
        for names in self._all_weights:
            row = []
            for name in names:
                # nn.Module.__getattr__ would look here too, and take a microsecond for it.
                weight = parameters.get(name)
                if kept is not None and weight is not kept[k]:
                    as_kept = False
                k += 1
                row.append(getattr(self, name, None) if weight is None else weight)
            rows.append(row)
        return rows if as_kept else self._replaced(rows)

    def _replaced(self, rows: list[list[Any]]) -> list[list[Any]]:
        """Return the weights that torch.nn would take, which keeps a list of them.

        This is how a weight comes in that stands in the list alone. The list holds for as long as
        every attribute is what it was when the list was made.
        """
        refs, kept = iter(self._flat_weight_refs), iter(self._flat_weights)
        for weight in chain.from_iterable(rows):
            ref = next(refs)
            if weight is not None and ref is not None and ref() is not weight:
                return rows
        return [[next(kept) for _ in row] for row in rows]

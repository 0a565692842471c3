"""What the layers have that torch.nn's have not: options, single steps, a look at the gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.utils.rnn import PackedSequence

from fused_rnn.backends import TORCH, asked_for, transforms
from fused_rnn.layers.gates import gates_of_layers
from fused_rnn.layers.options import Options
from fused_rnn.scans.checks import check_bool
from fused_rnn.scans.stack import outside_the_graph, run_cell

__all__ = ["Beyond", "PackedStates", "State"]

# The state of a layer: a tensor h, of an LSTM a pair h, c. And those of every packed element.
State = TypeVar("State")
PackedStates = TypeVar("PackedStates")


class Beyond(nn.RNNBase, Generic[State, PackedStates]):
    """The part of LSTM, GRU and RNN that a layer of torch.nn has no counterpart for."""

    # On the class, for layers that were torch.nn's until convert() came by.
    learn_initial_state: bool = False
    recompute: bool = False

    if TYPE_CHECKING:  # what a layer that learns has, and what Layers has
        h0: nn.Parameter
        c0: nn.Parameter

        def _states(self, hx: Any) -> tuple[Tensor | None, Tensor | None] | None: ...
        def _weights(self) -> list[list[Any]]: ...
        def _as_node(self, input: Any, hx: Any, **options: Any) -> Any | None: ...
        def _by_torch(self, input: Any, hx: Any, reason: str) -> Any: ...
        def _forward_dense(self, input: Any, hx: Any, run: Callable[..., Any]) -> Any: ...
        def _forward_packed(self, input: Any, hx: Any, run: Callable[..., Any]) -> Any: ...

    def __init__(
        self,
        *args: Any,
        learn_initial_state: bool = False,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        check_bool("learn_initial_state", learn_initial_state)
        check_bool("recompute", recompute)
        super().__init__(*args, **kwargs)
        if recompute:
            self.recompute = True
        if learn_initial_state:
            self.learn_initial_state = True
            k = self.num_layers * (2 if self.bidirectional else 1)
            new_zeros: Callable[..., Tensor] = self._parameters["weight_ih_l0"].new_zeros
            self.h0 = nn.Parameter(new_zeros(k, 1, self.proj_size or self.hidden_size))
            if self.mode == "LSTM":
                self.c0 = nn.Parameter(new_zeros(k, 1, self.hidden_size))

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set a learned initial state to zeros."""
        super().reset_parameters()
        for state in self._initial():
            if state is not None:
                nn.init.zeros_(state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        found = [key for key in (f"{prefix}h0", f"{prefix}c0") if key in unexpected_keys]
        if found:
            # An error if loading is strict, which it is not known to be here.
            warnings.warn(
                f"the state_dict has a learned initial state ({', '.join(found)}), and the layer "
                "has none: make it with learn_initial_state=True to load it",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """Return torch.nn's, and the options that are on."""
        options = (name for name in ("learn_initial_state", "recompute") if getattr(self, name))
        return super().extra_repr() + "".join(f", {name}=True" for name in options)

    def __prepare_scriptable__(self) -> nn.Module:
        if self.learn_initial_state:
            raise RuntimeError(
                "torch.jit.script compiles torch.nn's layer, which has no learned initial state"
            )
        return super().__prepare_scriptable__()  # type: ignore[misc]

    def step(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        r"""Run all layers for one step: for input that arrives, or is generated, step by step.

        The weights are those of the sequence call, and its results are these, step by step. Between
        layers dropout is applied in training mode, with a fresh mask for each step. Forward hooks
        do not fire.

        Args:
            input: one step of the input
            state: the state after the previous step, as this method or the sequence call returned
                it; ``None`` for the initial one. Default: ``None``

        Shape:
            - input: :math:`(N, H_{in})` or :math:`(H_{in})`
            - state: as ``hx`` of the sequence call
            - output: :math:`(N, H_{out})` or :math:`(H_{out})`, and the state in the shape it came

        Raises:
            RuntimeError: for a bidirectional layer, which begins at both ends.
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
        result = None if torch.compiler.is_compiling() else self._step_by_cells(input, state)
        if result is not None:
            return result
        time = 1 if self.batch_first and rank == 2 else 0
        # Not a call of the module: its hooks would fire for some steps and not for others.
        output, state = self.forward(input.unsqueeze(time), state)
        return output.squeeze(time), state

    def _forward_one_step(self, input: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Run a sequence of one step as such, or return None where it is not one, or does not fit.

        What is checked and chosen for a sequence takes longer than a step of few sequences.
        """
        if self.bidirectional or not isinstance(input, Tensor) or input.is_nested:
            return None
        # To a trace sizes are no numbers; and who asks for torch.nn's layers shall get these.
        if transforms.jit_traces() or asked_for() == TORCH:
            return None
        rank = input.dim()
        time = 1 if self.batch_first and rank == 3 else 0
        if rank not in (2, 3) or input.shape[time] != 1:
            return None
        result = self._step_by_cells(input.select(time, 0), hx)
        return result if result is None else (result[0].unsqueeze(time), result[1])

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

    def gates(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        r"""Run the layers and return the values of their gates over time.

        They show what the network remembers and forgets. The layers run as in eval mode, without
        dropout. Gradients flow through the result.

        Args:
            input, hx, lengths, resets: as in the sequence call; packed sequences are not taken

        Returns:
            a dictionary: for an LSTM from ``"input"``, ``"forget"``, ``"candidate"`` and
            ``"output"``, for a GRU from ``"reset"``, ``"update"`` and ``"candidate"``, for an RNN,
            which has no gates, from ``"hidden"``, to tensors of shape
            :math:`(L, D * \text{num\_layers}, N, H_{cell})`, without :math:`N` for unbatched input,
            zero past a sequence's end

        Raises:
            TypeError: if ``input`` is no tensor.

        Examples::

            >>> rnn = fused_rnn.LSTM(10, 20)
            >>> rnn.gates(torch.randn(5, 3, 10))["forget"].shape
            torch.Size([5, 1, 3, 20])
        """
        if torch.compiler.is_compiling():
            again = partial(self.gates, lengths=lengths, resets=resets)
            return _outside_the_graph(again, input, hx)
        if not isinstance(input, Tensor):
            raise TypeError(f"gates: input should be a tensor, got: {type(input).__name__}")
        if hx is None and self.learn_initial_state:
            hx = self._learned(input)
        options = self._options(input, lengths, resets, True)
        found: dict[str, Tensor] = {}

        def run(stack: Any, x: Tensor, h0: Tensor | None, *others: Any) -> Any:
            result = options.run(stack, x, h0, *others[:-2], 0.0, False)
            found.update(gates_of_layers(stack, x, h0, others[1], options))
            return result

        self._forward_dense(input, hx, run)
        options.check_ran()
        return found if input.dim() == 3 else {name: g.squeeze(2) for name, g in found.items()}

    def _forward_with_options(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        return_states: bool,
    ) -> Any:
        asked_for = {"lengths": lengths, "resets": resets, "return_states": return_states}
        node = self._as_node(input, hx, **asked_for)
        if node is not None:
            return node
        check_bool("return_states", return_states)
        check_bool("recompute", self.recompute)
        asked = lengths is not None or resets is not None or return_states
        packed = isinstance(input, PackedSequence)
        if packed and torch.compiler.is_compiling():
            if not asked:
                return self._by_torch(input, hx, "sizes of batches are not known to a graph")
            return _outside_the_graph(
                self._forward_with_options, input, hx, lengths, resets, return_states
            )
        if packed and (lengths is not None or resets is not None):
            raise TypeError(
                "lengths and resets go with a padded tensor, got: PackedSequence, which has its "
                "own lengths"
            )
        options = self._options(input, lengths, resets, return_states)
        forward = self._forward_packed if packed else self._forward_dense
        output, state = forward(input, hx, options.run)
        if asked:
            options.check_ran()
        if not return_states:
            return output, state
        steps = [s for s in options.steps if s is not None]
        if packed:
            steps = [PackedSequence(s, *input[1:]) for s in steps]
        elif input.dim() == 2:
            steps = [s.squeeze(2) for s in steps]
        return output, state, tuple(steps) if len(steps) > 1 else steps[0]

    def _options(
        self, input: Any, lengths: Tensor | None, resets: Tensor | None, every_state: bool
    ) -> Options:
        return Options(
            lengths,
            resets,
            every_state,
            self.recompute,
            self._initial(),
            self.batch_first,
            not isinstance(input, Tensor) or input.dim() != 2,
        )

    def _initial(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the learned initial state, h (L*D, 1, R) and c (L*D, 1, H), None for zeros."""
        if not self.learn_initial_state:
            return None, None
        return self.h0, self.c0 if self.mode == "LSTM" else None

    def _learned(self, input: Any) -> Any:
        """Return the learned initial state for an input of the sequence call."""
        n: int | None
        if isinstance(input, PackedSequence):
            n = int(input.batch_sizes[0])
        elif not isinstance(input, Tensor) or input.dim() not in (2, 3):
            return None  # torch.nn has words for such an input
        else:
            n = input.shape[0 if self.batch_first else 1] if input.dim() == 3 else None
        return self._learned_for(n)

    def _learned_for(self, n: int | None) -> Any:
        h, c = (
            # Dense, as cuDNN wants it where torch.nn's own forward runs.
            s if s is None else s.squeeze(1) if n is None else s.expand(-1, n, -1).contiguous()
            for s in self._initial()
        )
        return h if c is None else (h, c)


def _outside_the_graph(run: Callable[..., Any], *args: Any) -> Any:
    if transforms.exporting():  # to one graph, which cannot be broken
        raise RuntimeError("gates, and packed sequences, cannot be exported")
    return outside_the_graph(run, *args)

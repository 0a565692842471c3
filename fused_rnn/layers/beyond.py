"""What the layers have that torch.nn's have not: options, a learned state, a look at the gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fused_rnn.backends import transforms
from fused_rnn.layers.gates import gates_of_layers
from fused_rnn.layers.options import Options
from fused_rnn.layers.step import SingleSteps, State
from fused_rnn.layers.varied import OPTIONS, PARAMETERS, Varied
from fused_rnn.scans.checks import check_bool
from fused_rnn.scans.stack import outside_the_graph

__all__ = ["Beyond", "PackedStates", "State"]

# The states of every packed element: a tensor h, of an LSTM a pair h, c.
PackedStates = TypeVar("PackedStates")


class Beyond(SingleSteps[State], Varied, Generic[State, PackedStates]):
    """The part of LSTM, GRU and RNN that a layer of torch.nn has no counterpart for."""

    # On the class, for layers that were torch.nn's until convert() came by.
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
        varied = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)
        if varied:
            self._vary(varied)
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
        # All modules of a model share the list: a name of another's has not this prefix, or a dot.
        own = (k.removeprefix(prefix) for k in unexpected_keys if k.startswith(prefix))
        theirs = [name for name in own if name.startswith(PARAMETERS) and "." not in name]
        if theirs:
            warnings.warn(
                f"the state_dict is of a layer with options ({', '.join(theirs)}), which this one "
                "was made without: layer_norm=True, say, or use_peepholes=True",
                stacklevel=2,
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
        if self._variants is not None:
            raise RuntimeError(
                f"torch.jit.script compiles torch.nn's layer, which has no {self._lacking()}"
            )
        return super().__prepare_scriptable__()  # type: ignore[misc]

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
            found.update(gates_of_layers(stack, x, h0, *others[:2], options))
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

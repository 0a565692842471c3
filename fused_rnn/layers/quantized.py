"""How a layer with int8 or bfloat16 weights runs, and what it refuses; see ``stored_weights``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fused_rnn.backends import asked_for, native, transforms
from fused_rnn.backends.quantized import Scales
from fused_rnn.backends.records import recording
from fused_rnn.graph.onnx import onnx_quantized_stack, onnx_stack
from fused_rnn.layers.options import Options
from fused_rnn.layers.stored_weights import StoredWeights
from fused_rnn.scans.autocast import autocast_dtype
from fused_rnn.scans.checks import Stack, check_batch_sizes, foreign, misfit
from fused_rnn.scans.quantized import QuantizedScans, run_quantized
from fused_rnn.scans.stack import outside_the_graph, run_stack

__all__ = ["Quantized"]

_INPUTS = (torch.float32, torch.float16, torch.bfloat16)


class Quantized(StoredWeights):
    """The part of QuantizedLSTM, QuantizedGRU and QuantizedRNN that their float layers have not.

    It stands before the float layer among the bases, and is never constructed: a float layer
    becomes one by :meth:`~StoredWeights.take_weights`.
    """

    if TYPE_CHECKING:

        def _sizes(self) -> Stack: ...
        def _as_node(self, input: Any, hx: Any, **options: Any) -> Any | None: ...

    def _step_by_cells(self, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
        """Run one op for each layer; return None where the long way has to look at the operands.

        A step is short enough for that way to be felt: the op checks what it is given.
        """
        if x.dtype is not torch.float32 or (self.training and self.dropout) or not steps_by_op(x):
            return None
        given = self._states(state)
        batched = x.dim() == 2
        if given is None or any(s is not None and s.dim() != x.dim() + 1 for s in given):
            return None
        x = x.unsqueeze(0) if batched else x.unsqueeze(0).unsqueeze(0)
        h0, c0 = given
        n, lstm, layers = x.shape[1], self.mode == "LSTM", self.num_layers
        h0s: Any  # a state for each layer
        c0s: Any = (None,) * layers
        if h0 is None:
            h0s = (x.new_zeros(n, self.proj_size or self.hidden_size),) * layers
            if lstm:
                c0s = (x.new_zeros(n, self.hidden_size),) * layers if self.proj_size else h0s
        elif h0.requires_grad or (c0 is not None and c0.requires_grad):
            return None
        else:
            h0s = h0.unbind(0) if batched else h0.split(1)
            if c0 is not None:
                c0s = c0.unbind(0) if batched else c0.split(1)
        if not len(h0s) == len(c0s) == layers or x.requires_grad:
            return None
        h_n, c_n, cell, buffer = [], [], self.mode.lower(), self._buffers.get
        try:
            for names, h, c in zip(self._names, h0s, c0s, strict=True):
                x, h, c = native.quantized_step(cell, x, h, c, *map(buffer, names))
                h_n.append(h)
                c_n.append(c)
        except RuntimeError:  # the long way says what does not fit, or fails of the same
            return None
        h = _stacked(h_n, batched)
        state = (h, _stacked(c_n, batched)) if lstm else h
        return x[0] if batched else x[0, 0], state

    def _run(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        run: Callable[..., Any] = run_stack,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the layers in float32, whatever the type of x, in which the results are.

        Under autocast they are in its type, the states in the given ones', as a float layer's.
        """
        stack, rows = self._sizes(), self._weights()
        if transforms.onnx_exports():
            return self._run_in_onnx(stack, x, h0, c0, rows)
        reason = foreign(x, h0, c0, rows)
        if reason is None and x.dtype not in _INPUTS:
            reason = f"the input is {x.dtype}, not float32, float16 or bfloat16"
        if reason is None:
            n = x.shape[1] if batch_sizes is None else check_batch_sizes(x, batch_sizes)[0]
            reason = misfit(stack, x, h0, c0, n, x, autocast_dtype(x.device.type) is not None)
        if reason is None and x.device != rows[0][0].device:
            reason = f"the input is on {x.device}, the weights are on {rows[0][0].device}"
        if reason is not None:
            raise RuntimeError(f"{type(self).__name__}: {reason}")
        refuse_gradients(self, x, h0, c0)
        if not isinstance(getattr(run, "__self__", None), _Options):
            run = partial(run_quantized, QuantizedScans(self._scales()))
        states = (s if s is None else s.float() for s in (h0, c0))
        operands = stack, x.float(), *states, rows, batch_sizes, n, self.dropout, self.training
        y, h_n, c_n = run(*operands)
        cast = autocast_dtype(x.device.type)
        of_h, of_c = (
            x.dtype if cast is None else torch.float32 if s is None else s.dtype for s in (h0, c0)
        )
        return y.to(cast or x.dtype), h_n.to(of_h), c_n if c_n is None else c_n.to(of_c)

    def _run_in_onnx(
        self, stack: Stack, x: Tensor, h0: Tensor | None, c0: Tensor | None, rows: list[list[Any]]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if transforms.jit_traces():
            reason = "by torch.onnx.export(dynamo=False), which has float layers only"
        elif stack.proj_size or (self._stored == torch.int8 and stack.cell != "lstm"):
            reason = "to ONNX, where int8 is an LSTM's without a projection"
        elif x.dtype != torch.float32:
            reason = f"to ONNX with an input that is {x.dtype}, not float32"
        elif rows[0][0].dtype != rows[0][1].dtype:
            reason = (
                "to ONNX, where int8 has no bfloat16 weights of a narrow input: "
                "fused_rnn.quantize(model, dtype=torch.bfloat16) has"
            )
        elif self._stored == torch.int8 and self.dropout and self.training:
            reason = "to ONNX in training mode: int8 goes without dropout there"
        elif self._stored == torch.int8:
            return onnx_quantized_stack(stack, x, h0, c0, rows, self._scales(), x.shape[1])
        else:
            wide = [[w.float() for w in row] for row in rows]
            return onnx_stack(stack, x, h0, c0, wide, x.shape[1], self.dropout, self.training)
        raise RuntimeError(f"{type(self).__name__}: this layer cannot be exported {reason}")

    def _options(
        self, input: Any, lengths: Tensor | None, resets: Tensor | None, every_state: bool
    ) -> Options:
        options = _Options(
            lengths,
            resets,
            every_state,
            False,
            self._initial(),
            self.batch_first,
            not isinstance(input, Tensor) or input.dim() != 2,
        )
        options.scales = self._scales()
        x = input.data if isinstance(input, PackedSequence) else input
        options.dtype = autocast_dtype(x.device.type) or x.dtype
        return options

    def _forward_with_options(self, input: Any, hx: Any, *options: Any) -> Any:
        if torch.compiler.is_compiling():
            if transforms.exporting():
                raise RuntimeError(
                    f"{type(self).__name__}: lengths, resets and states of every step of a "
                    "quantized layer cannot be exported"
                )
            return outside_the_graph(self._forward_with_options, input, hx, *options)
        return super()._forward_with_options(input, hx, *options)  # type: ignore[misc]

    def _initial(self) -> tuple[Tensor | None, Tensor | None]:
        h, c = super()._initial()  # type: ignore[misc]
        return h if h is None else h.detach(), c if c is None else c.detach()

    def _by_torch(self, input: Any, hx: Any, reason: str) -> Any:
        """Raise: torch.nn's own forward has float weights only."""
        node = self._as_node(input, hx)
        if node is not None:
            return node
        if torch.compiler.is_compiling() and not transforms.exporting():
            return outside_the_graph(self.forward, input, hx)
        raise RuntimeError(f"{type(self).__name__}: {reason}")

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Check what torch.nn does, without a float weight to compare dtypes with."""
        rank = 2 if batch_sizes is not None else 3
        if input.dim() != rank or input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input should have {rank} dimensions, the last of size {self.input_size}, got "
                f"shape {tuple(input.shape)}"
            )

    def gates(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: what the gates did is told by float layers."""
        raise RuntimeError(
            f"{type(self).__name__}: gates are told by float layers alone: see fused_rnn.dequantize"
        )

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script compiles torch.nn's layers, of which a {type(self).__name__} is none"
        )


class _Options(Options):
    """The options of a call of a quantized layer."""

    scales: list[Scales]
    dtype: torch.dtype  # of what is given out

    def run(self, *operands: Any) -> Any:
        """Run layers in float32."""
        result = super().run(*operands)
        if self.steps is not None:
            h, c = self.steps
            self.steps = h.to(self.dtype), c if c is None else c.to(self.dtype)
        return result

    def _marking(self, *operands: Any) -> None:
        """Return None: lengths and resets are read."""

    def _layers(self, *operands: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        *plain, _ = operands  # whose sequences they are: variants' business
        scans = QuantizedScans(self.scales, self._every_state)
        result = run_quantized(scans, *plain, cut=self._cuts)  # type: ignore[misc]
        if self._every_state:
            self.steps = scans.steps()
        return result


def steps_by_op(x: Tensor) -> bool:
    """Return whether a step of this input goes the short way: on the CPU, with nobody looking."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and native.available() is None
        and transforms.active() is None
        and asked_for() in (None, native.name)
        and recording() is None
    )


def _stacked(states: list[Tensor], batched: bool) -> Tensor:
    s = states[0].unsqueeze(0) if len(states) == 1 else torch.stack(states)
    return s if batched else s.squeeze(1)


def refuse_gradients(layer: nn.Module, *operands: Tensor | None) -> None:
    """Raise where autograd would want a gradient, or a tangent: what is rounded has none."""
    if transforms.differentiates_forward():
        raise RuntimeError(
            f"{type(layer).__name__}: a quantized layer is for inference, and forward-mode AD is "
            "active: see fused_rnn.dequantize"
        )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        raise RuntimeError(
            f"{type(layer).__name__}: a quantized layer is for inference, and an input or a state "
            "of this call requires a gradient: call it under torch.no_grad(), or see "
            "fused_rnn.dequantize"
        )

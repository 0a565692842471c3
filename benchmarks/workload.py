"""A case made concrete: torch.nn's module, its inputs, and the call that is timed.

Peers that are ``torch.nn.Module``s run :meth:`Work.caller` on their own module; every peer's answer
is compared by the names that :meth:`Work.named` gives to torch.nn's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import DTYPES, Case

_LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


@dataclass(frozen=True)
class Work:
    """One case's module and data.

    Attributes:
        module: torch.nn's module, seeded; peers take their weights from it.
        arguments: What the module is called with.
        leaves: The inputs whose gradients a training step computes, besides the parameters'.
        upstream: The gradients of the outputs, from which the backward pass starts.
        padded: The input as a (T, N, I) tensor, for peers without packed sequences.
    """

    case: Case
    module: nn.Module
    arguments: tuple[Any, ...]
    leaves: tuple[Tensor, ...]
    upstream: tuple[Tensor, ...]
    padded: Tensor

    def make_module(self, library: Any) -> nn.Module:
        """Build ``library``'s module of the same name and constructor, with torch.nn's weights."""
        like = next(self.module.parameters())
        module = _construct(self.case, library).to(like.device, like.dtype)
        module.load_state_dict(self.module.state_dict())
        return module

    def caller(
        self, function: Callable[..., Any], parameters: Iterable[Tensor]
    ) -> Callable[[], Any]:
        """Return the call to time: the forward of ``function``, or its forward and backward."""
        arguments, forward = self.arguments, function
        if self.recast:

            def forward(*arguments: Any) -> Any:
                with self.autocast():
                    return function(*arguments)

        if not self.case.backward:
            return lambda: forward(*arguments)
        wanted = [*self.leaves, *parameters]
        upstream: list[Tensor] = []

        def step() -> Any:
            result = forward(*arguments)
            outputs = _differentiated(self.case, result)
            if not upstream:  # libraries differ in what autocast makes of an output
                pairs = zip(self.upstream, outputs, strict=True)
                upstream.extend(given.to(output.dtype) for given, output in pairs)
            return result, torch.autograd.grad(outputs, wanted, upstream)

        return step

    @property
    def recast(self) -> bool:
        """Whether the forward runs under autocast; the oracle's does not."""
        return self.case.autocast and self.padded.dtype == torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what the forward runs under."""
        if not self.recast:
            return nullcontext()
        return torch.autocast(self.padded.device.type, dtype=torch.bfloat16)

    def named(self, returned: Any) -> dict[str, Tensor]:
        """Give names to the tensors of what a :meth:`caller` of a module returned."""
        result, gradients = returned if self.case.backward else (returned, ())
        names = ["dx", "dh_0", "dc_0"][: len(self.leaves)]
        names += [f"d {name}" for name, _ in self.module.named_parameters()]
        return _outputs(self.case, result) | dict(zip(names, gradients, strict=False))

    def double(self) -> Work:
        """Return the same problem in float64: the oracle."""
        return _build(self.case, deepcopy(self.module).double(), self.padded.double())


def build(case: Case, device: torch.device) -> Work:
    """Build a case's module and inputs; the same case gives the same numbers in every run."""
    torch.manual_seed(0)
    module = _construct(case, nn).to(device, DTYPES[case.dtype])
    s = case.shape
    padded = torch.randn((s.N, s.I) if case.single_cell else (s.T, s.N, s.I), device=device)
    return _build(case, module, padded.to(DTYPES[case.dtype]))


def _construct(case: Case, library: Any) -> nn.Module:
    name, s = _LAYERS[case.cell], case.shape
    if case.single_cell:
        return getattr(library, name + "Cell")(s.I, s.H)
    return getattr(library, name)(s.I, s.H, num_layers=s.layers, bidirectional=s.bidirectional)


def _build(case: Case, module: nn.Module, padded: Tensor) -> Work:
    module.train(case.backward)
    s, like = case.shape, {"dtype": padded.dtype, "device": padded.device}
    # The case's numbers whatever the dtype: the oracle's problem is the same problem.
    draw = torch.Generator(padded.device).manual_seed(1)

    def random(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=draw, device=padded.device)
        return drawn.to(DTYPES[case.dtype]).to(**like)

    x, states, upstream = padded.detach(), (), (random(case.tokens, s.H * s.directions),)
    arguments: tuple[Any, ...]
    if case.single_cell:
        states = tuple(random(s.N, s.H) for _ in range(2 if case.cell == "lstm" else 1))
        upstream = tuple(random(s.N, s.H) for _ in states)
        for tensor in (x, *states):
            tensor.requires_grad_(case.backward)
        arguments = (x, states if case.cell == "lstm" else states[0])
    elif case.ragged:
        packed = pack_padded_sequence(x, case.lengths, enforce_sorted=False)
        x = packed.data.requires_grad_(case.backward)
        arguments = (PackedSequence(x, *packed[1:]),)
    else:
        upstream = (upstream[0].view(s.T, s.N, -1),)
        arguments = (x,)
        if case.one_step:
            states = tuple(random(1, s.N, s.H) for _ in range(2 if case.cell == "lstm" else 1))
            arguments = (x, states if case.cell == "lstm" else states[0])
        for tensor in (x, *states):
            tensor.requires_grad_(case.backward)
    return Work(case, module, arguments, (x, *states), upstream, padded)


def _differentiated(case: Case, result: Any) -> tuple[Tensor, ...]:
    """Return what the backward pass starts from: y of a layer, every state of a cell."""
    if case.single_cell:
        return result if isinstance(result, tuple) else (result,)
    y = result[0]
    return (y.data if isinstance(y, PackedSequence) else y,)


def _outputs(case: Case, result: Any) -> dict[str, Tensor]:
    if case.single_cell:
        return dict(zip(("h", "c"), _differentiated(case, result), strict=False))
    states = result[1] if isinstance(result[1], tuple) else (result[1],)
    named = dict(zip(("y", "h_n", "c_n"), _differentiated(case, result) + states, strict=False))
    return {name: tensor.detach() for name, tensor in named.items()}

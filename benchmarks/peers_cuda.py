"""The peers on a GPU: torch.nn in its other ways, and the libraries that may be installed."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cases import Case
from .compiled import first_call
from .peers import CompiledLoop, FusedRNN, Peer, Prepared, Settings, TorchNN, UnavailableError
from .workload import Work, build

LOOP = "torch.nn without cuDNN"
STEPWISE = "fused_rnn stepwise"
PERSISTENT = "fused_rnn persistent"
TRITON = "fused_rnn Triton"
TORCHRL = "TorchRL Triton"
ALTERNATING = "FlashRNN alternating"
_COMPILE_SECONDS = 300.0  # of a foreign library's compiling or tuning, per case


class ByWay(FusedRNN):
    """This library again, by a way that is asked for, which the automatic choice may not take."""

    def __init__(self, name: str, way: str) -> None:
        self.name, self._way = name, way

    def refuses(self, case: Case, settings: Settings) -> str | None:
        return super().refuses(case, settings) or self._unavailable()

    def _unavailable(self) -> str | None:
        import fused_rnn

        return fused_rnn.available_backends()[self._way.partition(" ")[0]]

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        from fused_rnn.backends import use_way

        empty_triton_cache()
        start = time.perf_counter()
        with use_way(self._way):
            try:
                ready = super().prepare(work, settings)
            except RuntimeError as refusal:
                raise UnavailableError(str(refusal)) from refusal
        plan = ready.notes.get("plan", "")
        if self.name == PERSISTENT and "persistent" not in plan:
            raise UnavailableError(plan or "no plan was told")

        def call() -> Any:
            with use_way(self._way):
                return ready.call()

        call()
        if settings.device.type == "cuda":
            torch.cuda.synchronize(settings.device)
        notes = {**ready.notes, "first_call_s": round(time.perf_counter() - start, 4)}
        return Prepared(call, ready.named, notes)


@cache
def empty_triton_cache() -> None:
    """Have Triton compile what this run needs, as a user's first call does."""
    directory = TemporaryDirectory(prefix="triton-")
    atexit.register(directory.cleanup)
    os.environ["TRITON_CACHE_DIR"] = directory.name


class WithoutCudnn:
    """torch.nn's own loop: two products and one fused gate kernel for each step."""

    name = LOOP
    foreign = False

    def refuses(self, case: Case, settings: Settings) -> str | None:
        return "cells do not run in cuDNN" if case.single_cell else None

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        call = work.caller(work.module, work.module.parameters())

        def without() -> Any:
            with torch.backends.cudnn.flags(enabled=False):
                return call()

        return Prepared(without, work.named)


class InHalf:
    """torch.nn in float16 where the case is in bfloat16: cuDNN's fastest kernels know no other."""

    name = "torch.nn fp16"
    foreign = False

    def refuses(self, case: Case, settings: Settings) -> str | None:
        return None if case.dtype == "bf16" else "for bf16 cases"

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        half = build(replace(work.case, dtype="fp16"), settings.device)
        call = half.caller(half.module, half.module.parameters())
        return Prepared(call, half.named, same_problem=False)


class _Foreign:
    """A library that may not be installed, with kernels for one dense layer in one direction."""

    foreign = True
    package: str

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if settings.quick:
            return "compiling or tuning its kernels takes too long for --quick"
        if case.ragged or case.single_cell or case.shape.layers > 1 or case.shape.bidirectional:
            return "one dense layer in one direction only"
        if settings.compile_seconds <= 0:
            return "the run's time for compilation is spent"
        return None

    def _prepared(
        self,
        work: Work,
        settings: Settings,
        function: Callable[..., Any],
        parameters: list[Tensor],
        notes: dict[str, Any],
    ) -> Prepared:
        call = work.caller(function, parameters)
        limit = min(_COMPILE_SECONDS, settings.compile_seconds)
        try:
            seconds = first_call(call, limit)
        except Exception as error:  # whatever another library raises
            settings.compile_seconds -= limit
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnavailableError(f"it failed: {first_line}") from error
        settings.compile_seconds -= seconds
        return Prepared(call, work.named, {"compile_s": round(seconds, 2), **notes})


def _leaves(work: Work, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [p.detach().to(dtype or p.dtype).requires_grad_() for p in work.module.parameters()]


class FlashRNN(_Foreign):
    """FlashRNN's kernels, with the input's product before them, which they leave to the caller."""

    package = "flashrnn"

    def __init__(self, name: str, backend: str) -> None:
        self.name, self._backend = name, backend

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if case.cell != "lstm":
            return "LSTM only: its other cells have biases of another kind"
        if case.dtype == "tf32":
            return "no TF32"
        return super().refuses(case, settings)

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        from flashrnn import flashrnn

        s = work.case.shape
        parameters = _leaves(work)
        w_ih, w_hh, b_ih, b_hh = parameters
        dtype = str(w_ih.dtype).removeprefix("torch.")

        def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            gates = linear(x, w_ih).view(s.T, s.N, 4, 1, s.H).transpose(0, 1)
            recurrent, bias = w_hh.view(4, 1, s.H, s.H), (b_ih + b_hh).view(4, 1, s.H)
            states, last = flashrnn(
                gates, recurrent, bias, function="lstm", backend=self._backend, dtype=dtype
            )
            h_n, c_n = (last[i, :, -1, 0].unsqueeze(0) for i in range(2))
            return states[0, :, :, 0].transpose(0, 1), (h_n, c_n)

        return self._prepared(work, settings, run, parameters, {"backend": self._backend})


class TorchRL(_Foreign):
    """TorchRL's Triton kernels, whose tensors are float32 whatever the products' dtype."""

    name = TORCHRL
    package = "torchrl"

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if case.cell == "rnn":
            return "LSTM and GRU only"
        if case.dtype == "fp16":
            return "no float16"
        return super().refuses(case, settings)

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        try:
            from torchrl.modules.tensordict_module import _rnn_triton as kernels
        except ImportError as error:
            raise UnavailableError(f"its kernels cannot be imported: {error}") from error
        case, s = work.case, work.case.shape
        parameters = _leaves(work, torch.float32)
        like = {"device": settings.device}
        zeros = torch.zeros(s.N, s.T, s.H, **like)
        first = torch.zeros(s.N, s.T, dtype=torch.bool, **like)
        products = torch.bfloat16 if case.dtype == "bf16" else torch.float32
        precision = "tf32" if case.dtype == "tf32" else "ieee"

        def run(x: Tensor) -> tuple[Tensor, Any]:
            steps = x.float().transpose(0, 1).contiguous()
            rest = (*parameters, first, products)
            if case.cell == "gru":
                y, h_n = kernels.gru_triton(steps, zeros, *rest, input_precision=precision)
                return y.transpose(0, 1).to(x.dtype), h_n.unsqueeze(0)
            y, _, h_n, c_n = kernels.lstm_triton(
                steps, zeros, zeros, *rest, input_precision=precision
            )
            return y.transpose(0, 1).to(x.dtype), (h_n.unsqueeze(0), c_n.unsqueeze(0))

        return self._prepared(work, settings, run, parameters, {"storage": "float32"})


CUDA_PEERS: list[Peer] = [
    TorchNN(),
    FusedRNN(),
    ByWay(STEPWISE, "native stepwise"),
    ByWay(PERSISTENT, "native persistent"),
    ByWay(TRITON, "triton"),
    WithoutCudnn(),
    InHalf(),
    FlashRNN("FlashRNN fused", "cuda_fused"),
    FlashRNN(ALTERNATING, "cuda"),
    TorchRL(),
    CompiledLoop(),
]

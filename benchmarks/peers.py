"""Who is measured: a peer is one class (name, refusal, preparation) and one entry in PEERS.

A peer for another device, or another library, is one more entry; nothing else knows their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .baseline import refusal
from .cases import Case
from .units import level_of
from .workload import Work

BASELINE = "torch.nn"
OURS = "fused_rnn"


class UnavailableError(Exception):
    """Raised by a peer's preparation; the message is the reason shown in the report."""


@dataclass
class Settings:
    """What the command line chose, as far as peers and harness need it."""

    device: torch.device
    threads: int = 2
    quick: bool = False
    full: bool = False
    seconds: float = 3.0  # of samples per case, all peers together
    compile_seconds: float = 240.0  # of compilation left to the whole run
    wait_seconds: float = 0.0  # left to the whole run for other work to end and for second tries


@dataclass
class Prepared:
    """A peer ready for one case.

    Attributes:
        call: What is timed.
        named: Turns what ``call`` returned into tensors named as :meth:`Work.named` names them.
        notes: What the report says besides, such as seconds of compilation.
        same_problem: Whether its answer can be compared number by number.
    """

    call: Callable[[], Any]
    named: Callable[[Any], dict[str, Tensor]]
    notes: dict[str, Any] = field(default_factory=dict)
    same_problem: bool = True  # False: its numbers are rounded otherwise, and not compared


class Peer(Protocol):
    name: str
    # Another library's: where it fails or computes something else, it is left out of the case.
    foreign: bool

    def refuses(self, case: Case, settings: Settings) -> str | None:
        """Return None, or why this peer does not run this case."""

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        """Build what is timed, or raise :class:`UnavailableError`."""


class TorchNN:
    """The baseline: torch.nn's own module."""

    name = BASELINE
    foreign = False

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if case.single_cell or settings.device.type != "cpu":
            return None
        return refusal(case.cell, case.dtype, ragged=case.ragged)

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        return Prepared(work.caller(work.module, work.module.parameters()), work.named)


class FusedRNN:
    """This library."""

    name = OURS
    foreign = False

    def refuses(self, case: Case, settings: Settings) -> str | None:
        try:
            import fused_rnn  # noqa: F401
        except ImportError as error:
            return f"fused_rnn cannot be imported: {error}"
        return None

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        import fused_rnn

        module = work.make_module(fused_rnn).train(work.case.backward)
        call = work.caller(module, module.parameters())
        return Prepared(call, work.named, self._what_ran(module, work))

    @staticmethod
    def _what_ran(module: nn.Module, work: Work) -> dict[str, str]:
        """Name what runs: torch.nn's own forward must not pass for a kernel."""
        import fused_rnn

        with torch.set_grad_enabled(work.case.grad), work.autocast():
            rows = list(fused_rnn.explain(module, *work.arguments))
        notes = {"backend": ", ".join(sorted({str(row.backend) for row in rows}))}
        plans = dict.fromkeys(str(row.how) for row in rows if row.how is not None)
        if plans:
            notes["plan"] = "; ".join(plans)
        level = level_of(rows) if work.padded.device.type == "cpu" else None
        return notes if level is None else {**notes, "level": level}


class OnnxRuntime:
    """onnxruntime's CPU kernels on a graph built by hand, as an exported model would run."""

    name = "onnxruntime"
    foreign = False

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if case.single_cell:
            return "runs whole sequences, has no cell"
        if case.one_step:
            return "its graph here begins at zeros"
        if case.backward:
            return "inference only"
        if case.dtype != "fp32":
            return "its graph here is in float32"
        if settings.device.type != "cpu":
            return "its CPU kernels are the peer here"
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"not installed: {error}"
        return None

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        from .onnx_graph import OnnxSession

        session = OnnxSession(work, work.case.threads or settings.threads)
        return Prepared(session.run, session.named)


class CompiledLoop:
    """A Python loop over torch.nn's cell, the whole loop under ``torch.compile``.

    The compiler unrolls the loop: compilation grows with T, and long sequences are refused.
    """

    name = "compiled loop"
    foreign = False
    max_steps: ClassVar = {"inference": 50, "training": 20}
    max_seconds = 60.0  # of compilation per case

    def refuses(self, case: Case, settings: Settings) -> str | None:
        if settings.quick:
            return "compilation takes too long for --quick"
        if settings.device.type == "cpu" and (case.dtype != "fp32" or case.threads):
            return "left out to bound the run's compilation: float32 on all threads says enough"
        if case.cell == "rnn":
            return "left out to bound the run's compilation: the plain RNN has no bar"
        if case.ragged:
            return "dense batches only"
        if case.one_step:
            return "its loop begins at zeros"
        if case.shape.layers > 1 or case.shape.bidirectional:
            return "one layer, one direction only"
        limit = self.max_steps["training" if case.grad else "inference"]
        if limit < case.shape.T:
            return f"more than {limit} unrolled steps take too long to compile"
        if settings.compile_seconds <= 0:
            return "the run's time for compilation is spent"
        from .compiled import missing_compiler

        return missing_compiler(settings.device)

    def prepare(self, work: Work, settings: Settings) -> Prepared:
        from .compiled import CompileTimeoutError, compiled, first_call, loop_of

        function, parameters = loop_of(work)
        call = work.caller(compiled(function), parameters)
        try:
            seconds = first_call(call, min(self.max_seconds, settings.compile_seconds))
        except (CompileTimeoutError, torch._dynamo.exc.TorchDynamoException) as error:
            settings.compile_seconds -= self.max_seconds
            raise UnavailableError(str(error).strip().splitlines()[0]) from error
        settings.compile_seconds -= seconds
        return Prepared(call, work.named, {"compile_s": round(seconds, 2)})


PEERS: list[Peer] = [TorchNN(), FusedRNN(), OnnxRuntime(), CompiledLoop()]

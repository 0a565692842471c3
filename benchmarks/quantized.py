"""Layers with int8 and bfloat16 weights against float ones, torch.ao and onnxruntime, at N = 1.

    python -m benchmarks.quantized [--threads 1] [--seconds 2] [--quick] [--json PATH]

A call is a step from a given state (onnxruntime's is from zeros), or a sequence of 50 steps. Each
peer is timed while its weights are where its last call has left them: a stream that goes on. The
errors are those of the outputs against float64, relative to their norm.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn import command

from .cases import Case, Shape
from .document import heading, write
from .peers import Settings
from .text import duration
from .timing import Timing, time_interleaved
from .verdicts import geometric_mean
from .workload import Work, build

INT8, FLOAT = "fused_rnn int8", "fused_rnn"
_SIZES, _STEPS = (256, 512, 1024), (1, 50)


@dataclass
class Row:
    """One call: seconds of each peer, the weights' bytes, and the error against float64."""

    name: str
    timings: dict[str, Timing]
    bytes: dict[str, int]
    errors: dict[str, float]

    def speedup(self, peer: str) -> float | None:
        """Return how many times faster int8 is than a peer, or None where it did not run."""
        other = self.timings.get(peer)
        return None if other is None else other.median_s / self.timings[INT8].median_s


def measure(settings: Settings) -> Iterator[Row]:
    """Measure row by row."""
    for cell in ("lstm", "gru"):
        for h in _SIZES[:1] if settings.quick else _SIZES:
            for steps in _STEPS:
                work = build(Case(cell, "inference", Shape(steps, 1, h, h)), settings.device)
                yield _row(f"{cell}, H = {h}, {_of(steps)}", work, settings)


def _of(steps: int) -> str:
    return "a step" if steps == 1 else f"{steps} steps"


@torch.no_grad()
def _row(name: str, work: Work, settings: Settings) -> Row:
    x, double = work.padded, work.double()
    expected = double.module(double.padded)[0]
    modules = _modules(work.module)
    calls: dict[str, Callable[[], Any]] = {}
    for peer, module in modules.items():
        state = module(x)[1] if len(x) == 1 else None
        calls[peer] = lambda module=module, state=state: module(x, state)[0]
    session = _onnx(work, settings.threads)
    if session is not None:
        calls["onnxruntime int8"] = session
    errors = {}
    for peer, call in calls.items():
        y = modules[peer](x)[0] if peer in modules else call()
        errors[peer] = ((y - expected).norm() / expected.norm()).item()
    sizes = {peer: _bytes(module) for peer, module in modules.items()}
    return Row(name, time_interleaved(calls, settings.device, settings.seconds), sizes, errors)


def _modules(base: nn.Module) -> dict[str, Any]:
    modules = {
        INT8: fused_rnn.quantize(copy.deepcopy(base)),
        "fused_rnn bfloat16 weights": fused_rnn.quantize(copy.deepcopy(base), dtype=torch.bfloat16),
        FLOAT: fused_rnn.convert(copy.deepcopy(base)),
        "torch.nn": base,
    }
    dynamic = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if dynamic is not None:  # deprecated, and gone one day
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = dynamic(nn.Sequential(copy.deepcopy(base)), {type(base)}, dtype=torch.qint8)
        modules["torch.ao int8"] = model[0]
    return modules


def _bytes(module: nn.Module) -> int:
    """Return the bytes of what a layer keeps; 0 where that is packed out of sight."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _onnx(work: Work, threads: int) -> Callable[[], Tensor] | None:
    """Return a call of onnxruntime's int8 LSTM, or None where there is none."""
    if work.case.cell != "lstm":
        return None
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from .onnx_graph import build_model
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            build_model(work), path, op_types_to_quantize=["LSTM"], per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"x": work.padded.numpy()}
    return lambda: torch.from_numpy(session.run(["y"], given)[0])


def run(settings: Settings, path: Path | None) -> None:
    """Measure, print and write all rows, and the geometric means."""
    rows = []
    for row in measure(settings):
        rows.append(row)
        print("\n".join(_lines(row)), flush=True)
    for peer in dict.fromkeys(peer for row in rows for peer in row.timings if peer != INT8):
        ratios = [ratio for row in rows if (ratio := row.speedup(peer)) is not None]
        mean, least = geometric_mean(ratios), min(ratios)
        print(f"int8 over {peer}: {mean:.2f}x in the geometric mean, {least:.2f}x at least")
    if path is not None:
        write(heading(settings) | {"rows": [asdict(row) for row in rows]}, path)


def _lines(row: Row) -> list[str]:
    lines = [row.name]
    for peer, timing in row.timings.items():
        ratio = "" if peer == INT8 else f"{row.speedup(peer):6.2f}x"
        size = f"  {row.bytes[peer]} bytes" if row.bytes.get(peer) else ""
        text = f"  {peer:28}{duration(timing.median_s):>10}{ratio:>8}"
        lines.append(f"{text}  error {row.errors[peer]:.1e}{size}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="of samples, for each row")
    parser.add_argument("--quick", action="store_true", help="the smallest size alone")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = Settings(torch.device("cpu"), given.threads, given.quick, seconds=given.seconds)
    run(settings, given.json)


if __name__ == "__main__":
    command.run(main)

"""The doctor, ``python -m fused_rnn``: what is installed, what can run, and whether it is right."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util

import torch
from torch import Tensor

import fused_rnn
from fused_rnn import command
from fused_rnn.backends import BACKENDS, TORCH, Backend, Inputs, Problem, native, reference
from fused_rnn.backends.measured import Table
from fused_rnn.cells import CELLS
from fused_rnn.scans import autograd
from fused_rnn.tune import serving

# Small, with no size a multiple of a vector's or a block's.
T, N, I, H, P = 9, 5, 6, 19, 7  # noqa: E741
BATCH_SIZES = (5, 5, 4, 4, 3, 1, 1, 1, 1)

# What the doctor shows a GPU's plan of, whether or not kernels that have plans are wanted.
EXAMPLE = Problem(
    "lstm", torch.device("cuda"), torch.bfloat16, 1024, 16, 768, 768, 0, False, True, None
)
EXAMPLE_WORDS = "LSTM, T 1024, N 16, H 768, bfloat16"

# The largest error that a sound kernel may show on this problem, relative to the largest value of
# the tensor: some roundings of the dtype.
LIMITS = {
    torch.float64: 1e-14,
    torch.float32: 4e-6,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


@dataclass(frozen=True)
class Check:
    """One backend against the reference in float64, with one cell and dtype.

    Errors are the largest over all outputs (``forward``) or gradients (``backward``), relative to
    the largest value; ``None`` where they are not finite or nothing ran.
    """

    backend: str
    device: str
    cell: str
    dtype: str
    limit: float
    forward: float | None = None
    backward: float | None = None
    refusal: str | None = None
    failure: str | None = None

    @property
    def verdict(self) -> str:
        if self.failure or self.refusal:
            return f"FAILED: {self.failure}" if self.failure else f"refused: {self.refusal}"
        return "ok" if self.well else "WRONG"

    @property
    def well(self) -> bool:
        if self.failure:
            return False
        errors = (self.forward, self.backward)
        return bool(self.refusal) or all(e is not None and e <= self.limit for e in errors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; return the exit status, 0 if all is well."""
    parser = argparse.ArgumentParser("python -m fused_rnn", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON for programs to read")
    as_json = parser.parse_args(arguments).json
    installed, checks = _installation(), list(_checks())
    problems = list(_problems(checks))
    if as_json:
        found = {**installed, "checks": [{**asdict(c), "well": c.well} for c in checks]}
        print(json.dumps({"well": not problems, "problems": problems, **found}, indent=2))
    else:
        print(_text(installed, checks, problems))
    return 1 if problems else 0


def _installation() -> dict[str, dict[str, str | None]]:
    """Return what is installed, by section; None where something is missing or not set."""
    devices: dict[str, str | None] = {
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    }
    if torch.version.cuda is not None and not _gpus():
        devices["cuda"] = (
            "no GPU is seen, though torch is built for CUDA: see nvidia-smi and "
            "CUDA_VISIBLE_DEVICES if there is one"
        )
    for gpu in _gpus():
        major, minor = torch.cuda.get_device_capability(gpu)
        devices[gpu] = f"{torch.cuda.get_device_name(gpu)}, sm_{major}{minor}"
    return {
        "versions": {
            "fused_rnn": fused_rnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": _version("numpy"),
            "system": platform.platform(),
        },
        "compiled": {
            "native module": _file("fused_rnn._C"),
            "SIMD level": _simd_level() or _simd_error(),
            "CUDA module": native.cuda_missing() or _file("fused_rnn._C_cuda"),
            "torch's CUDA": torch.version.cuda,
        },
        "devices": devices,
        "kernels on GPUs": dict(_kernels_on_gpus()),
        "threads": {
            "torch uses": str(torch.get_num_threads()),
            "processors": str(_processors()),
        },
        "settings": {
            name: os.environ.get(name)
            for name in (
                "FUSED_RNN_BACKEND",
                "FUSED_RNN_TUNED",
                "FUSED_RNN_TUNE",
                "FUSED_RNN_SIMD",
                "FUSED_RNN_PERSISTENT",
            )
        },
        "backends": fused_rnn.available_backends(),
    }


def _kernels_on_gpus() -> Iterator[tuple[str, str]]:
    if native.cuda_missing() is None:
        for gpu in _gpus():
            facts = native.facts(torch.device(gpu))
            yield gpu, str(facts)
            if facts.capability:
                problem = EXAMPLE._replace(device=torch.device(gpu))
                yield f"{gpu}: {EXAMPLE_WORDS}", str(native.plan(problem, regardless=True))


def _processors() -> int | None:
    # Under taskset or in a container a process may use fewer than there are.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def _file(module: str) -> str | None:
    spec = util.find_spec(module)
    return None if spec is None else spec.origin


def _simd_level() -> str | None:
    return None if native.available() or _simd_error() else native.simd_level()


def _simd_error() -> str | None:
    """Return None, or why no kernel runs on the CPU though they are there."""
    try:
        if not native.available():
            native.simd_level()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _problems(checks: list[Check]) -> Iterator[str]:
    missing = {b.name: b.available() for b in BACKENDS.values() if b is not reference}
    if all(missing.values()):
        yield f"no backend with kernels can run, so torch.nn's own code runs ({_reasons(missing)})"
    elif _gpus():
        if "native" in missing:
            missing["native"] = missing["native"] or native.cuda_missing()
        if all(missing.values()):
            yield f"torch.nn's own code runs on {', '.join(_gpus())} ({_reasons(missing)})"
    chosen = os.environ.get("FUSED_RNN_BACKEND")
    if chosen and chosen not in {*BACKENDS, TORCH}:
        yield f"FUSED_RNN_BACKEND is {chosen!r}, which is not a backend"
    yield from _tuned_problems()
    no_level = _simd_error()
    if no_level is not None:
        yield no_level
    asked, level = os.environ.get("FUSED_RNN_SIMD"), _simd_level()
    if asked and level and asked != level:
        yield f"FUSED_RNN_SIMD asks for {asked!r}, but {level} runs"
    for check in checks:
        if not check.well:
            where = f"{check.backend} on {check.device}, {check.cell} in {check.dtype}"
            yield f"{where}: {check.failure or 'does not agree with the reference'}"


def _tuned_problems() -> Iterator[str]:
    path = os.environ.get("FUSED_RNN_TUNED")
    if path:
        try:
            table = Table.read(path)
        except (OSError, ValueError) as error:
            yield f"FUSED_RNN_TUNED: {error}"
        else:
            if _simd_error() is None and not serving(table):
                yield (
                    f"FUSED_RNN_TUNED: nothing in {path} is of a device that is here, with these "
                    "versions"
                )


def _reasons(missing: dict[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in missing.items())


def _checks() -> Iterator[Check]:
    devices = ["cpu", *_gpus()]
    for backend in BACKENDS.values():
        if backend.available() is None:
            for device in devices:
                if backend is native and device == "cpu" and _simd_error():
                    continue  # one problem, said once
                for cell in CELLS:
                    for dtype, limit in LIMITS.items():
                        yield _check(backend, device, cell, dtype, limit)


def _check(backend: Backend, device: str, cell: str, dtype: torch.dtype, limit: float) -> Check:
    what = (backend.name, device, cell, str(dtype).removeprefix("torch."), limit)
    forward, backward = 0.0, 0.0
    try:
        # Each sequence its own length, reversed; and for the LSTM a projection.
        for ragged, size in ((False, 0), (True, 0), (False, P))[: 3 if cell == "lstm" else 2]:
            problem = Problem(
                cell, torch.device(device), dtype, T, N, I, H, size, ragged, True, None
            )
            refusal = backend.supports(problem)
            if refusal is not None:
                return Check(*what, refusal=refusal)
            errors = _errors(backend, problem)
            forward, backward = _worse(forward, errors[0]), _worse(backward, errors[1])
    except Exception as error:  # Whatever a backend raises is a finding.
        return Check(*what, failure=f"{type(error).__name__}: {error}")
    return Check(*what, *(e if math.isfinite(e) else None for e in (forward, backward)))


def _worse(a: float, b: float) -> float:
    return a if a >= b or math.isnan(a) else b


def _errors(backend: Backend, problem: Problem) -> tuple[float, float]:
    inputs = _inputs(problem)
    exact = Inputs(*(t if t is None else t.double() for t in inputs))
    outputs, gradients = _run(reference, problem, exact)
    got_outputs, got_gradients = _run(backend, problem, inputs)
    with torch.no_grad():
        got_inference = _scan(backend, problem, inputs)
    forward = _worse(_error(got_outputs, outputs), _error(got_inference, outputs))
    return forward, _error(got_gradients, gradients)


def _inputs(problem: Problem) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    cell, size = CELLS[problem.cell], problem.P or H

    def draw(*shape: int, scale: float = H**-0.5) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * values - 1) * scale).to(problem.device, problem.dtype).requires_grad_()

    rows = (sum(BATCH_SIZES),) if problem.ragged else (T, N)
    return Inputs(
        draw(*rows, I, scale=2.0),
        draw(N, size, scale=1.0),
        draw(N, H, scale=1.0) if cell.has_cell_state else None,
        draw(cell.gates * H, I),
        draw(cell.gates * H, size),
        draw(cell.gates * H),
        draw(cell.gates * H),
        draw(problem.P, H) if problem.P else None,
    )


def _scan(backend: Backend, problem: Problem, inputs: Inputs) -> list[Tensor]:
    batch_sizes = torch.tensor(BATCH_SIZES) if problem.ragged else None
    results = autograd.scan(backend, problem.cell, inputs, batch_sizes, problem.ragged)
    return [t for t in results if t is not None]


def _run(
    backend: Backend, problem: Problem, inputs: Inputs
) -> tuple[list[Tensor], Sequence[Tensor]]:
    leaves = [t for t in inputs if t is not None]
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # some containers switch TF32 on
    if backend is reference:
        # Its operations are too small to share: where cores are busy, threads that wait for each
        # other take a hundred times as long.
        torch.set_num_threads(1)
    try:
        outputs = _scan(backend, problem, inputs)
        directions = [torch.linspace(-1, 1, t.numel()).view_as(t).to(t) for t in outputs]
        return outputs, torch.autograd.grad(outputs, leaves, directions)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _error(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = zip(got, exact, strict=True)
    errors = [((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]
    return torch.stack(errors).max().item()


def _text(
    installed: dict[str, dict[str, str | None]], checks: list[Check], problems: list[str]
) -> str:
    lines = []
    for section, entries in installed.items():
        lines += [section] if entries else []
        missing = {"settings": "not set", "backends": "available"}.get(section, "none")
        lines += [f"  {name:<20} {value or missing}" for name, value in entries.items()]
    lines += ["", "largest relative error against the reference in float64"]
    lines.append(_columns("backend", "device", "cell", "dtype", "forward", "backward", "limit", ""))
    for c in checks:
        numbers = [_number(e) for e in (c.forward, c.backward, c.limit)]
        lines.append(_columns(c.backend, c.device, c.cell, c.dtype, *numbers, c.verdict))
    lines += ["", *(f"problem: {p}" for p in problems)] if problems else ["", "All is well."]
    return "\n".join(lines)


def _columns(*texts: str) -> str:
    widths = (10, 7, 9, 9, 9, 9, 9, 0)
    return "  " + " ".join(t.ljust(w) for t, w in zip(texts, widths, strict=True)).rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    command.run(main)

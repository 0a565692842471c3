"""Compile the Triton kernels for a GPU that need not be there, and say what they take of it.

``python -m tests.backends.triton.table 90`` prints a table for sm_90; ``90 largest`` leaves it at
the kernels that take the most, those of whole sequences at their largest size; ``90 each float16``
at each kernel of a type, at its largest size. What is compiled is
what the backend launches: its own calls are caught, with arguments and options, just before they
would be launched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fused_rnn.backends import Inputs
from fused_rnn.backends.triton import gates as triton_gates
from fused_rnn.backends.triton import scan as triton_scan
from fused_rnn.backends.triton import sequence as triton_sequence
from fused_rnn.backends.triton import whole as triton_whole
from fused_rnn.cells import CELLS

POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
}


class Row(NamedTuple):
    """One kernel on one GPU: bytes of shared memory, registers of a thread, bytes spilt by it."""

    kernel: str
    cell: str
    dtype: str
    H: int
    warps: int
    shared: int
    registers: int
    spilt: int


class Caught(Exception):  # noqa: N818 (not an error)
    """A launch, before it happens."""


class Catcher:
    """Stands for a module of kernels."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)

        class Launch:
            def __getitem__(self, grid: Any) -> Any:
                def launch(*args: Any, **options: Any) -> None:
                    raise Caught(kernel, args, options)

                return launch

        return Launch()


def make_scan(cell: str, dtype: torch.dtype, H: int, P: int = 0) -> triton_scan.Scan:
    """Return a scan of zeros, large enough for no size to be 1."""
    T, N, R, G = 3, 5, P or H, CELLS[cell].gates

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    c0 = zeros(N, H) if cell == "lstm" else None
    weights = zeros(G * H, 7), zeros(G * H, R), zeros(G * H), zeros(G * H)
    inputs = Inputs(zeros(T, N, 7), zeros(N, R), c0, *weights, zeros(P, H) if P else None)
    return triton_scan.Scan(cell, inputs, None, False)


def launches(cell: str, dtype: torch.dtype, H: int, whole: bool) -> Iterator[Caught]:
    """Yield what the backend launches, forward in training and backward."""
    scan = make_scan(cell, dtype, H)
    h0, c0, real = scan.inputs.h0, scan.inputs.c0, scan.real
    gates = scan.empty(scan.rows, scan.G * H, dtype=real)
    extra = scan.empty(scan.rows, H, dtype=real) if scan.G > 1 else None
    y = scan.empty(scan.rows, H)
    if whole:
        plan = triton_whole.plan(scan)
        assert plan is not None, f"no plan for {cell} in {dtype}, H={H}"
        on = Catcher(triton_sequence), scan, plan
        runs = triton_whole.whole_forward, triton_whole.whole_backward
    else:
        on = Catcher(triton_gates), scan
        runs = triton_scan.step_forward, triton_scan.step_backward
    for run, args in zip(runs, ((y, h0, c0, True), (y, y, h0, c0)), strict=True):
        try:
            run(*on, gates, extra, *args)
        except Caught as launch:
            yield launch


def projected(dtype: torch.dtype) -> Iterator[Caught]:
    """Yield the launch that a projection adds."""
    scan = make_scan("lstm", dtype, 64, 32)
    gates = scan.empty(scan.rows, 256, dtype=scan.real)
    y = scan.empty(scan.rows, 32)
    try:
        triton_scan.step_backward(
            Catcher(triton_gates), scan, gates, gates[:, :64], y, y, scan.inputs.h0, None
        )
    except Caught as launch:
        yield launch


def compiled(launch: Caught, arch: int) -> Any:
    """Compile a caught launch as Triton would on the GPU."""
    kernel, args, options = launch.args
    names = kernel.arg_names
    given = dict(zip(names, args, strict=False))
    given |= {name: options.pop(name) for name in names if name in options}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        divisible = False
        if isinstance(value, torch.Tensor):
            kind = POINTERS[value.dtype]
            divisible = not parameter.do_not_specialize_on_alignment
        elif value is None or parameter.is_constexpr:
            kind = "constexpr"
            constants[(index,)] = value
        else:
            kind = "i32"
            divisible = not parameter.do_not_specialize and value % 16 == 0
        signature[parameter.name] = kind
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measured(launch: Caught, arch: int, cell: str, dtype: torch.dtype, H: int) -> Row:
    """Compile a launch; return its row of the table."""
    result = compiled(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said.stdout + said.stderr))
    meta = result.metadata
    return Row(
        meta.name,
        cell,
        str(dtype).removeprefix("torch."),
        H,
        meta.num_warps,
        meta.shared,
        int(usage["REG"]),
        int(usage["STACK"]) + int(usage["LOCAL"]),
    )


def sizes(cell: str, dtype: torch.dtype) -> list[int]:
    """Return hidden sizes for the whole-sequence kernels: every padded one, and an odd one."""
    largest = triton_whole.LIMITS.get((cell, dtype.itemsize), 0)
    found = [size for size in (16, 32, 64, 128, 256) if size <= largest]
    return [*found, largest - 1] if found else []


def table(arch: int, part: str = "all", only: str | None = None) -> Iterator[Row]:
    """Yield a row for every kernel at the sizes that the backend takes it for, or for a part."""
    # The interpreter's shortcoming is not the compiler's.
    triton_whole.MISINTERPRETED.clear()
    first = {"all": 0, "largest": -2, "each": -2}[part]
    last = -1 if part == "each" else None
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        if only not in (None, str(dtype).removeprefix("torch.")):
            continue
        for cell in CELLS:
            for H in sizes(cell, dtype)[first:last]:
                for launch in launches(cell, dtype, H, whole=True):
                    yield measured(launch, arch, cell, dtype, H)
            if part != "largest":
                for launch in launches(cell, dtype, 64, whole=False):
                    yield measured(launch, arch, cell, dtype, 64)
        for launch in () if part == "largest" else projected(dtype):
            yield measured(launch, arch, "lstm", dtype, 64)


def main() -> None:
    """Print the table for the GPU on the command line, a row of JSON on each line."""
    for row in table(int(sys.argv[1]), *sys.argv[2:]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

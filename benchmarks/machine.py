"""The machine under the figures: what it is, and the two rates that bound it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "matplotlib")
_SIMD_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve",
)  # fmt: skip

# (M, N, K): square ones as benchmarks have them, and a layer's batch times its weights.
_SGEMM_SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (2048, 2048, 512),
    (64, 2048, 1024),
    (32, 1024, 512),
)
# Tiles are fast enough for the making of small results to show.
_BF16_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (256, 4096, 1024))
_ALONE_SHAPES = ((512, 512, 512), (1024, 1024, 1024))
_IDLE_MOMENT = 1.0
_COPY_BYTES = 128 << 20  # beyond the last-level cache of any one socket this has met


def describe() -> dict[str, Any]:
    """Return the processor, its caches and its vector extensions, as far as the system tells."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": model.group(1).strip() if model else platform.processor() or "unknown",
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "simd": [flag for flag in _SIMD_FLAGS if flag in present],
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of fused_rnn and of everything it is measured against."""
    found = {"python": platform.python_version()}
    for package in ("fused_rnn", *_PACKAGES):
        try:
            found[package] = importlib.import_module(package).__version__
        except ImportError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit measured, marked where the tree has changes, or None without git."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parent
        run = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        return run.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return head + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


#: Share of the cores from which on other work spoils a timing: threads that wait for each other
#: suffer out of all proportion.
DISTURBING = 0.05


class OtherWork:
    """Watches what the cores do besides this process, from its making on.

    A time taken while something else ran is not the code's own; this is what tells the reader.
    """

    def __init__(self) -> None:
        self._start = _core_seconds()

    def shares(self) -> dict[str, float]:
        """Return the shares of all cores' time that other processes and the hypervisor took."""
        end = _core_seconds()
        if self._start is None or end is None:
            return {}
        cores, stolen, own, wall = (b - a for a, b in zip(self._start, end, strict=True))
        total = wall * (os.cpu_count() or 1)
        return {
            "processes": round(min(max(cores - own, 0.0) / total, 1.0), 3),
            "stolen": round(stolen / total, 3),
        }


def wait_for_idle_cores(seconds: float) -> None:
    """Sleep until other work has left the cores for a moment, ``seconds`` at most."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        watch = OtherWork()
        time.sleep(_IDLE_MOMENT)
        if sum(watch.shares().values()) <= DISTURBING:
            return


def _core_seconds() -> tuple[float, float, float, float] | None:
    """Return seconds so far: all cores at work, stolen from them, this process, the wall."""
    fields = _read("/proc/stat").split("\n")[0].split()
    if len(fields) < 9:
        return None
    user, nice, system, _idle, _wait, irq, soft, stolen = (int(field) for field in fields[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    working = (user + nice + system + irq + soft) / tick
    return working, stolen / tick, time.process_time(), time.perf_counter()


def measure_rates(seconds: float) -> dict[str, Any]:
    """Measure the best rates of matrix products, and the rate of copying memory.

    ``sgemm_gflops`` is the best of float32, ``matmul_gflops`` that of each dtype for which the
    processor has a unit: on all threads, and below ``one_thread`` on one.

    Args:
        seconds: Time given to each shape of each library.
    """
    sgemm = _matmuls(torch.float32, _SGEMM_SHAPES, seconds)
    best = max(sgemm, key=sgemm.__getitem__)
    rates: dict[str, Any] = {
        "sgemm_gflops": sgemm[best],
        "sgemm_best": best,
        "sgemm_all": sgemm,
        "copy_gbytes": _copy_gbytes(2 * seconds),
        "matmul_gflops": {"fp32": sgemm[best]},
    }
    half = _has_bf16_products()
    if half:
        bf16 = _matmuls(torch.bfloat16, _BF16_SHAPES, seconds)
        rates["matmul_gflops"]["bf16"] = max(bf16.values())
        rates["bf16_all"] = bf16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = {"fp32": max(_matmuls(torch.float32, _ALONE_SHAPES, seconds).values())}
    if half:
        alone["bf16"] = max(_matmuls(torch.bfloat16, _BF16_SHAPES[:2], seconds).values())
    torch.set_num_threads(threads)
    return rates | {"one_thread": {"matmul_gflops": alone}}


def _has_bf16_products() -> bool:
    """Return whether bfloat16 has more than a plain loop, which would take seconds here."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _matmuls(
    dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]], seconds: float
) -> dict[str, float]:
    """Return GFLOP/s by library and shape."""
    from torch.utils import mkldnn  # warns of its own use of torch.jit when imported

    found: dict[str, float] = {}
    for M, N, K in shapes:
        a, b = torch.randn(M, K, dtype=dtype), torch.randn(K, N, dtype=dtype)
        calls: dict[str, Callable[[], Any]] = {"mm": lambda a=a, b=b: torch.mm(a, b)}
        if torch.backends.mkldnn.is_available():
            linear = mkldnn.to_mkldnn(nn.Linear(K, N, bias=False).eval(), dtype)
            x = a.to_mkldnn()
            calls["oneDNN linear"] = lambda linear=linear, x=x: linear(x)
        for library, call in calls.items():
            with torch.no_grad():
                rate = 2 * M * N * K / _best(call, seconds) / 1e9
            found[f"{library} {M}x{N}x{K}"] = round(rate, 1)
    return found


def _copy_gbytes(seconds: float) -> float:
    source, target = torch.ones(_COPY_BYTES // 4), torch.empty(_COPY_BYTES // 4)
    copy = _best(lambda: target.copy_(source), seconds)
    return round(2 * _COPY_BYTES / copy / 1e9, 2)  # each byte is read and written


def _best(call: Callable[[], Any], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # a system without /proc or /sys
        return ""

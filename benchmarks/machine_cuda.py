"""The GPU under the figures: what it is, and the rates that bound it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .cases import DTYPES
from .timing import CLOCKS

_MATMUL_SIZES = (4096, 8192)
_COPY_BYTES = 1 << 30  # far beyond the last-level cache


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return what the driver tells about the GPU."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"sm_{found.major}{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "L2_bytes": getattr(found, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "architectures_of_torch": torch.cuda.get_arch_list(),
    }


def file_name(device: torch.device) -> str:
    """Return the GPU's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


@contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """Allow TF32 in this block for a ``dtype`` of "tf32", and forbid it for any other."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


def measure_gpu_rates(device: torch.device, seconds: float) -> dict[str, Any]:
    """Measure the best rate of matrix products in each dtype, and the rate of copying memory.

    Args:
        device: The GPU.
        seconds: Time given to each measurement.
    """
    matmul: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        if name == "autocast":  # its products are bf16's
            continue
        with matmul_precision(name):
            for n in _MATMUL_SIZES:
                a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
                rate = 2 * n**3 / _best(lambda a=a, b=b: torch.mm(a, b), device, seconds) / 1e9
                matmul[name] = round(max(matmul.get(name, 0.0), rate), 1)
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device, seconds)
    return {
        "matmul_gflops": matmul,
        "sgemm_gflops": matmul["fp32"],
        "sgemm_best": "torch.mm",
        "copy_gbytes": round(2 * _COPY_BYTES / copy / 1e9, 1),  # each byte is read and written
    }


def _best(call: Any, device: torch.device, seconds: float) -> float:
    clock = CLOCKS[device.type]
    once = clock(call, 3)
    number = max(1, int(seconds / 5 / once))
    return min(clock(call, number) for _ in range(5))

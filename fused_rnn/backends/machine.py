"""The device and the versions that a measurement holds for."""

from __future__ import annotations

import platform
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import torch

from fused_rnn.backends.measured import Here

__all__ = ["here"]


def here(device: torch.device, simd_level: str) -> Here:
    """Return what a device is, with what a measurement on it hangs on.

    Args:
        device: of any kind
        simd_level: of the CPU's kernels
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        # Not allow_tf32, which raises where a program has set these.
        settings = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
        tf32 = "/".join("on" if s.fp32_precision == "tf32" else "off" for s in settings)
        return Here(f"{_gpu(index)}, TF32 in products/cuDNN {tf32}", _versions())
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return Here(f"{_processor()}, {simd_level}, {threads} threads", _versions())
    return Here(device.type, _versions())


@cache
def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # a system without /proc
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = {
        "fused_rnn": str(import_module("fused_rnn").__version__),
        "torch": str(torch.__version__),
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
        try:
            found["triton"] = metadata.version("triton")
        except metadata.PackageNotFoundError:
            found["triton"] = "none"
    return tuple(sorted(found.items()))

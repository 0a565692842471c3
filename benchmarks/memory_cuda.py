"""Memory of one call on a GPU, as torch's allocator counts it: everything there goes through it."""

from __future__ import annotations

import gc
import importlib

import torch

from .cases import Case
from .workload import build


class CudaMemory:
    """Measures in this process: the allocator's peak can be reset, the system's need not be."""

    unavailable: str | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def close(self) -> None:
        """Do nothing: no process of its own is running."""

    def measure(self, case: Case, library: str) -> int:
        """Return the bytes that one call takes at its peak, its results included."""
        work = build(case, self._device)
        module = work.make_module(importlib.import_module(library)).train(case.backward)
        call = work.caller(module, module.parameters())
        with torch.set_grad_enabled(case.grad):
            call()  # handles and workspaces that stay are not this call's
            before = self._settled()
            torch.cuda.reset_peak_memory_stats(self._device)
            result = call()
            torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        del result
        return max(peak - before, 0)

    def activations(self, case: Case, library: str) -> int | None:
        """Return the bytes that a forward pass keeps for the backward, its output included."""
        if not case.backward:
            return None
        work = build(case, self._device)
        module = work.make_module(importlib.import_module(library)).train()
        module(*work.arguments)
        before = self._settled()
        result = module(*work.arguments)
        torch.cuda.synchronize(self._device)
        kept = torch.cuda.memory_allocated(self._device) - before
        del result
        return max(kept, 0)

    def _settled(self) -> int:
        gc.collect()
        torch.cuda.synchronize(self._device)
        return torch.cuda.memory_allocated(self._device)

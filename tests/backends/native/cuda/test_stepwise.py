"""The CUDA stepwise path without a GPU: its kernels on the host bench, its products on the CPU.

All that is not the device's own is the shipped source: the order of steps, rows that join and end,
projections, what is saved, the gradients of all operands.
"""

import functools

import pytest
import torch

from fused_rnn.backends import native
from fused_rnn.cells import CELLS
from tests.backends.test_kernels import (  # noqa: F401 (the same tests, with the fixtures below)
    test_a_sequence_with_nan_stays_alone,
    test_every_cell_state,
    test_inference_computes_what_training_does,
    test_kernel_is_the_reference,
    test_operands_stand_anywhere_in_their_storage,
    test_two_runs_are_bit_equal,
)
from tests.native.build import UnbuildableError
from tests.native.simt.library import stepwise


@functools.cache
def _load() -> str | None:
    """Load the bench's ops; return None, or why they cannot be had."""
    try:
        torch.ops.load_library(stepwise())
    except UnbuildableError as reason:
        return str(reason)
    return None


@pytest.fixture
def device():
    """The bench takes CPU tensors."""
    return "cpu"


@pytest.fixture
def kernel(monkeypatch):
    """The native backend, with the bench's ops in place of the CPU's."""
    reason = _load()
    if reason is not None:
        pytest.skip(reason)
    ops = torch.ops.fused_rnn_bench
    for cell in CELLS:
        monkeypatch.setitem(native._FORWARD, cell, getattr(ops, f"{cell}_forward").default)
        monkeypatch.setitem(native._BACKWARD, cell, getattr(ops, f"{cell}_backward").default)
    return native

"""Fresh memory is NaN in tests, so that a read of what was never written shows."""

import ctypes
import os
from importlib import util

import pytest
import torch

from fused_rnn.backends import native
from tests.conftest import TOLERANCES

needs_native = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="not switched on beside a GPU")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tensors(dtype):
    assert torch.empty(100, dtype=dtype).isnan().all()
    assert torch.zeros(1, dtype=dtype).new_empty(7, 3).isnan().all()


@needs_native
@pytest.mark.parametrize("size", [1, 1000, 1 << 16, 3 << 20])
def test_scratch_of_the_native_core(size):
    assert os.environ["FUSED_RNN_POISON"] == "1"
    library = ctypes.CDLL(util.find_spec("fused_rnn._C").origin)
    allocate = library["_ZN9fused_rnn16scratch_allocateEm"]
    allocate.restype = ctypes.c_void_p
    free = library["_ZN9fused_rnn12scratch_freeEPvmb"]
    for _ in range(2):  # the second time a block that was kept, with what was written
        block = allocate(ctypes.c_size_t(size))
        assert ctypes.string_at(block, size) == b"\xff" * size
        ctypes.memset(block, 0, size)
        free(ctypes.c_void_p(block), ctypes.c_size_t(size), ctypes.c_bool(True))


@needs_native
def test_a_kept_block_is_no_smaller_than_what_is_asked_for():
    library = ctypes.CDLL(util.find_spec("fused_rnn._C").origin)
    allocate = library["_ZN9fused_rnn16scratch_allocateEm"]
    allocate.restype = ctypes.c_void_p
    free = library["_ZN9fused_rnn12scratch_freeEPvmb"]
    sizes = [n << 16 for n in (2, 3, 4, 6, 7)]
    kept = {}
    for size in sizes:
        kept[size] = allocate(ctypes.c_size_t(size))
        free(ctypes.c_void_p(kept[size]), ctypes.c_size_t(size), ctypes.c_bool(True))
        others = [block for other, block in kept.items() if other != size]
        assert kept[size] not in others

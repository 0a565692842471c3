"""What the tests iterate over: cells, kernels, devices, dtypes and shapes, each from one table."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from operands import RAGGED, SHAPES, SMALL, SMALL_RAGGED, Shape

from fused_rnn.backends import BACKENDS, reference
from fused_rnn.cells import CELLS


class Tolerance(NamedTuple):
    """Largest error against the float64 reference, relative to the largest element expected."""

    forward: float
    gradient: float


# A new dtype is one row.
TOLERANCES = {
    torch.float64: Tolerance(1e-14, 2e-14),
    torch.float32: Tolerance(2e-6, 4e-6),
    torch.float16: Tolerance(2e-3, 8e-3),
    torch.bfloat16: Tolerance(2e-2, 5e-2),
}

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

KERNELS = [backend for backend in BACKENDS.values() if backend is not reference]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CELLS)
def cell(request):
    """Each cell of the table."""
    return request.param


@pytest.fixture(
    params=[*((name, False) for name in CELLS), ("lstm", True)],
    ids=lambda c: c[0] + "-projected" * c[1],
)
def variant(request):
    """Each cell, and whether it has a projection."""
    return request.param


@pytest.fixture(params=TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    """Each element type of the kernels."""
    return request.param


@pytest.fixture
def tolerance(dtype):
    """How far a kernel of this dtype may be off."""
    return TOLERANCES[dtype]


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device of this machine."""
    return request.param


@pytest.fixture(params=KERNELS, ids=lambda kernel: kernel.name)
def kernel(request):
    """Each backend made of kernels, where it is available."""
    reason = request.param.available()
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["forward", "reverse"])
def reverse(request):
    """Both directions."""
    return request.param == "reverse"


@pytest.fixture(params=[*SHAPES, *RAGGED])
def shape(request) -> Shape:
    """Dense and ragged shapes, most of them odd."""
    return SHAPES.get(request.param) or RAGGED[request.param]


@pytest.fixture(params=[SMALL, SMALL_RAGGED], ids=["dense", "ragged"])
def small(request) -> Shape:
    """A dense and a ragged shape, for what is expensive or does not depend on shapes."""
    return request.param

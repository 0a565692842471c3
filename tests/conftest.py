"""What the tests iterate over: cells, kernels, devices, dtypes and shapes, each from one table."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from operands import RAGGED, SHAPES, SMALL, SMALL_RAGGED, Shape

from fused_rnn.backends import BACKENDS, native, reference
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

# Why nothing can be tested on a GPU here, or None.
NO_CUDA = native.cuda_missing() if torch.cuda.is_available() else "no CUDA device here"
needs_cuda = pytest.mark.skipif(NO_CUDA is not None, reason=f"cuda: {NO_CUDA}")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]

# Native always: where it is missing the tests shall say so.
KERNELS = [
    native,
    *(b for b in BACKENDS.values() if b not in (native, reference) and not b.available()),
]


def pytest_addoption(parser):
    """Take the benchmarks' --quick, so that `make test bench ARGS=--quick` does both."""
    parser.addoption("--quick", action="store_true", help="leave out the tests marked slow")


def pytest_configure(config):
    """Register the marks."""
    config.addinivalue_line("markers", "slow: takes seconds or tens of GiB; not under --quick")


def pytest_collection_modifyitems(config, items):
    """Skip the slow tests under --quick, and what needs a GPU once for each test."""
    if config.getoption("--quick"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow, and --quick was asked for"))
    if NO_CUDA is not None:
        # One skip of each test says why; thousands say no more, and take a quarter of a minute.
        seen, left_out = set(), []
        for item in items:
            if hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda":
                (left_out if item.function in seen else []).append(item)
                seen.add(item.function)
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            dropped = set(left_out)
            items[:] = [item for item in items if item not in dropped]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=NO_CUDA is None)
def _float32_is_float32():
    """Switch TF32 off, which cuDNN would use unasked: tolerances are those of float32."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, allowed in zip(settings, before, strict=True):
        setting.allow_tf32 = allowed


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
    """The CPU, and a GPU where there is one and kernels for it."""
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

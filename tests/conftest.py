"""What the tests iterate over: cells, kernels, devices, dtypes and shapes, each from one table."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

# Before torch and the native module read them. A process of several shares the cores with others.
os.environ.setdefault("FUSED_RNN_POISON", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from fused_rnn import backends
from fused_rnn.backends import BACKENDS, native, reference
from fused_rnn.backends.native import persistent
from fused_rnn.cells import CELLS
from tests import tiers
from tests.operands import RAGGED, SHAPES, SMALL, SMALL_RAGGED, Shape


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
# By name; skipped by a mark where it cannot run, so that the core tier knows (tiers.py).
EACH_BACKEND = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(b.available() is not None, reason=f"{name}: {b.available()}"),
    )
    for name, b in BACKENDS.items()
]


def pytest_addoption(parser):
    """Take the choice of the tier; --quick, as the benchmarks have it, means the core tier too."""
    parser.addoption("--core", "--quick", action="store_true", help="the core tier (tiers.py)")


def pytest_collection_modifyitems(config, items):
    """Leave out what is not in the tier asked for, and of skipped tests all but one of each."""
    kept = tiers.choose(items, core=config.getoption("--core"))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    # First, and so all by one worker while the others wait once, not for each.
    items.sort(key=lambda item: tiers.entry(item, tiers.APART) is None)


class _Room:
    """Where workers run their tests: together, or one alone.

    Who wants to be alone keeps the gate shut while waiting, or tests of others would follow on each
    other and never leave the room; and stays alone from one such test to the next.
    """

    def __init__(self) -> None:
        self.stay, self.mode = ExitStack(), fcntl.LOCK_UN

    def enter(self, folder: Path, mode: int) -> None:
        """Come in, if need be after waiting, and leave what was held before."""
        if mode == self.mode == fcntl.LOCK_EX:
            return
        self.leave()
        gate, room = (self.stay.enter_context((folder / n).open("w")) for n in ("gate", "room"))
        fcntl.flock(gate, mode)
        fcntl.flock(room, mode)
        if mode == fcntl.LOCK_SH:
            fcntl.flock(gate, fcntl.LOCK_UN)
        self.mode = mode

    def leave(self) -> None:
        """Let others in."""
        self.stay.close()
        self.mode = fcntl.LOCK_UN


_ROOM = _Room()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Keep other workers' tests from running beside one that wants the cores to itself.

    Around all of a test: fixtures of a module are set up before those of a function.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = tiers.entry(item, tiers.APART) is not None
    _ROOM.enter(item.config.cache.mkdir("room"), fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        if not alone:
            _ROOM.leave()


def pytest_sessionfinish():
    """Let other workers in, where the last test was alone."""
    _ROOM.leave()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=NO_CUDA is not None)
def _fresh_tensors_are_nan():
    """Fill what torch.empty gives: FUSED_RNN_POISON does that for what the native module makes.

    Not on a GPU: torch's switch chooses other algorithms there, and warns of more.
    """
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_deterministic_debug_mode(before)


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


@pytest.fixture(autouse=NO_CUDA is None)
def _kernels_run_unmeasured(monkeypatch):
    """Have kernels run on a GPU by themselves: as shipped torch.nn would, and alone be tested.

    ``backends/test_default.py`` has the rule as it is shipped.
    """
    monkeypatch.setattr(backends, "UNMEASURED", None)
    backends._forget()


@pytest.fixture
def no_known_plans():
    """Forget what was answered, or will be by a stand-in, of plans for a GPU."""
    persistent._has_plan.cache_clear()
    yield
    persistent._has_plan.cache_clear()


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

"""Asks csrc/cuda/persistent/plan.h how a persistent kernel lies on a device, made up or not."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any, NamedTuple

from .build import NATIVE, ROOT, Target, Unit, build

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # as CellKind counts
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
DTYPES = ("float32", "float64", "float16", "bfloat16")  # as Dtype counts
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


class Device(NamedTuple):
    """What a device has; ``clusters`` of 1, 2, 4 and 8 blocks, each with an SM's shared memory."""

    capability: int
    sms: int
    shared_bytes: int
    cooperative: bool = True
    clusters: tuple[int, int, int, int] | None = None  # None: single blocks only

    @property
    def clusters_at_once(self) -> tuple[int, int, int, int]:
        return self.clusters or (self.sms, 0, 0, 0)


KB = 1024
H100 = Device(90, 132, 227 * KB, clusters=(132, 66, 32, 16))
A100 = Device(80, 108, 163 * KB)
SMALL = Device(86, 20, 99 * KB)
SLICE = Device(90, 16, 227 * KB, clusters=(16, 8, 4, 2))  # 1g.10gb of an H100
TURING = Device(75, 68, 64 * KB)


class Problem(NamedTuple):
    """A scan to be planned."""

    cell: str = "lstm"
    dtype: str = "bfloat16"
    H: int = 768
    N: int = 16
    T: int = 1024
    backward: bool = False
    training: bool = True
    tf32: bool = False
    P: int = 0
    directions: int = 1


class _Problem(ctypes.Structure):
    _fields_ = (
        ("cell", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("tf32", ctypes.c_bool),
        ("backward", ctypes.c_bool),
        ("training", ctypes.c_bool),
        *((name, ctypes.c_int64) for name in "TNHP"),
        ("directions", ctypes.c_int),
    )


class _Device(ctypes.Structure):
    _fields_ = (
        ("capability", ctypes.c_int),
        ("sms", ctypes.c_int),
        ("shared_bytes", ctypes.c_int64),
        ("cooperative", ctypes.c_bool),
        ("clusters", ctypes.c_int * 4),
    )


_INTS = (
    *("found", "shape", "units", "blocks", "cluster", "columns", "chunks", "groups"),
    *("rows", "threads", "flag_copies", "flag_stride"),
)
_LONGS = ("shared_bytes", "depth", "padded_depth", "scratch_bytes", "register_bytes")


class Answer(ctypes.Structure):
    """A plan, as ``Answer`` of plan.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INTS),
        *((name, ctypes.c_int64) for name in _LONGS),
        ("microseconds", ctypes.c_double),
        ("text", ctypes.c_char * 512),
    )

    @property
    def words(self) -> str:
        return self.text.decode()

    @property
    def meeting(self) -> int:
        """How the blocks of a group meet, as enum Meeting counts."""
        return 0 if self.cluster == 0 else 1 if self.cluster == self.blocks else 2


def target() -> Target:
    """Return the plan, for any device."""
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", f"-I{ROOT / 'csrc'}")
    return Target("plan/plan.so", (Unit(NATIVE / "plan.cpp", flags),), ("-shared",))


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build(target())))


def plan(problem: Problem, device: Device) -> Answer:
    """Return the plan, or with ``found`` 0 the reason why there is none."""
    answer = Answer()
    _library().fused_rnn_plan(*_given(problem, device), ctypes.byref(answer))
    return answer


def known_plan(problem: Problem, device: Device) -> tuple[Answer, int]:
    """Return the same from the cache, and how many plans have had to be made for it so far."""
    answer, function = Answer(), _library().fused_rnn_known_plan
    function.restype = ctypes.c_int64
    made = function(*_given(problem, device), ctypes.byref(answer))
    return answer, made


def compiled(backward: bool) -> list[tuple[int, int]]:
    """Return how the blocks of each kernel meet, as enum Meeting counts, and its shape."""
    library = _library()
    every = itertools.product(range(3), range(library.fused_rnn_shape_count()))
    return [way for way in every if library.fused_rnn_is_compiled(backward, *way)]


def _given(problem: Problem, device: Device) -> tuple[Any, Any]:
    p = problem
    given = _Problem(
        CELLS.index(p.cell), DTYPES.index(p.dtype), p.tf32, p.backward, p.training, p.T, p.N, p.H,
        p.P, p.directions,
    )  # fmt: skip
    facts = _Device(
        device.capability, device.sms, device.shared_bytes, device.cooperative,
        (ctypes.c_int * 4)(*device.clusters_at_once),
    )  # fmt: skip
    return ctypes.byref(given), ctypes.byref(facts)

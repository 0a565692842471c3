"""Compiles kernels for the host bench, and drives the machine that runs them."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from ..build import NATIVE, ROOT, Target, UnbuildableError, Unit, build

SIMT = Path(__file__).parent
TOYS = (SIMT / "toys.cu",)
CUDA = ROOT / "csrc" / "cuda"
GATES = (CUDA / "stepwise/gates.cu", CUDA / "stepwise/marked.cu", SIMT / "gates.cpp")
# The kernels that the CUDA paths call beside the scans of all steps.
_OTHERS = ("stepwise/gates", "stepwise/marked", "lengths", "persistent/floor")
MACHINE = (SIMT / "machine.cpp", SIMT / "block.cpp")

# Fewer vectors than that are taken one unit at a time: few enough for both kinds of access at small
# sizes. As shipped it is a GPU's worth of threads.
FEW_THREADS = 16

FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden"),
    "-ffp-contract=off",  # which operations fuse would depend on the accesses that are compiled in
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas"),  # nvcc's unroll
    *(f"-I{path}" for path in (ROOT / "csrc", SIMT)),
    f"-DFUSED_RNN_FEW_THREADS={FEW_THREADS}",
    "-DFUSED_RNN_SIMT",  # quotients as GPUs make them
)
# Set where tests run with the sanitizers' libraries preloaded: then kernels are sanitized too.
SANITIZE = "FUSED_RNN_SANITIZED_BENCH"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# A program is linked to these kernels, and calls what is no C interface. It has few problems, and
# is sooner done where nothing is optimised.
SANITIZED = (*SANITIZERS, "-fvisibility=default", "-O0")

FORWARD, BACKWARD = 0, 1  # orders of threads and blocks; a larger number is a seed of random ones
ORDERS = (FORWARD, BACKWARD, 2, 3)


def _units(sources: Iterable[Path], flags: tuple[str, ...]) -> tuple[Unit, ...]:
    def language(source: Path) -> tuple[str, ...]:
        return ("-x", "c++") if source.suffix == ".cu" else ()

    return tuple(Unit(source, (*FLAGS, *flags, *language(source))) for source in sources)


def target(folder: str, sources: Iterable[Path], flags: tuple[str, ...] = ()) -> Target:
    """Return kernels, and the machine that runs them, as a library."""
    if not flags and os.environ.get(SANITIZE):
        folder, flags = f"{folder}_in_python", SANITIZERS
    units = _units((*sources, *MACHINE), flags)
    return Target(f"{folder}/kernels.so", units, ("-shared", *flags))


def program(
    folder: str,
    main: Path,
    kernels: Iterable[Path],
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build a program of sanitized kernels; these stay a library, as simt.h asks for."""
    library = target(folder, kernels, SANITIZED)
    units = _units([main], SANITIZED)
    whole = Target(f"{folder}/program", units, SANITIZED, (library.path,))
    return build(library, whole, report=report)


def stepwise_target() -> Target:
    """Return the CUDA paths for the host bench, as a library of torch ops."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        raise UnbuildableError(f"torch cannot build extensions here ({error})") from None
    ops = (
        *("-Wno-unused-parameter", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        "-DFUSED_RNN_CHUNK_ELEMENTS=256",  # several chunks, at small sizes too
        *(f"-I{path}" for path in include_paths()),
    )
    units = (
        *_units((CUDA / "persistent" / f"{run}.cu" for run in ("backward", "forward")), ()),
        *_units((NATIVE / "stepwise.cpp",), ops),
        *_units((CUDA / f"{name}.cu" for name in _OTHERS), ()),
        *_units(MACHINE, ()),
    )
    libraries = (f"-L{path}" for path in library_paths())
    link_flags = ("-shared", *libraries, "-ltorch", "-ltorch_cpu", "-lc10")
    return Target("stepwise/stepwise.so", units, link_flags)


@functools.cache
def stepwise() -> Path:
    """Build the CUDA paths for the host bench: once for all tests."""
    return build(stepwise_target())


class Launch(NamedTuple):
    """The configuration of a launch."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


class Machine:
    """A library of kernels, and how to run them."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.simt_set_order.restype = None

    @contextmanager
    def order(self, order: int) -> Iterator[None]:
        """Run blocks, and threads that do not wait, in this order."""
        self.library.simt_set_order(ctypes.c_uint64(order))
        try:
            yield
        finally:
            self.library.simt_set_order(ctypes.c_uint64(FORWARD))

    @contextmanager
    def refusal(self, blocks: int = 1) -> Iterator[None]:
        """Refuse launches of so many blocks that wait for each other, or more."""
        self.library.simt_refuse.restype = None
        self.library.simt_refuse(ctypes.c_uint(blocks))
        try:
            yield
        finally:
            self.library.simt_refuse(ctypes.c_uint(0))

    def last_launch(self) -> Launch | None:
        """Return the last launch since the last question, if there was one."""
        extents = (ctypes.c_uint * 6)()
        any_ = self.library.simt_last_launch(extents)
        return Launch(tuple(extents[:3]), tuple(extents[3:])) if any_ else None

    def function(self, name: str) -> Callable[..., None]:
        """Return a C function that returns null or what went wrong, as one that raises."""
        function = self.library[name]
        function.restype = ctypes.c_char_p

        def call(*arguments: object) -> None:
            failure = function(*arguments)
            if failure is not None:
                raise RuntimeError(failure.decode())

        return call


@functools.cache
def _machine_or_reason(folder: str, sources: tuple[Path, ...]) -> Machine | str:
    try:
        return Machine(build(target(folder, sources)))
    except UnbuildableError as reason:
        return str(reason)


def machine(folder: str, sources: tuple[Path, ...]) -> Machine:
    """Return the machine with these kernels; skip the running test where it cannot be built."""
    found = _machine_or_reason(folder, sources)
    if isinstance(found, str):
        pytest.skip(found)
    return found

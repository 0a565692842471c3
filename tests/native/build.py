"""Compiles the bench and the sanitized programs with the C++ compiler, when sources change."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NATIVE = Path(__file__).parent
CACHE = ROOT / "build" / "native"

# What csrc/cpu/level_*.cpp say: the level's target, null for the compiler's own, and its registers.
LEVELS: dict[str, tuple[str | None, int]] = {"portable": (None, 16)}
if os.uname().machine == "x86_64":
    LEVELS["avx2"] = ("avx2,fma,f16c", 32)
    LEVELS["avx512"] = ("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c", 64)


class Unit(NamedTuple):
    """One call of the compiler: a source, where its object goes (below the cache), the flags."""

    source: Path
    output: str
    flags: tuple[str, ...]


class UnbuildableError(RuntimeError):
    """This machine lacks what a build needs; the message says what."""


def compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        raise UnbuildableError(f"there is no C++ compiler: {command[0]} was not found")
    return command


def shipped_flags() -> tuple[str, ...]:
    """Return the flags that setup.py compiles the kernels with."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLAGS":
            return tuple(ast.literal_eval(node.value))
    raise LookupError("setup.py has no FLAGS")


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _is_fresh(output: Path, command: list[str]) -> bool:
    record = output.with_name(output.name + ".json")
    if not (output.exists() and record.exists()):
        return False
    known = json.loads(record.read_text())
    return known["command"] == command and all(
        Path(path).exists() and _digest(path) == digest for path, digest in known["inputs"].items()
    )


def _build(output: Path, command: list[str], inputs: Callable[[], Iterable[str]]) -> float:
    """Run a command that makes ``output`` unless it is fresh; return the seconds taken."""
    if _is_fresh(output, command):
        return 0.0
    output.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{run.stderr[-4000:]}")
    record = {"command": command, "inputs": {path: _digest(path) for path in inputs()}}
    output.with_name(output.name + ".json").write_text(json.dumps(record))
    return time.monotonic() - begin


def _compile(unit: Unit, report: Callable[[str], None]) -> Path:
    output = CACHE / unit.output
    dependencies = output.with_suffix(".d")
    command = [*compiler(), *unit.flags, "-MMD", "-MF", str(dependencies)]
    command += ["-c", str(unit.source), "-o", str(output)]

    def inputs() -> list[str]:
        words = dependencies.read_text().replace("\\\n", " ").split()[1:]
        return [path for path in words if Path(path).is_relative_to(ROOT)]

    seconds = _build(output, command, inputs)
    if seconds:
        report(f"compiled {unit.output} in {seconds:.0f} s")
    return output


@contextmanager
def _alone() -> Iterator[None]:
    """Keep a second process from building the same things at the same time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(
    units: list[Unit],
    output: str,
    link_flags: Iterable[str],
    libraries: Iterable[Path] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Compile the units side by side, link them, and return the path of the result."""
    with _alone(), ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: _compile(unit, report), units))
        linked = [str(path) for path in (*objects, *libraries)]
        target = CACHE / output
        _build(target, [*compiler(), *linked, *link_flags, "-o", str(target)], lambda: linked)
        return target


def _shipped_library() -> Path:
    spec = importlib.util.find_spec("fused_rnn._C")
    if spec is None or spec.origin is None:
        raise UnbuildableError("the native module was not built")
    return Path(spec.origin)


def bench() -> ModuleType:
    """Build the bench if need be, and import it. Its kernels are those of the shipped library."""
    library = _shipped_library()
    try:
        import pybind11
    except ImportError:
        raise UnbuildableError("pybind11 is not installed") from None
    import torch  # noqa: F401  the shipped library needs torch's, and finds those already loaded

    units = []
    for level, (target, bytes_) in LEVELS.items():
        defines = [f"-DFUSED_RNN_LEVEL={level}", f"-DFUSED_RNN_VECTOR_BYTES={bytes_}"]
        if target is not None:
            defines.append(f'-DFUSED_RNN_TARGET="{target}"')
        flags = (*shipped_flags(), "-Wall", "-Wextra", "-Wno-psabi", "-fPIC", *defines)
        units.append(Unit(NATIVE / "math_level.cpp", f"bench/math_{level}.o", flags))
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", *includes)
    units.append(Unit(NATIVE / "bench.cpp", "bench/bench.o", flags))
    name = f"bench/_bench{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = build(units, name, ["-shared", "-pthread"], [library])
    spec = importlib.util.spec_from_file_location("_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scalar_math() -> ctypes.CDLL:
    """Build math.h for scalars if need be, and load it."""
    flags = (*shipped_flags(), "-Wall", "-Wextra", "-fPIC")
    unit = Unit(NATIVE / "math_scalar.cpp", "bench/math_scalar.o", flags)
    return ctypes.CDLL(str(build([unit], "bench/math_scalar.so", ["-shared"])))


@functools.cache
def stepwise() -> Path:
    """Build the CUDA paths for the host bench, as a library of torch ops: once for all tests."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        raise UnbuildableError(f"torch cannot build extensions here ({error})") from None
    sources = (ROOT / "csrc", ROOT / "csrc" / "cuda", NATIVE / "simt", *include_paths())
    flags = (
        *("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas"),
        *("-fPIC", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        # Wide accesses, and several chunks, at small sizes too.
        *("-DFUSED_RNN_FEW_THREADS=16", "-DFUSED_RNN_CHUNK_ELEMENTS=256"),
        *(f"-I{path}" for path in sources),
    )
    units = [
        Unit(NATIVE / "stepwise.cpp", "stepwise/stepwise.o", flags),
        *(
            Unit(ROOT / "csrc" / "cuda" / f"{name}.cu", f"stepwise/{name}.o", (*flags, "-xc++"))
            for name in (
                *("gates", "marked", "lengths", "floor"),
                *("persistent_forward", "persistent_backward"),
            )
        ),
        *(
            Unit(NATIVE / "simt" / f"{name}.cpp", f"stepwise/{name}.o", flags)
            for name in ("machine", "block")
        ),
    ]
    libraries = (f"-L{path}" for path in library_paths())
    link_flags = ["-shared", *libraries, "-ltorch", "-ltorch_cpu", "-lc10"]
    return build(units, "stepwise/stepwise.so", link_flags)

"""Compiles the bench and the sanitized programs with the C++ compiler, when sources change."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import functools
import hashlib
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
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NATIVE = Path(__file__).parent
CACHE = ROOT / "build" / "native"
# As setup.py takes them: --coverage, say.
MORE = tuple(os.environ.get("FUSED_RNN_CXXFLAGS", "").split())

# What csrc/cpu/level_*.h say: the level's target, None for the compiler's own, and its registers.
LEVELS: dict[str, tuple[str | None, int]] = {"portable": (None, 16)}
if os.uname().machine == "x86_64":
    LEVELS["avx2"] = ("avx2,fma,f16c", 32)
    LEVELS["avx512"] = ("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c", 64)
    LEVELS["amx"] = LEVELS["avx512"]
# Of the bench alone, where there is an amx level (tiles_level.cpp): what csrc/cpu/tiles/ has, on
# AMX's registers and on their model in plain C++.
TILES = {"amx_always": "Amx", "amx_model": "TileModel"}
# Where the CPU has no AVX-512, the model is one of its vectors too.
MODELLED_VECTORS = ("-DFUSED_RNN_TABLES=TableModel", "-mavx2", "-mfma")


class Unit(NamedTuple):
    """One call of the compiler; the same one in several targets is made once."""

    source: Path
    flags: tuple[str, ...]


class Target(NamedTuple):
    """A library or a program: what is linked, and where it goes (below the cache)."""

    output: str
    units: tuple[Unit, ...]
    link_flags: tuple[str, ...]
    libraries: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """Where it is once it has been built."""
        return CACHE / self.output


class UnbuildableError(RuntimeError):
    """This machine lacks what a build needs; the message says what."""


class CompilationError(RuntimeError):
    """Sources do not compile; the message has the command and what the compiler said."""


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


@functools.cache
def _tools() -> str:
    """Return what makes things beside the sources, which an object has to be made by anew."""
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout
    found = (util.find_spec(name) for name in ("torch", "pybind11"))
    versions = (metadata.version(spec.name) for spec in found if spec is not None)
    return " ".join((version.partition("\n")[0], *versions))


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _is_fresh(output: Path, command: list[str]) -> bool:
    record = output.with_name(output.name + ".json")
    if not (output.exists() and record.exists()):
        return False
    known = json.loads(record.read_text())
    return (known.get("tools"), known["command"]) == (_tools(), command) and all(
        Path(path).exists() and _digest(path) == digest for path, digest in known["inputs"].items()
    )


def _build(output: Path, command: list[str], inputs: Callable[[], Iterable[str]]) -> float:
    """Run a command that makes ``output`` unless it is fresh; return the seconds taken."""
    if _is_fresh(output, command):
        return 0.0
    output.parent.mkdir(parents=True, exist_ok=True)
    record = output.with_name(output.name + ".json")
    record.unlink(missing_ok=True)  # it must not vouch for what an interruption leaves
    begin, started = time.monotonic(), time.time()
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise CompilationError(f"{shlex.join(command)}\n{run.stderr[-4000:]}")
    made_of = {path: _digest(path) for path in inputs()}
    # What was changed meanwhile may have been read before or after: next time it is made again.
    if all(Path(path).stat().st_mtime <= started for path in made_of):
        text = json.dumps({"tools": _tools(), "command": command, "inputs": made_of})
        unfinished = record.with_suffix(".part")
        unfinished.write_text(text)
        unfinished.replace(record)
    return time.monotonic() - begin


def _compile(unit: Unit, report: Callable[[str], None]) -> Path:
    key = "\0".join([str(unit.source), *unit.flags, *MORE])
    flags = hashlib.sha256(key.encode()).hexdigest()[:12]
    output = CACHE / "objects" / f"{unit.source.stem}-{flags}.o"
    dependencies = output.with_suffix(".d")
    command = [*compiler(), *unit.flags, *MORE, "-MMD", "-MF", str(dependencies)]
    command += ["-c", str(unit.source), "-o", str(output)]

    def inputs() -> list[str]:
        words = dependencies.read_text().replace("\\\n", " ").split()[1:]
        return [path for path in words if Path(path).is_relative_to(ROOT)]

    seconds = _build(output, command, inputs)
    if seconds:
        report(f"compiled {unit.source.name} in {seconds:.0f} s")
    return output


@contextmanager
def _alone() -> Iterator[None]:
    """Keep a second process from building the same things at the same time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(*targets: Target, report: Callable[[str], None] = lambda line: None) -> Path:
    """Compile what the targets are made of side by side, link them, return the last one's path."""
    with _alone(), ThreadPoolExecutor(os.cpu_count()) as pool:
        units = list(dict.fromkeys(unit for target in targets for unit in target.units))
        made = pool.map(lambda unit: _compile(unit, report), units)
        objects = dict(zip(units, made, strict=True))
        for target in targets:
            linked = [str(objects[unit]) for unit in target.units]
            linked += map(str, target.libraries)
            command = [*compiler(), *linked, *target.link_flags, *MORE, "-o", str(target.path)]
            _build(target.path, command, lambda linked=linked: linked)
        return targets[-1].path


def shipped_library() -> Path:
    spec = util.find_spec("fused_rnn._C")
    if spec is None or spec.origin is None:
        raise UnbuildableError("the native module was not built")
    return Path(spec.origin)


def levels_of(library: Path) -> dict[str, tuple[str | None, int]]:
    """Return those of LEVELS that the module was built with."""
    symbols = ctypes.CDLL(str(library))

    def is_built(level: str) -> bool:
        try:
            ctypes.c_char.in_dll(symbols, f"_ZN9fused_rnn{len(level)}{level}6kLevelE")
        except ValueError:
            return False
        return True

    return {level: row for level, row in LEVELS.items() if is_built(level)}


@functools.cache
def cpu_flags() -> frozenset[str] | None:
    """Return the CPU's instruction sets by Linux's names, None where the system does not tell."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None


def vectors_are_modelled() -> bool:
    """Return whether the model of the tile registers does without AVX-512."""
    return "avx512f" not in (cpu_flags() or ())


def _tiles_unit(level: str, target: str | None, bytes_: int) -> Unit:
    defines = [f"-DFUSED_RNN_LEVEL={level}", f"-DFUSED_RNN_BELOW={level}_below"]
    defines.append(f"-DFUSED_RNN_TILES={TILES[level]}")
    if level == "amx_model" and vectors_are_modelled():
        defines += MODELLED_VECTORS
    else:
        defines.append(f'-DFUSED_RNN_TARGET="{target}"')
    defines += [f"-DFUSED_RNN_VECTOR_BYTES={bytes_}", "-DFUSED_RNN_VECTOR_REGISTERS=32"]
    warnings = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter")
    return Unit(NATIVE / "tiles_level.cpp", (*shipped_flags(), "-O1", *warnings, "-fPIC", *defines))


def bench_target() -> Target:
    """Return the bench. Its kernels are those of the shipped library."""
    library = shipped_library()
    try:
        import pybind11
    except ImportError:
        raise UnbuildableError("pybind11 is not installed") from None
    import torch  # noqa: F401  the shipped library needs torch's, and finds those already loaded

    units, built = [], levels_of(library)
    if "amx" in built:
        units = [_tiles_unit(level, *built["amx"]) for level in TILES]
        built |= dict.fromkeys(TILES, built["amx"])
    linked = "-DFUSED_RNN_BENCH_LEVELS(X)=" + " ".join(f"X({level})" for level in built)
    for level, (target, bytes_) in built.items():
        defines = [f"-DFUSED_RNN_LEVEL={level}", f"-DFUSED_RNN_VECTOR_BYTES={bytes_}"]
        if target is not None:
            defines.append(f'-DFUSED_RNN_TARGET="{target}"')
        flags = (*shipped_flags(), "-Wall", "-Wextra", "-Wno-psabi", "-fPIC", *defines)
        units.append(Unit(NATIVE / "math_level.cpp", flags))
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", *includes)
    modelled = ("-DFUSED_RNN_MODELLED_VECTORS",) if vectors_are_modelled() else ()
    units.append(Unit(NATIVE / "bench.cpp", (*flags, *modelled, linked)))
    name = f"bench/_bench{sysconfig.get_config_var('EXT_SUFFIX')}"
    return Target(name, tuple(units), ("-shared", "-pthread"), (library,))


def bench() -> ModuleType:
    """Build the bench if need be, and import it."""
    spec = util.spec_from_file_location("_bench", build(bench_target()))
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scalar_math_target(gpu: bool = False) -> Target:
    """Return math.h for scalars; ``gpu``: as a GPU's threads have it."""
    flags = (*shipped_flags(), "-Wall", "-Wextra", "-fPIC")
    flags += ("-ffp-contract=off", "-DFUSED_RNN_SIMT") if gpu else ()
    unit = Unit(NATIVE / "math_scalar.cpp", flags)
    return Target(f"bench/math_{'gpu' if gpu else 'scalar'}.so", (unit,), ("-shared",))


def scalar_math(gpu: bool = False) -> ctypes.CDLL:
    """Build math.h for scalars if need be, and load it."""
    return ctypes.CDLL(str(build(scalar_math_target(gpu))))

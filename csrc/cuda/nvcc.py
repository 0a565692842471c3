"""Compiles the .cu files with nvcc: what setup.py and the check of the kernels' resources share.

No kernel includes a torch header, so this needs nvcc alone: neither a GPU nor a CUDA build of
torch, without which torch.utils.cpp_extension refuses to compile CUDA sources.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
INCLUDE = str(ROOT / "csrc")
FLAGS = ("-std=c++17", "-O3", f"-I{INCLUDE}")
WERROR = ("-Werror", "all-warnings")
# -Wno-unused-parameter: nvcc's own stubs leave some unused.
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter")

OLDEST_RELEASE = (12, 0)
CUDA = ROOT / "csrc" / "cuda"
# Persistent kernels, which are large and for sm_80 and newer: compiled for no more than needed.
LARGE = CUDA / "persistent"
# What takes longest comes first.
SOURCES = (
    *(LARGE / f"{name}.cu" for name in ("forward", "backward", "floor")),
    *sorted(set(CUDA.rglob("*.cu")).difference(LARGE.iterdir())),
)
# What was compiled, for the module or for the check of resources alike.
CACHE = ROOT / "build" / "cuda"
# GPUs of boards on which no code for another GPU of the generation runs, nor theirs elsewhere.
TEGRA = (72, 87, 101)
LAUNCHERS = ("ccache", "sccache", "distcc")
# Turing to Blackwell, each with its own code; the newest as PTX too, for what comes after it, and
# the oldest with clusters, for what has them and no code of its own here (sm_110).
DEFAULT_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
DEFAULT_PTX = ("90",)


class CudaBuildError(RuntimeError):
    """The kernels can't be compiled; the message says why."""


class Architecture(NamedTuple):
    """A GPU to compile for."""

    number: str  # "90a" is compute capability 9.0 with the instructions of that one only
    ptx: bool = False  # also as PTX, which later GPUs translate for themselves

    def gencode(self) -> list[str]:
        """Return nvcc's flags."""
        virtual = f"arch=compute_{self.number}"
        flags = ["-gencode", f"{virtual},code=sm_{self.number}"]
        if self.ptx:
            flags += ["-gencode", f"{virtual},code=compute_{self.number}"]
        return flags


class Toolkit(NamedTuple):
    """An installed nvcc."""

    nvcc: str
    release: str  # "13.0"
    numbers: frozenset[str]  # of the architectures it knows, without suffix


def find_nvcc() -> str:
    """Return the path of nvcc: of $CUDA_HOME where that is set, or else the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if found is None:
        where = f"CUDA_HOME is {home!r}, where bin/nvcc" if home else "nvcc"
        raise CudaBuildError(
            f"the CUDA kernels need nvcc, and {where} was not found: install the CUDA toolkit "
            "(12.0 or newer) and put nvcc on the PATH, or set CUDA_HOME."
        )
    return found


def find_toolkit() -> Toolkit:
    """Find nvcc and ask it what it can do."""
    nvcc = find_nvcc()
    version = _output([nvcc, "--version"])
    release = re.search(r"release (\d+\.\d+)", version)
    if release is None:
        raise CudaBuildError(f"{nvcc} --version named no release: {version.strip()!r}")
    if tuple(map(int, release[1].split("."))) < OLDEST_RELEASE:
        oldest = ".".join(map(str, OLDEST_RELEASE))
        raise CudaBuildError(f"the CUDA kernels need nvcc {oldest} or newer, found {release[1]}.")
    numbers = re.findall(r"sm_(\d+)", _output([nvcc, "--list-gpu-code"]))
    return Toolkit(nvcc, release[1], frozenset(numbers))


def host_compiler() -> list[str]:
    """Return nvcc's flags for the compiler that CXX names, past a cache that starts it."""
    words = [word for word in os.environ.get("CXX", "").split() if Path(word).name not in LAUNCHERS]
    return ["-ccbin", words[0]] if words else []


def watchdog() -> list[str]:
    """Return the flag of a module whose kernels do not wait for ever: FUSED_RNN_WATCHDOG seconds.

    Where blocks wait in vain for each other, the launch ends with an error. For first runs and
    debugging: asking for the time takes some.
    """
    seconds = os.environ.get("FUSED_RNN_WATCHDOG", "").strip()
    if not seconds or seconds == "0":
        return []
    if not seconds.isdecimal():
        raise CudaBuildError(f"FUSED_RNN_WATCHDOG should be whole seconds, got {seconds!r}.")
    return [f"-DFUSED_RNN_WATCHDOG={seconds}"]


@functools.cache
def _host_version() -> str:
    command = [*(host_compiler()[1:] or ["g++"]), "--version"]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # nvcc will say so
        return ""
    return run.stdout.partition("\n")[0]


def find_static_runtime(toolkit: Toolkit) -> Path:
    """Return the path of the CUDA runtime's static library."""
    plan = _output([toolkit.nvcc, *host_compiler(), "--dryrun", "-c", str(SOURCES[0])])
    directories = re.findall(r'"-L([^"]+)"', plan)
    for directory in directories:
        library = Path(directory) / "libcudart_static.a"
        if library.exists():
            return library.resolve()
    raise CudaBuildError(
        f"libcudart_static.a, the CUDA runtime, was not found in {', '.join(directories)}: "
        "install the toolkit's runtime library for developers."
    )


def architectures(wanted: str | None, toolkit: Toolkit) -> list[Architecture]:
    """Read a list in TORCH_CUDA_ARCH_LIST's form, "8.0;9.0a+PTX"; None or "" give the default."""
    if wanted is None or not wanted.strip():
        known = [number for number in DEFAULT_ARCHITECTURES if number in toolkit.numbers]
        if not known:
            raise CudaBuildError(f"nvcc {toolkit.release} knows none of {DEFAULT_ARCHITECTURES}.")
        return [Architecture(n, ptx=n == known[-1] or n in DEFAULT_PTX) for n in known]
    found: dict[str, Architecture] = {}
    for item in re.split(r"[;,\s]+", wanted.strip(" ;,\t")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if match is None:
            raise CudaBuildError(
                f"TORCH_CUDA_ARCH_LIST has {item!r}, which is no architecture: give numbers as in "
                "'8.0;9.0a;12.0+PTX' (names such as 'Hopper' are not known here)."
            )
        major, minor, suffix, ptx = match.groups()
        if major + minor not in toolkit.numbers:
            known_ = ", ".join(f"{n[:-1]}.{n[-1]}" for n in sorted(toolkit.numbers, key=int))
            raise CudaBuildError(
                f"TORCH_CUDA_ARCH_LIST has {item!r}, which nvcc {toolkit.release} does not compile "
                f"for: it knows {known_}."
            )
        number = major + minor + suffix
        known_before = found.get(number, Architecture(number))
        found[number] = Architecture(number, known_before.ptx or ptx is not None)
    return list(found.values())


def targets_of(source: Path, targets: list[Architecture]) -> list[Architecture]:
    """Return the GPUs a source is compiled for: all, but what is large leaves some out.

    Those are GPUs that it has no kernels for, and those on which code for an older one of the same
    generation runs, which is not so on Tegra.
    """
    if source.parent != LARGE:
        return targets
    plain = {int(t.number) for t in targets if t.number.isdecimal()}.difference(TEGRA)

    def is_served(target: Architecture) -> bool:
        if target.ptx or not target.number.isdecimal():
            return False
        number = int(target.number)
        if number in TEGRA:
            return False
        return number < 80 or any(n < number and n // 10 == number // 10 for n in plain)

    return [t for t in targets if not is_served(t)] or targets


def inputs(source: Path) -> list[Path]:
    """Return every file that a kernel's source may include, and the source."""
    csrc = ROOT / "csrc"
    return [*sorted([*csrc.glob("*.h"), *CUDA.rglob("*.h"), *CUDA.rglob("*.cuh")]), source]


def name(source: Path) -> str:
    """Return a kernel source's name below csrc/cuda, as persistent/forward.cu."""
    return source.relative_to(CUDA).as_posix()


def digest(command: Iterable[str], files: Iterable[Path]) -> str:
    """Return what changes whenever the command or a file does."""
    total = hashlib.sha256("\0".join(command).encode())
    for path in files:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


class Object(NamedTuple):
    """A source compiled for some GPUs, and what ptxas said of its kernels."""

    path: Path
    report: str


def compile_object(
    source: Path,
    targets: list[Architecture],
    toolkit: Toolkit,
    *,
    werror: bool = False,
    threads: int = 1,
    directory: Path = CACHE,
    few: bool = False,
) -> Object:
    """Compile a source, unless it has been already and nothing has changed since.

    ``few``: not all of its kernels (persistent/products.cuh), to check what every commit has to.
    """
    host = ",".join((*HOST_FLAGS, "-Werror") if werror else HOST_FLAGS)
    flags = [*FLAGS, *watchdog(), *host_compiler(), "-Xcompiler", host]
    flags += WERROR if werror else ()
    flags += ["-DFUSED_RNN_FEW_KERNELS"] if few else []
    gencode = [flag for target in targets for flag in target.gencode()]
    command = [toolkit.nvcc, *flags, "-Xptxas", "-v", *gencode, "-c", str(source)]
    state = digest([toolkit.release, _host_version(), *command], inputs(source))
    names = "-".join(target.number + "p" * target.ptx for target in targets)
    # What others let pass is not fresh here.
    kind = "few." * few + "checked." * werror
    output = directory / f"{name(source).replace('/', '-')}.{names}.{kind}o"
    record = output.with_suffix(".txt")
    known = record.read_text() if output.exists() and record.exists() else ""
    if not known.startswith(state):
        directory.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)  # it must not vouch for what an interruption leaves
        begin = time.monotonic()
        report = _output([*command, "--threads", str(threads), "-o", str(output)])
        seconds = time.monotonic() - begin
        known = state + "\n" + report
        record.write_text(known)
        print(f"  {name(source)} for {', '.join(t.number for t in targets)}: {seconds:.0f} s")
        sys.stdout.flush()
    return Object(output, known)


def compile_objects(directory: Path = CACHE, *, werror: bool = False) -> list[Path]:
    """Compile every kernel, several sources at a time; return the objects.

    The architectures are those of TORCH_CUDA_ARCH_LIST, the jobs at most MAX_JOBS. With
    FUSED_RNN_FEW_KERNELS the large ones have not all kernels: a module that shows that it can be
    made, and refuses what it has none for.
    """
    toolkit = find_toolkit()
    few = bool(os.environ.get("FUSED_RNN_FEW_KERNELS"))
    targets = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), toolkit)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    # The large ones take as long as all others together, so they share the cores.
    threads = max(1, jobs // len([source for source in SOURCES if source.parent == LARGE]))

    def compiled(source: Path) -> Path:
        mine = targets_of(source, targets)
        return compile_object(
            source,
            mine,
            toolkit,
            werror=werror,
            threads=threads,
            directory=directory,
            few=few and source.parent == LARGE,
        ).path

    with ThreadPoolExecutor(max(1, jobs // threads)) as pool:
        return list(pool.map(compiled, SOURCES))


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise CudaBuildError(f"nvcc failed: {' '.join(command)}\n{run.stdout}{run.stderr}".rstrip())
    return run.stdout + run.stderr

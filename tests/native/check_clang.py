"""Builds the native module with clang++, and runs the tests of what its kernels compute.

    python -m tests.native.check_clang

In a copy of the sources below build/, so that the module that GCC has made stays. The compiler is
the one that CLANG names, or clang++, or that of the package ziglang in build/clang-package.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "clang"
PACKAGE = ROOT / "build" / "clang-package"
SOURCES = ("csrc", "fused_rnn", "tests", "setup.py", "pyproject.toml")
TESTS = (
    "tests/backends/test_kernels.py",
    "tests/backends/test_quantized.py",
    "tests/variants/test_native.py",
)


def main() -> int:
    """Build and test; return the exit status."""
    compiler = find_compiler()
    print(f"clang: {output([compiler, '--version']).splitlines()[0]}", flush=True)
    tree = copied_sources(WORK / "tree")
    environment = os.environ | {
        "CXX": compiler,
        "FUSED_RNN_CUDA": "0",
        "FUSED_RNN_WERROR": "1",
        # A third of the time to compile; that the fastest code is right is tested of GCC's.
        "FUSED_RNN_CXXFLAGS": "-O0",
        # ninja is there.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tree),
        # torch's check knows GCC's name alone.
        "TORCH_DONT_CHECK_COMPILER_ABI": "1",
    }
    begin = time.monotonic()
    log = WORK / "log.txt"
    with log.open("w") as file:
        build = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=tree,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if build.returncode != 0:
        print(log.read_text()[-6000:])
        return build.returncode
    print(f"clang: the module was built in {time.monotonic() - begin:.0f} s", flush=True)
    has_xdist = importlib.util.find_spec("xdist") is not None
    side_by_side = ["-n", str(os.cpu_count()), "--dist", "worksteal"] if has_xdist else []
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "--core", *side_by_side, *TESTS, *sys.argv[1:]],
        cwd=tree,
        env=environment,
    )
    return tests.returncode


def output(command: list[str]) -> str:
    """Return what a command says."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def find_compiler() -> str:
    """Return the compiler's command."""
    named = os.environ.get("CLANG", "")
    if named or shutil.which("clang++"):
        return named or "clang++"
    if not PACKAGE.exists():
        sys.exit("There is no clang++: install it, or name one by CLANG.")
    return str(from_package())


def from_package() -> Path:
    """Return a program that compiles with the package's clang, and links with the system's c++.

    The headers are those of the system's libstdc++, as torch throws and catches its exceptions; the
    package would take a libc++ of its own.
    """
    listing = output(["c++", "-E", "-x", "c++", "-v", os.devnull])
    directories = re.findall(r"^ (\S*/c\+\+\S*)$", listing, re.MULTILINE)
    # -I, as they include what comes after them, and what -isystem names comes after the C headers.
    headers = [f"-I{directory}" for directory in directories]
    target = f"{platform.machine()}-linux-gnu.{platform.libc_ver()[1]}"
    # Python's headers set what the package's own C headers have set.
    others = ["-nostdinc++", "-fno-sanitize=undefined", "-Wno-macro-redefined"]
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *others, *headers]
    WORK.mkdir(parents=True, exist_ok=True)
    program = WORK / "clang++"
    program.write_text(
        "#!/bin/sh\n"
        f"export PYTHONPATH={shlex.quote(str(PACKAGE))}\n"
        f"export ZIG_GLOBAL_CACHE_DIR={shlex.quote(str(WORK / 'cache'))}\n"
        f"export ZIG_LOCAL_CACHE_DIR={shlex.quote(str(WORK / 'cache'))}\n"
        'case " $* " in\n'
        f'*" -c "* | *" --version "*) exec {shlex.join(command)} "$@" ;;\n'
        '*) exec c++ "$@" ;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    return program


def copied_sources(tree: Path) -> Path:
    """Copy the sources, with their times, so that what has not changed is not compiled again."""
    tree.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        source, copy = ROOT / name, tree / name
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(source, copy)
    return tree


if __name__ == "__main__":
    sys.exit(main())

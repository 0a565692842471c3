"""Compiles the CPU's kernels for aarch64, and runs them in an emulator against plain loops.

    python -m tests.native.check_aarch64

The level there is `portable`, in registers of 16 bytes (NEON), without Python and PyTorch, as for
the sanitizers. It takes a cross compiler and QEMU, of Debian the packages g++-aarch64-linux-gnu and
qemu-user, which this installs where it runs as root. Without them it says so, and is content. It
says nothing of speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from fused_rnn import command

from .build import NATIVE, ROOT, CompilationError, Target, Unit, build, shipped_flags

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PACKAGES = "g++-aarch64-linux-gnu", "qemu-user"
LIBRARIES = "/usr/aarch64-linux-gnu"
LEVEL = "portable"


def missing() -> list[str]:
    """Return what is not installed."""
    return [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


def install() -> None:
    """Install Debian's packages, where that can be done; it need not succeed."""
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"aarch64: installing {' and '.join(PACKAGES)} ...", flush=True)
        quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        get = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        if subprocess.run(get, env=environment, **quietly).returncode != 0:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, **quietly)
            subprocess.run(get, env=environment, **quietly)


def program() -> Target:
    """Return the program: what setup.py compiles, less optimised, as the emulator is the slower."""
    flags = ("-O1", *(f for f in shipped_flags() if not f.startswith("-O")))
    flags += ("-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-psabi")
    of_kernels = [ROOT / "csrc" / "cpu" / f"{run}_{LEVEL}.cpp" for run in ("backward", "forward")]
    linked = f"-DFUSED_RNN_BENCH_LEVELS(X)=X({LEVEL})"
    of_bench = [NATIVE / f"{name}.cpp" for name in ("sanitize", "switched_scratch")]
    units = [Unit(source, flags) for source in of_kernels]
    units += [Unit(source, (*flags, linked)) for source in of_bench]
    return Target("aarch64/scans", tuple(units), ("-pthread",))


def main(_: list[str]) -> int:
    """Compile and run; return the exit status."""
    if missing():
        install()
    if missing():
        print(f"aarch64: there is no {' and no '.join(missing())}: nothing is checked.")
        return 0
    os.environ["CXX"] = COMPILER
    begin = time.monotonic()
    try:
        path = build(program(), report=lambda line: print(f"  {line}", flush=True))
    except CompilationError as error:
        print(error)
        return 1
    compiled = time.monotonic()
    run = subprocess.run([EMULATOR, "-L", LIBRARIES, str(path), LEVEL, "few"])
    verdict = "as the plain loops" if run.returncode == 0 else f"FAILED (status {run.returncode})"
    print(
        f"aarch64: {verdict}; compiled in {compiled - begin:.0f} s, "
        f"run in {time.monotonic() - compiled:.0f} s"
    )
    return int(run.returncode != 0)


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))

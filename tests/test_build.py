"""The built module: the stable ABI only, and a build that says what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "fused_rnn" / "_C.abi3.so"

needs_module = pytest.mark.skipif(not MODULE.exists(), reason="the native module was not built")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def undefined_symbols() -> list[str]:
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", MODULE], check=True, capture_output=True, text=True
    )
    return [line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()]


@needs_module
@needs_nm
def test_no_cxx_symbol_of_torch_is_imported():
    symbols = undefined_symbols()
    assert any(s.startswith("aoti_torch_") for s in symbols), "nm listed nothing of torch at all"
    # Mangled names in or under the namespaces at, c10, caffe2 and torch.
    assert [s for s in symbols if re.match(r"_Z\w*?N[KVR]*(2at|3c10|6caffe2|5torch)", s)] == []


@needs_module
@needs_nm
def test_python_is_used_through_the_limited_api():
    python = {s for s in undefined_symbols() if s.startswith(("Py", "_Py"))}
    assert python == {"PyModule_Create2"}


@needs_module
@needs_nm
def test_no_glibc_newer_than_that_of_the_tools_is_asked_for():
    # csrc/single_threaded.cpp: glibc has it since 2.32, torch's own wheels do with 2.28.
    assert "__libc_single_threaded" not in undefined_symbols()


def test_the_source_distribution_is_whole(tmp_path):
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode != 0:
        pytest.skip("this is no checkout, so nothing says what belongs to it")
    folders = {name.partition("/")[0] for name in git.stdout.split()}
    for name in folders:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--formats", "tar"],
        cwd=tmp_path,
        env=os.environ | {"FUSED_RNN_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    present = {name for name in git.stdout.split() if (ROOT / name).exists()}
    assert present - packed == set()
    assert {name for name in packed if name.endswith(".so")} == set()


def test_setup_without_torch_says_so(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "install torch 2.11 or newer first" in run.stderr
    assert "Traceback" not in run.stderr


def test_setup_with_an_old_setuptools_says_so(tmp_path):
    (tmp_path / "setuptools.py").write_text("__version__ = '65.5.0'\nExtension = setup = None\n")
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "setuptools 77 or newer, found 65.5.0" in run.stderr
    assert "Traceback" not in run.stderr


def test_setup_without_a_compiler_says_so(tmp_path):
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"),
         "--build-temp", str(tmp_path / "temp")],
        cwd=ROOT,
        env={"CXX": "no-such-compiler", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode != 0
    assert "needs a C++17 compiler, and 'no-such-compiler' was not found" in run.stderr
    assert "Traceback" not in run.stderr

"""Building the CUDA module without a GPU: architectures, errors, the built module."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csrc.cuda import nvcc
from csrc.cuda.nvcc import Architecture, CudaBuildError, Toolkit

ROOT = Path(__file__).parents[4]
MODULE = ROOT / "fused_rnn" / "_C_cuda.abi3.so"
STREAM = "aoti_torch_get_current_cuda_stream"

needs_module = pytest.mark.skipif(
    not MODULE.exists(), reason="the CUDA module was not built (make cuda, which needs nvcc)"
)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")

TOOLKIT = Toolkit("nvcc", "13.0", frozenset({"75", "80", "86", "89", "90", "100", "120"}))


# The architectures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", ["80"]),
        ("8.0;9.0+PTX", ["80", "90+"]),
        ("8.0 9.0a", ["80", "90a"]),
        ("7.5, 12.0+PTX;", ["75", "120+"]),
        ("9.0a+PTX;10.0f", ["90a+", "100f"]),
        ("8.0;8.0+PTX;8.0", ["80+"]),
    ],
)
def test_architectures_are_read(text, expected):
    found = nvcc.architectures(text, TOOLKIT)
    assert [a.number + "+" * a.ptx for a in found] == expected


@pytest.mark.parametrize("text", [None, "", "  "])
def test_the_default_ends_with_ptx(text):
    found = nvcc.architectures(text, TOOLKIT)
    # And of the oldest with clusters, which GPUs without code of their own take (sm_110).
    names = [a.number + "+" * a.ptx for a in found]
    assert names == ["75", "80", "86", "89", "90+", "100", "120+"]


def test_the_default_is_what_the_compiler_knows():
    older = TOOLKIT._replace(release="12.4", numbers=frozenset({"70", "75", "80", "89", "90"}))
    found = nvcc.architectures(None, older)
    assert [a.number + "+" * a.ptx for a in found] == ["75", "80", "89", "90+"]


def test_gencode():
    assert Architecture("90a").gencode() == ["-gencode", "arch=compute_90a,code=sm_90a"]
    assert Architecture("120", ptx=True).gencode() == [
        "-gencode",
        "arch=compute_120,code=sm_120",
        "-gencode",
        "arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "80 90+ 100 120+"),
        ("7.5;8.0;8.6;8.9", "80"),
        ("8.6;8.9", "86"),
        ("8.0;8.9+PTX", "80 89+"),
        ("9.0a;9.0", "90a 90"),
        ("8.0;9.0a;10.0f", "80 90a 100f"),
        ("10.0;10.3;12.0", "100 120"),
        ("7.5", "75"),
        ("7.2;7.5;8.0", "72 80"),
        ("8.0;8.6;8.7;8.9", "80 87"),
        ("8.7;8.9", "87 89"),
        ("10.0;10.1;10.3", "100 101"),
    ],
)
def test_large_sources_are_compiled_where_older_code_does_not_run(text, expected):
    toolkit = TOOLKIT._replace(numbers=TOOLKIT.numbers | {"72", "87", "101", "103"})
    targets = nvcc.architectures(text, toolkit)
    found = nvcc.targets_of(nvcc.LARGE / "forward.cu", targets)
    assert " ".join(a.number + "+" * a.ptx for a in found) == expected
    assert nvcc.targets_of(nvcc.CUDA / "lengths.cu", targets) == targets


def test_every_source_is_compiled_once():
    assert sorted(nvcc.SOURCES) == sorted(nvcc.CUDA.rglob("*.cu"))


@pytest.mark.parametrize("text", ["Hopper", "8.0;native", "90", "9.0b", "9.0+SASS"])
def test_what_is_no_architecture_is_refused(text):
    culprit = re.escape(repr(text.split(";")[-1]))
    with pytest.raises(CudaBuildError, match=f"TORCH_CUDA_ARCH_LIST has {culprit}, which is no"):
        nvcc.architectures(text, TOOLKIT)


def test_an_architecture_the_compiler_lacks_is_refused():
    with pytest.raises(CudaBuildError, match=r"'7.0', which nvcc 13.0 .* knows 7.5, .*, 12.0\."):
        nvcc.architectures("8.0;7.0", TOOLKIT)


# Finding and running nvcc


def test_a_cuda_home_without_nvcc_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(CudaBuildError, match=r"CUDA_HOME is .*, where bin/nvcc was not found"):
        nvcc.find_nvcc()


def test_no_nvcc_on_the_path_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CudaBuildError, match="need nvcc, and nvcc was not found: install the CUDA"):
        nvcc.find_nvcc()


@pytest.fixture
def fake_nvcc(monkeypatch, tmp_path):
    """An nvcc that notes what it is to compile, and where it shall fail, fails."""
    log, script = tmp_path / "log", tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(
        f"""#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--list-gpu-code*) echo sm_80; echo sm_90 ;;
  *--dryrun*) echo '#$ LIBRARIES=  "-L{tmp_path}/stubs" "-L{tmp_path}/lib"' >&2 ;;
  *) echo "$@" >> {log}
     if [ -e {tmp_path}/broken ]; then echo "error: no good" >&2; exit 2; fi
     for output; do :; done
     touch "$output" ;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return lambda: log.read_text().splitlines() if log.exists() else []


def test_what_has_not_changed_is_not_compiled_again(fake_nvcc, monkeypatch, tmp_path):
    objects = nvcc.compile_objects(tmp_path / "out")
    assert [path.exists() for path in objects] == [True] * len(nvcc.SOURCES)
    once = len(nvcc.SOURCES)
    assert len(fake_nvcc()) == once
    assert nvcc.compile_objects(tmp_path / "out") == objects
    assert len(fake_nvcc()) == once
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    others = nvcc.compile_objects(tmp_path / "out")
    assert len(fake_nvcc()) == 2 * once
    assert "code=sm_90 -c" in fake_nvcc()[-1]
    others[0].unlink()
    assert nvcc.compile_objects(tmp_path / "out") == others
    assert len(fake_nvcc()) == 2 * once + 1
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert nvcc.compile_objects(tmp_path / "out") == objects  # kept beside the others
    assert len(fake_nvcc()) == 2 * once + 1


def test_warnings_become_errors_where_asked(fake_nvcc, tmp_path):
    nvcc.compile_objects(tmp_path / "out", werror=True)
    assert "-Wextra,-Wno-unused-parameter,-Werror -Werror all-warnings" in fake_nvcc()[-1]


def test_a_watchdog_where_asked(fake_nvcc, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_RNN_WATCHDOG", "0")
    nvcc.compile_objects(tmp_path / "out")
    without = len(fake_nvcc())
    assert not any("WATCHDOG" in line for line in fake_nvcc())
    monkeypatch.setenv("FUSED_RNN_WATCHDOG", "5")
    nvcc.compile_objects(tmp_path / "out")
    assert len(fake_nvcc()) == 2 * without  # it is another module
    assert all("-DFUSED_RNN_WATCHDOG=5" in line for line in fake_nvcc()[without:])
    monkeypatch.setenv("FUSED_RNN_WATCHDOG", "soon")
    with pytest.raises(CudaBuildError, match="should be whole seconds, got 'soon'"):
        nvcc.compile_objects(tmp_path / "out")


def test_the_digest_sees_every_file(tmp_path):
    path = tmp_path / "a.h"
    path.write_text("one")
    before = nvcc.digest(["nvcc"], [path])
    assert nvcc.digest(["nvcc"], [path]) == before
    assert nvcc.digest(["nvcc", "-O3"], [path]) != before
    path.write_text("two")
    assert nvcc.digest(["nvcc"], [path]) != before


def test_every_file_a_kernel_includes_is_an_input():
    for source in nvcc.SOURCES:
        files = nvcc.inputs(source)
        for path in files:
            for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
                if path.suffix in (".cu", ".cuh") and name != "simt.h":
                    assert {path.parent / name, Path(nvcc.INCLUDE) / name} & {*files}, (
                        f"{path} includes {name}"
                    )


def test_a_kernel_that_does_not_compile_says_why_and_is_tried_again(fake_nvcc, tmp_path):
    (tmp_path / "broken").touch()
    tries = []
    for _ in range(2):
        with pytest.raises(CudaBuildError, match=r"nvcc failed(.|\n)*error: no good"):
            nvcc.compile_objects(tmp_path / "out")
        tries.append(len(fake_nvcc()))
    assert 0 < tries[0] < tries[1]


@pytest.mark.usefixtures("fake_nvcc")
def test_the_static_runtime_is_where_nvcc_looks_for_it(tmp_path):
    toolkit = nvcc.find_toolkit()
    assert (toolkit.release, toolkit.numbers) == ("13.0", {"80", "90"})
    with pytest.raises(
        CudaBuildError, match=r"libcudart_static\.a, the CUDA runtime, was not found"
    ):
        nvcc.find_static_runtime(toolkit)
    library = tmp_path / "lib" / "libcudart_static.a"
    library.parent.mkdir()
    library.touch()
    assert nvcc.find_static_runtime(toolkit) == library.resolve()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("only", "fused_rnn: the CUDA kernels need nvcc, and CUDA_HOME is '/nowhere', where"),
        ("1", "FUSED_RNN_CUDA=0 builds without the CUDA kernels."),
        ("perhaps", "FUSED_RNN_CUDA should be 0, 1 or only, got 'perhaps'."),
    ],
)
def test_setup_says_what_is_missing(wanted, message, tmp_path):
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"),
         "--build-temp", str(tmp_path / "temp")],
        cwd=ROOT,
        env={"CUDA_HOME": "/nowhere", "FUSED_RNN_CUDA": wanted, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


# The built module


def undefined_symbols() -> set[str]:
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", MODULE], check=True, capture_output=True, text=True
    )
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


@needs_module
@needs_nm
def test_no_cxx_symbol_of_torch_is_imported():
    symbols = undefined_symbols()
    assert STREAM in symbols
    assert [s for s in symbols if re.match(r"_Z\w*?N[KVR]*(2at|3c10|6caffe2|5torch)", s)] == []


@needs_module
@needs_nm
def test_kernels_and_cuda_runtime_are_linked_in():
    missing = {s for s in undefined_symbols() if re.match(r"cu[A-Z]|cuda|__cuda|_Z.*fused_rnn", s)}
    assert missing == set()


@needs_module
@needs_nm
def test_python_is_used_through_the_limited_api():
    python = {s for s in undefined_symbols() if s.startswith(("Py", "_Py"))}
    assert python == {"PyModule_Create2"}


@needs_module
def test_the_module_loads_and_registers(tmp_path):
    prelude = "import torch"
    if torch.version.cuda is None:  # this torch lacks one function only
        source, library = tmp_path / "stream.c", tmp_path / "stream.so"
        source.write_text(f"int {STREAM}(int device, void** stream) {{ return 1; }}\n")
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler to stand in for CUDA torch")
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
        prelude += f", ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)"
    program = f"""{prelude}
import fused_rnn._C, fused_rnn._C_cuda
for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    for way in ("forward", "backward"):
        name = f"fused_rnn::{{cell}}_{{way}}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

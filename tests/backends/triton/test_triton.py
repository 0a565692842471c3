"""The Triton backend where there is no GPU: what it says of itself, and its kernels interpreted."""

import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from fused_rnn.backends import BACKENDS, Inputs, Problem, native, select, select_kernels, triton
from fused_rnn.backends.triton import whole as triton_whole
from fused_rnn.backends.triton.scan import Scan, Step
from tests.test_import import run_python

HAVE = util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAVE, reason="Triton is not installed")
PROBLEM = Problem("lstm", torch.device("cuda"), torch.float32, 5, 2, 3, 4, 0, False, False, None)


@needs_triton
# The second takes whatever is not the first's.
@pytest.mark.parametrize("path", ["steps", "not steps"], ids=["steps", "whole"])
def test_kernels_in_the_interpreter(path, request):
    # It has to be switched on before Triton is imported.
    tier = ["--core"] if request.config.getoption("--core") else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tier, "-k", path]
    done = subprocess.run(
        [*command, "tests/backends/triton/test_kernels.py"],
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    # All that is skipped is what a path has no kernel for, and the other one has.
    assert "no tests ran" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("hide", "reason"),
    [
        ("sys.modules['triton'] = None", "Triton"),
        ("", "there is no GPU that torch can use" if HAVE else "Triton is not installed"),
    ],
)
def test_says_why_it_cannot_run(hide, reason):
    code = f"{hide}\nimport fused_rnn\nprint(fused_rnn.available_backends()['triton'])"
    out, err = run_python(code)
    assert reason in out, err


@needs_triton
def test_an_old_triton_is_refused(monkeypatch):
    import triton as compiler

    monkeypatch.setattr(compiler, "__version__", "3.5.1")
    triton._unusable.cache_clear()
    assert triton._unusable() == "Triton 3.5.1 is too old: it takes 3.6"
    monkeypatch.setattr(compiler, "__version__", "3.10.0+git1")
    triton._unusable.cache_clear()
    assert triton._unusable() is None
    triton._unusable.cache_clear()


def test_refuses_with_a_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton.supports(PROBLEM) == "no kernel for sm_75: the oldest is sm_80"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert triton.supports(PROBLEM) is None
    on_cpu = PROBLEM._replace(device=torch.device("cpu"))
    assert triton.supports(on_cpu) == "no kernel for device type 'cpu'"
    assert triton.supports(PROBLEM._replace(dtype=torch.int8)) == "no kernel for torch.int8"
    assert "vmap needs" in triton.supports(PROBLEM._replace(transform="vmap"))


def test_comes_after_native():
    assert list(BACKENDS) == ["native", "triton", "reference"]


def test_runs_where_the_cuda_module_is_missing(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: "gone")
    monkeypatch.setattr(triton, "available", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert select_kernels(PROBLEM._replace(H=1234)) is triton  # no other test's: it is remembered


def test_what_it_refuses_the_next_one_runs(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: "gone")
    monkeypatch.setattr(triton, "available", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    chosen = select(PROBLEM._replace(H=1235))
    assert chosen.backend is None
    assert chosen.refusals["triton"] == "no kernel for sm_75: the oldest is sm_80"


def scan_of(x, h0, sizes=None, reverse=False):
    batch_sizes = None if sizes is None else torch.tensor(sizes)
    H, I = h0.shape[1], x.shape[-1]  # noqa: E741
    inputs = Inputs(x, h0, None, h0.new_empty(H, I), h0.new_empty(H, H), None, None, None)
    return Scan("rnn_tanh", inputs, batch_sizes, reverse)


def test_order_of_the_steps():
    dense = scan_of(torch.zeros(3, 2, 1), torch.zeros(2, 1), reverse=True)
    assert dense.steps() == [Step(4, 2, 0, 0, 2), Step(2, 2, 4, 2, 2), Step(0, 2, 2, 2, 0)]
    ragged = scan_of(torch.zeros(4, 1), torch.zeros(3, 1), [3, 1])
    assert ragged.steps() == [Step(0, 3, 0, 0, 1), Step(3, 1, 0, 1, 0)]
    late = scan_of(torch.zeros(4, 1), torch.zeros(3, 1), [3, 1], reverse=True)
    assert late.steps() == [Step(3, 1, 0, 0, 1), Step(0, 3, 3, 1, 0)]


@pytest.mark.parametrize(
    ("H", "dtype", "expected"),
    [
        (1, torch.float16, (16, 4)),
        (16, torch.float32, (16, 4)),
        (64, torch.float16, (64, 8)),
        (65, torch.float16, (128, 8)),
        (129, torch.float16, None),
        (33, torch.float32, (64, 8)),
        (65, torch.float32, None),
        (4, torch.float64, None),
    ],
)
def test_whole_sequences_where_they_fit(H, dtype, expected):
    scan = scan_of(torch.zeros(3, 2, 1, dtype=dtype), torch.zeros(2, H, dtype=dtype))
    assert triton_whole.plan(scan) == expected

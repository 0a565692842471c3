"""Where the CUDA kernels are missing: what is said, and to whom. Stand-ins; no GPU is needed."""

from __future__ import annotations

import json
import sys
from importlib import util
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_rnn import __main__ as doctor
from fused_rnn.backends import Problem, native, triton
from fused_rnn.backends.native import device, persistent
from fused_rnn.backends.native.device import Facts
from fused_rnn.cells import CELLS

GPU = torch.device("cuda", 0)
H100 = Facts(90, 132, 227 * 1024, True, (132, 66, 32, 16))
PROBLEM = Problem("lstm", GPU, torch.float32, 5, 2, 3, 4, 0, False, False, None)
needs_native = pytest.mark.skipif(
    native.available() is not None, reason=f"native: {native.available()}"
)


@pytest.fixture
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch that says it is built for CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return monkeypatch


def test_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    reason = native._load_cuda()
    assert torch.__version__ in reason
    assert "CPU build; install one built for CUDA" in reason
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "built for ROCm" in native._load_cuda()


def test_no_module(cuda_torch: pytest.MonkeyPatch) -> None:
    cuda_torch.setattr(util, "find_spec", lambda name: None)
    assert "was not built: run `make cuda`" in native._load_cuda()


def test_a_module_that_cannot_be_loaded(cuda_torch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError(f"{name}: undefined symbol: aoti_torch_something")

    cuda_torch.setattr(util, "find_spec", lambda name: object())
    cuda_torch.setattr(native, "import_module", fail)
    reason = native._load_cuda()
    assert "cannot be loaded (fused_rnn._C_cuda: undefined symbol" in reason
    assert "make cuda" in reason


def test_a_module_that_can(cuda_torch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fused_rnn._C_cuda")
    module.__spec__ = object()
    cuda_torch.setitem(sys.modules, "fused_rnn._C_cuda", module)
    assert native._load_cuda() is None


def test_without_the_cpu_module_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_missing", "the native module was not built")
    assert native.cuda_missing() == "the native module was not built"


def test_which_gpus_and_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_missing", None)
    monkeypatch.setattr(native, "_cuda_missing", None)
    for capability, reason in (
        ((7, 0), "no kernel for sm_70: the oldest is sm_75"),
        ((7, 5), None),
        ((9, 0), None),
        ((12, 0), None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(native, "facts", lambda _: H100)
        assert native.supports(PROBLEM) == reason
        monkeypatch.setattr(native, "facts", lambda _: H100._replace(capability=0))
        major, minor = capability
        lacks = (
            f"this build has no kernels for sm_{major}{minor}: TORCH_CUDA_ARCH_LIST={major}.{minor}"
        )
        assert native.supports(PROBLEM).startswith(reason or lacks)
    monkeypatch.setattr(native, "facts", lambda _: H100)
    assert "complex64" in native.supports(PROBLEM._replace(dtype=torch.complex64))
    assert "autocast" in native.supports(PROBLEM._replace(transform="autocast"))
    assert "'xpu'" in native.supports(PROBLEM._replace(device=torch.device("xpu", 0)))
    monkeypatch.setattr(native, "_cuda_missing", "it was not built")
    assert native.supports(PROBLEM) == "it was not built"
    assert native.supports(PROBLEM._replace(device=torch.device("cpu"))) is None


@needs_native
@pytest.mark.parametrize("index", [0, 1])
def test_fake_results_are_on_the_device_of_x(index: int, cell: str) -> None:
    device, lstm, G = f"cuda:{index}", cell == "lstm", CELLS[cell].gates
    with FakeTensorMode():
        x, h0 = torch.empty(5, 2, 3, device=device), torch.empty(2, 4, device=device)
        w = [torch.empty(G * 4, n, device=device) for n in (3, 4)]
        c0, w_hr = ([h0], [None]) if lstm else ([], [])
        operands = [x, h0, *c0, *w, None, None, *w_hr, None, False]
        ops = torch.ops.fused_rnn
        results = getattr(ops, f"{cell}_forward").default(*operands, False)
        y, *states, saved = results
        states = states[:2] if lstm else states  # not every step's c
        needs = 0xFF
        gradients = getattr(ops, f"{cell}_backward").default(*operands, y, saved, y, *states, needs)
    assert {t.device for t in (*results, *gradients)} == {torch.device(device)}
    assert [g.shape for g in gradients[:2]] == [x.shape, h0.shape]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by name; nothing can run on it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(doctor, "_checks", lambda: iter(()))


@needs_native
def test_the_doctor_names_the_gpu_and_what_it_lacks(
    one_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examined() -> tuple[int, dict[str, Any]]:
        status = doctor.main(["--json"])
        return status, json.loads(capsys.readouterr().out)

    monkeypatch.setattr(native, "_cuda_missing", "the CUDA module was not built: run `make cuda`")
    monkeypatch.setattr(triton, "available", lambda: "Triton is not installed")
    status, found = examined()
    assert status == 1
    assert found["devices"]["cuda:0"] == "a GPU, sm_90"
    assert found["compiled"]["CUDA module"] == native.cuda_missing()
    reasons = f"native: {native.cuda_missing()}; triton: Triton is not installed"
    assert found["problems"] == [f"torch.nn's own code runs on cuda:0 ({reasons})"]
    monkeypatch.setattr(triton, "available", lambda: None)
    status, found = examined()
    assert (status, found["problems"]) == (0, [])
    monkeypatch.setattr(triton, "available", lambda: "Triton is not installed")
    monkeypatch.setattr(native, "_cuda_missing", None)
    monkeypatch.setattr(doctor, "_file", lambda module: f"/somewhere/{module}.so")
    assert found["kernels on GPUs"] == {}
    monkeypatch.setattr(native, "facts", lambda device: H100)
    monkeypatch.setattr(
        native, "plan", lambda problem, regardless: f"{problem.cell} {problem.device} {regardless}"
    )
    status, found = examined()
    assert (status, found["problems"]) == (0, [])
    assert found["kernels on GPUs"] == {
        "cuda:0": str(H100),
        f"cuda:0: {doctor.EXAMPLE_WORDS}": "lstm cuda:0 True",
    }
    monkeypatch.setattr(native, "facts", lambda device: H100._replace(capability=0))
    assert examined()[1]["kernels on GPUs"] == {"cuda:0": "no code for it in this build"}
    assert found["compiled"]["CUDA module"] == "/somewhere/fused_rnn._C_cuda.so"


@needs_native
@pytest.mark.parametrize("way", ["_FORWARD", "_BACKWARD"])
def test_no_room_is_torchs_error(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("aoti_torch_empty_strided(...) API call failed at operands.h, line 91")

    monkeypatch.setitem(getattr(native, way), "gru", refuse)

    def call(device: str) -> None:
        empty = torch.empty(1, 1, device="meta")
        # No more than this is asked of x.
        said = {"device": torch.device(device), "is_cuda": device != "cpu", "dtype": torch.half}
        x = type("X", (), said)()
        inputs = (x, empty, None, empty, empty, None, None, None)
        if way == "_FORWARD":
            native.forward("gru", inputs, None, False, False)
        else:
            native.backward(
                "gru", inputs, None, False, empty, (empty,), None, None, None, (True,) * 8
            )

    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory: .* on cuda:1"):
        call("cuda:1")
    with pytest.raises(RuntimeError, match="fused_rnn: out of memory"):
        call("cpu")


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("wanted", ["1", "0"])
def test_persistent_kernels_hear_of_tf32(
    monkeypatch: pytest.MonkeyPatch, allowed: bool, wanted: str
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(torch.ops.fused_rnn, "persistent_tf32", heard.append, raising=False)
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", wanted)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        for device in ("cpu", "cuda"):
            for dtype in (torch.float16, torch.float32):
                x: Any = SimpleNamespace(is_cuda=device == "cuda", dtype=dtype)
                persistent.tell_tf32(x)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert heard == ([allowed] if wanted == "1" else [])


def test_the_plan_of_both_passes_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def plan(*args: Any) -> str:
        asked.append(args[1:])
        return "step by step: backward" if args[-2] and args[-5] == 2 else "persistent"

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size))
    monkeypatch.setattr(torch.ops.fused_rnn, "persistent_plan", plan, raising=False)
    monkeypatch.setattr(native, "_cuda_missing", None)

    def words(
        N: int, training: bool, device: torch.device = GPU, cell: str = "gru", states: bool = False
    ) -> str | None:
        problem = Problem(cell, device, torch.float16, 3, N, 5, 7, 0, False, training, None)
        return native.plan(problem._replace(states=states))

    assert words(1, True) == words(2, False) == "persistent"
    assert asked[0] == ("gru", 3, 1, 7, 0, False, True)
    assert words(2, True) == "forward persistent; backward step by step: backward"
    assert words(1, True, states=True) == words(1, False, states=True) == "persistent"
    without = "step by step: no persistent kernel keeps every step's c in inference"
    assert words(1, False, cell="lstm", states=True) == without
    given = "persistent; step by step where every step's c has a gradient"
    assert words(1, True, cell="lstm", states=True) == f"forward persistent; backward {given}"
    assert words(1, True, torch.device("meta")) is None
    monkeypatch.setattr(native, "_cuda_missing", "it was not built")
    assert words(1, True) is None


def test_the_facts_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answer(index: int) -> list[int]:
        asked.append(index)
        return [90, 132, 227 * 1024, 1, 132, 66, 32, 16]

    monkeypatch.setattr(torch.ops.fused_rnn, "device_facts", answer, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    device._facts.cache_clear()
    try:
        with FakeTensorMode():
            assert device.facts(torch.device("cuda")) == H100
        assert device.facts(torch.device("cuda", 3)) == H100
        assert asked == [3]  # once
    finally:
        device._facts.cache_clear()
    assert str(H100) == (
        "code for sm_90, 132 SMs, 227 KB of shared memory a block, "
        "66/32/16 clusters of 2/4/8 at once"
    )
    ampere = Facts(80, 108, 163 * 1024, False, (108, 0, 0, 0))
    assert str(ampere).endswith(
        "163 KB of shared memory a block, no clusters, no cooperative launches"
    )


def test_a_plan_whether_it_is_wanted_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size))
    monkeypatch.setattr(
        torch.ops.fused_rnn,
        "persistent_plan",
        lambda *args: asked.append(args[1:]) or f"persistent {args[6]}",
        raising=False,
    )
    monkeypatch.setattr(native, "_cuda_missing", None)
    said = native.plan(doctor.EXAMPLE, regardless=True)
    assert said == "forward persistent False; backward persistent True"
    scan = ("lstm", 1024, 16, 768, 0)
    assert asked == [(*scan, backward, True, 1, True) for backward in (False, True)]

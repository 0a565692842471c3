"""The peers of the benchmark's GPU half, and how they are checked; foreign ones by stand-ins."""

import sys
from contextlib import closing
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

import fused_rnn
from benchmarks import harness, peers
from benchmarks.cases import Case, Shape
from benchmarks.harness import Harness
from benchmarks.memory import PeakMemory
from benchmarks.peers import BASELINE, OURS, Settings
from benchmarks.peers_cuda import (
    ALTERNATING,
    CUDA_PEERS,
    LOOP,
    ByWay,
    FlashRNN,
    TorchRL,
    WithoutCudnn,
)
from benchmarks.workload import build
from tests.benchmarks.test_benchmarks import Liar

CPU = torch.device("cpu")
SHAPE = Shape(5, 3, 7, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["training", "ragged-training", "step-training", "cell-training"])
def test_the_oracle_of_a_half_type_has_the_same_numbers(dtype, kind):
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    shape = Shape(1, 3, 7, 8) if kind in ("step-training", "cell-training") else SHAPE
    work = build(Case("lstm", kind, shape, dtype=name), CPU)
    double = work.double()
    assert {t.dtype for t in (*work.leaves, *work.upstream, *work.module.parameters())} == {dtype}
    for ours, theirs in (
        (work.leaves, double.leaves),
        (work.upstream, double.upstream),
        (tuple(work.module.parameters()), tuple(double.module.parameters())),
    ):
        torch.testing.assert_close([t.double() for t in ours], list(theirs), rtol=0, atol=0)


def run_case(monkeypatch, case, candidates):
    monkeypatch.setattr(harness, "PEERS", candidates)
    with closing(PeakMemory(1)) as memory:
        return Harness(Settings(CPU, seconds=0.01), memory).run(case)


@pytest.mark.parametrize("dtype", ["fp32", "tf32", "bf16", "fp16"])
def test_every_dtype_is_checked_and_timed(monkeypatch, dtype):
    candidates = [peers.TorchNN(), peers.FusedRNN(), WithoutCudnn()]
    result = run_case(monkeypatch, Case("gru", "training", SHAPE, dtype=dtype), candidates)
    assert result.failure is None
    assert all(peer.timing for peer in result.peers.values())
    limits = {"bf16": (1e-4, 0.05), "fp16": (1e-5, 0.01)}.get(dtype, (0, 1e-5))
    assert limits[0] < result.peers[OURS].error < limits[1]


def test_a_foreign_peer_that_is_wrong_is_left_out(monkeypatch):
    liar = Liar("y")
    liar.foreign = True
    result = run_case(
        monkeypatch, Case("lstm", "inference", SHAPE), [peers.TorchNN(), liar, peers.FusedRNN()]
    )
    assert result.failure is None
    assert result.peers["liar"].skipped.startswith("liar: y is off by")
    assert result.peers["liar"].timing is None
    assert result.peers[OURS].timing is not None


def test_running_out_of_memory_fails_the_case_alone(monkeypatch):
    class Hungry(peers.TorchNN):
        def prepare(self, work, settings):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    result = run_case(monkeypatch, Case("lstm", "inference", SHAPE), [Hungry()])
    assert result.failure.startswith("out of memory: CUDA out of memory")


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_another_backend_of_ours_is_a_peer(monkeypatch, kind):
    candidates = [peers.TorchNN(), peers.FusedRNN(), ByWay("the oracle", "reference")]
    result = run_case(monkeypatch, Case("lstm", kind, SHAPE), candidates)
    assert result.failure is None
    notes = result.peers["the oracle"].notes
    assert notes["backend"] == "reference"
    assert 0 < notes["first_call_s"] < 60
    assert result.peers[OURS].notes["backend"] != "reference"


def test_a_backend_that_cannot_run_is_no_peer(monkeypatch):
    refused = ByWay("on a GPU", "triton")
    monkeypatch.setattr(fused_rnn.backends.triton, "available", lambda: "no GPU for it")
    result = run_case(
        monkeypatch, Case("gru", "inference", SHAPE), [peers.TorchNN(), peers.FusedRNN(), refused]
    )
    assert result.peers["on a GPU"].skipped == "no GPU for it"
    monkeypatch.setattr(fused_rnn.backends.triton, "available", lambda: None)
    result = run_case(
        monkeypatch, Case("gru", "inference", SHAPE), [peers.TorchNN(), peers.FusedRNN(), refused]
    )
    assert "no kernel for device type 'cpu'" in result.peers["on a GPU"].skipped


@pytest.fixture
def package(monkeypatch):
    """Return a function that makes a package with the given contents importable."""

    def put(name, **contents):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:i]))
            module.__spec__, module.__path__ = ModuleSpec(module.__name__, None), []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(contents)

    return put


def layer(cell, x, w_ih, w_hh, b_ih, b_hh, hx):
    """Run a layer of torch.nn's, batch first, on weights given."""
    operator = getattr(torch._VF, cell)
    return operator(x, hx, [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, False, False, True)


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_flashrnn_is_called_in_the_layout_it_documents(monkeypatch, package, kind):
    def flashrnn(gates, recurrent, bias, function, backend, dtype):
        N, T, G, heads, H = gates.shape
        assert (G, heads, function, backend, dtype) == (4, 1, "lstm", "cuda", "float32")
        assert recurrent.shape == (4, 1, H, H)
        assert bias.shape == (4, 1, H)
        zero, none = gates.new_zeros(1, N, H), torch.zeros(4 * H)
        x, w_ih = gates.reshape(N, T, 4 * H), torch.eye(4 * H)  # their products are the gates
        w_hh = recurrent.reshape(4 * H, H)
        y, h, c = layer("lstm", x, w_ih, w_hh, bias.flatten(), none, (zero, zero))
        states = torch.stack([y, torch.zeros_like(y)]).unsqueeze(3)
        return states, torch.stack([h, c]).transpose(1, 2).unsqueeze(3)

    package("flashrnn", flashrnn=flashrnn)
    candidates = [peers.TorchNN(), peers.FusedRNN(), FlashRNN(ALTERNATING, "cuda")]
    result = run_case(monkeypatch, Case("lstm", kind, SHAPE), candidates)
    assert result.failure is None
    assert result.peers[ALTERNATING].skipped is None
    assert result.peers[ALTERNATING].error < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_torchrl_is_called_in_the_layout_it_documents(monkeypatch, package, cell, dtype):
    def check(x, resets, first, products, input_precision):
        assert x.dtype == torch.float32
        assert resets.shape[:2] == first.shape == x.shape[:2]
        assert first.dtype == torch.bool
        assert products == (torch.bfloat16 if dtype == "bf16" else torch.float32)
        assert input_precision == "ieee"

    def gru_triton(x, hidden, *rest, **options):
        check(x, hidden, *rest[4:], **options)
        y, h = layer("gru", x, *rest[:4], hidden[None, :, 0])
        return y, h[0]

    def lstm_triton(x, hidden, cell_, *rest, **options):
        check(x, hidden, *rest[4:], **options)
        y, h, c = layer("lstm", x, *rest[:4], (hidden[None, :, 0], cell_[None, :, 0]))
        return y, None, h[0], c[0]

    package(
        "torchrl.modules.tensordict_module._rnn_triton",
        gru_triton=gru_triton, lstm_triton=lstm_triton,
    )  # fmt: skip
    module = sys.modules["torchrl.modules.tensordict_module"]
    module._rnn_triton = sys.modules["torchrl.modules.tensordict_module._rnn_triton"]
    candidates = [peers.TorchNN(), peers.FusedRNN(), TorchRL()]
    result = run_case(monkeypatch, Case(cell, "training", SHAPE, dtype=dtype), candidates)
    assert result.failure is None
    assert result.peers["TorchRL Triton"].skipped is None
    assert result.peers["TorchRL Triton"].notes["storage"] == "float32"


def test_a_foreign_library_that_fails_is_a_reason(monkeypatch, package):
    def flashrnn(*args, **kwargs):
        raise ValueError("no tiling fits\nmore lines")

    package("flashrnn", flashrnn=flashrnn)
    candidates = [peers.TorchNN(), peers.FusedRNN(), FlashRNN(ALTERNATING, "cuda")]
    result = run_case(monkeypatch, Case("lstm", "inference", SHAPE), candidates)
    assert result.peers[ALTERNATING].skipped == "it failed: no tiling fits"


def test_peers_that_are_not_there_say_so():
    settings = Settings(torch.device("cuda", 0))
    case = Case("lstm", "training", SHAPE, dtype="bf16")
    reasons = {peer.name: peer.refuses(case, settings) for peer in CUDA_PEERS}
    assert reasons[BASELINE] is None
    assert reasons[LOOP] is None
    for name, distribution in ((ALTERNATING, "flashrnn"), ("TorchRL Triton", "torchrl")):
        if distribution not in sys.modules:
            assert reasons[name] in (None, f"{distribution} is not installed")

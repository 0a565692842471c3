"""The benchmark's GPU half, as far as it can be tested without a GPU: by stand-ins."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import kernels, machine_cuda, timing
from benchmarks.cases import DTYPES, Case, Shape
from benchmarks.cases_cuda import cuda_cases, grid_cases
from benchmarks.harness import CaseResult
from benchmarks.memory_cuda import CudaMemory
from benchmarks.peers import BASELINE, OURS
from benchmarks.peers_cuda import LOOP
from benchmarks.report import Run
from benchmarks.report_cuda import judge_cuda, render_cuda
from tests.benchmarks.test_benchmarks import result_of

CPU = torch.device("cpu")
SHAPE = Shape(5, 3, 7, 8)


def test_cases_have_unique_ids_and_the_anchor_is_always_measured():
    for cases in (cuda_cases(), grid_cases()):
        assert len({case.id for case in cases}) == len(cases)
    quick = [case.id for case in cuda_cases() if case.quick]
    for dtype in ("", "-bf16", "-fp16"):
        for kind in ("training", "inference"):
            assert f"lstm-{kind}-T1024-N16-H768{dtype}" in quick
    assert len(quick) <= 40 < len(cuda_cases()) <= 150
    assert len(grid_cases()) == 2 * 2 * 7 * 8 * 3 * 2


def test_a_training_step_comes_before_what_its_oracle_serves():
    seen = set()
    for case in (*cuda_cases(), *grid_cases()):
        if case.kind == "inference":
            assert (case.cell, case.shape, case.dtype) in seen
        if case.kind == "training":
            seen.add((case.cell, case.shape, case.dtype))


def test_kernels_are_rated_by_the_bytes_they_must_move(monkeypatch):
    case = Case("lstm", "training", Shape(3, 2, 4, 8), dtype="bf16")
    monkeypatch.setattr(kernels, "_durations", lambda *_: [3e-6, 2e-6, 9e-6])
    found = kernels._measure(case, "forward_step", (14, 1), CPU, copy_gbytes=1.0)
    assert found.compulsory_bytes == 2 * 8 * (14 * 4 + 1 * 2)
    assert found.median_s == 3e-6
    assert found.copy_fraction == pytest.approx(found.compulsory_bytes / 3e-6 / 1e9)
    monkeypatch.setattr(kernels, "_durations", lambda *_: [])
    assert "no kernel named forward_step" in kernels._measure(case, "forward_step", (1, 1), CPU,
                                                              1.0).skipped  # fmt: skip


def test_only_launches_of_the_kernel_count():
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(device_type=cuda, name="void forward_step<Lstm>(ForwardStep)"),
        SimpleNamespace(device_type=cuda, name="void backward_step<Lstm>(BackwardStep)"),
        SimpleNamespace(device_type=cpu, name="forward_step"),
    ]
    profiled = SimpleNamespace(events=lambda: events)
    assert kernels._launches(profiled, "forward_step") == events[:1]


@pytest.fixture
def allocator(monkeypatch):
    """An allocator's counters that show what they are set to."""
    counters = {"memory_allocated": [100, 164], "max_memory_allocated": [1124]}
    for name, values in counters.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, values=values: values.pop(0))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)


def test_memory_is_what_the_allocator_counts_above_what_was_there(allocator):
    assert CudaMemory(CPU).measure(Case("lstm", "training", SHAPE), "fused_rnn") == 1024


def test_activations_are_what_a_forward_pass_leaves_allocated(allocator):
    memory = CudaMemory(CPU)
    assert memory.activations(Case("lstm", "inference", SHAPE), "fused_rnn") is None
    assert memory.activations(Case("lstm", "training", SHAPE), "torch.nn") == 64


def test_the_clock_of_a_gpu_records_events_around_the_calls(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, end):
            return 6.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.CLOCKS["cuda"](lambda: order.append("call"), 3) == pytest.approx(2e-3)
    assert order == ["record", *["call"] * 3, "record", "synchronize"]


def test_rates_have_every_dtype(monkeypatch):
    monkeypatch.setattr(machine_cuda, "_MATMUL_SIZES", (32, 64))
    monkeypatch.setattr(machine_cuda, "_COPY_BYTES", 1 << 16)
    rates = machine_cuda.measure_gpu_rates(CPU, 0.001)
    assert set(rates["matmul_gflops"]) == set(DTYPES) - {"autocast"}
    assert rates["sgemm_gflops"] == rates["matmul_gflops"]["fp32"] > 0
    assert rates["copy_gbytes"] > 0


def test_tf32_is_allowed_where_the_case_says_so_and_then_as_before():
    def now():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = now()
    for dtype in ("fp32", "tf32", "bf16"):
        with machine_cuda.matmul_precision(dtype):
            assert now() == (dtype == "tf32",) * 2
    assert now() == before


def test_the_file_is_named_after_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert machine_cuda.file_name(CPU) == "nvidia-h100-80gb-hbm3"


def test_without_kernels_the_cpu_is_measured_and_cuda_is_an_error(monkeypatch, capsys):
    reason = "the CUDA module was not built"
    monkeypatch.setattr(command, "_no_kernels_for_cuda", lambda: reason)
    assert command.main(["--list", "--filter", "^lstm-inference-"]) == 0
    assert "lstm-inference-T50-N1-H128" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command.main(["--device", "cuda"])
    assert stop.value.code == 2
    assert f"--device cuda: {reason}" in capsys.readouterr().err


def test_with_kernels_the_gpu_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(command, "_no_kernels_for_cuda", lambda: None)
    assert command.main(["--list", "--quick"]) == 0
    assert "lstm-training-T1024-N16-H768-bf16" in capsys.readouterr().out.split()
    assert command.main(["--list", "--grid"]) == 0
    assert len(capsys.readouterr().out.split()) == len(grid_cases())


def kernel_of(fraction):
    return kernels.KernelResult("forward_step", "lstm", "bf16", "training", 1 << 21, 1 << 28, 1e-4,
                                fraction)  # fmt: skip


def test_the_bar_asks_for_the_copy_rate_and_for_no_loss_against_the_loop():
    case = Case("lstm", "training", SHAPE, dtype="bf16")
    result = result_of(case, 1.0, 2.0)
    result.peers[LOOP] = result_of(case, 3.0, 1.0).peers[BASELINE]
    for fraction, met in ((0.86, True), (0.84, False)):
        rows = judge_cuda([result], [kernel_of(0.9), kernel_of(fraction)])
        assert rows[0].met is met
        assert rows[1].met is True
        assert rows[2].cases == 0
    result.peers[LOOP] = result_of(case, 1.5, 1.0).peers[BASELINE]
    assert judge_cuda([result], [])[1].met is False
    assert judge_cuda([result], [])[0].met is None


def test_the_report_ends_with_a_short_table_that_names_losses():
    won, lost = (Case("lstm", "training", Shape(T, 16, 8, 8), dtype="bf16") for T in (10, 20))
    results = [result_of(won, 3.0, 1.0), result_of(lost, 1.0, 2.0)]
    results[0].peers[OURS].activation_bytes = results[0].peers[BASELINE].activation_bytes = 7
    results.append(CaseResult(Case("gru", "inference", SHAPE), failure="out of memory: all of it"))
    rates = {
        "sgemm_gflops": 1.0,
        "copy_gbytes": 3000.0,
        "matmul_gflops": {"fp32": 5e4, "bf16": 6e5},
    }
    gpu = {"name": "a GPU", "capability": "sm_90", "multiprocessors": 132, "cuda": "13.0",
           "cudnn": 91300}  # fmt: skip
    skipped = kernels.KernelResult("backward_step", "gru", "fp32", "training", 1, 1, skipped="why")
    run = Run(
        machine={"cpu": "a cpu", "gpu": gpu},
        versions={"torch": "2"},
        commit=None,
        settings={"quick": False},
        rates={"start": rates},
        results=results,
        kernels=[kernel_of(0.9), skipped],
    )
    run.verdicts = judge_cuda(results, run.kernels)
    lines = render_cuda(run).splitlines()
    assert lines[-1] == "FAILED: gru-inference-T5-N3-H8-I7"
    assert lines[-2].split()[:6] == ["torch.nn", "bf16", "1", "of", "2", "1.22x"]
    assert lines[-2].endswith("0.50x  lstm-training-T20-N16-H8-bf16")
    text = "\n".join(lines)
    assert "0.500x<" in text
    assert "a GPU (sm_90, 132 multiprocessors), CUDA 13.0, cuDNN 91300" in text
    assert "matmul TFLOP/s fp32 50, bf16 600; copy 3000 GB/s" in text
    assert "gru fp32 training backward_step" in text
    assert run.matmul_gflops("fp16") == 1.0

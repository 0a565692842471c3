"""Dtypes and threads of the benchmark's cases: what is chosen, run, checked and written."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import harness, machine, peers, plots, tables, units
from benchmarks.baseline import refusal
from benchmarks.cases import DTYPE_TITLES, DTYPES, GATES, Case, Shape, choose
from benchmarks.cases_cpu import cpu_cases
from benchmarks.harness import CaseResult, Harness
from benchmarks.memory import PeakMemory
from benchmarks.peers import BASELINE, OURS, Prepared, Settings
from benchmarks.report import Run, read_json, render, write_json
from benchmarks.workload import build
from tests.benchmarks.test_benchmarks import Liar, result_of

CPU = torch.device("cpu")
SHAPE = Shape(5, 3, 7, 8)


def run_case(monkeypatch, case, candidates):
    monkeypatch.setattr(harness, "PEERS", candidates)
    with closing(PeakMemory(1)) as memory:
        return Harness(Settings(CPU, seconds=0.01), memory).run(case)


def run_of(results):
    rates = {
        "sgemm_gflops": 100.0,
        "sgemm_best": "mm",
        "copy_gbytes": 10.0,
        "matmul_gflops": {"fp32": 100.0, "bf16": 1000.0},
        "one_thread": {"matmul_gflops": {"fp32": 50.0, "bf16": 500.0}},
    }
    return Run(
        machine={"cpu": "a cpu", "cores": 2, "caches": {}, "torch_simd": "AVX512"},
        versions={"torch": "2"},
        commit=None,
        settings={"threads": 2, "quick": False},
        rates={"start": rates},
        results=results,
    )


def test_the_default_has_every_dtype_and_one_thread_and_is_a_part_of_the_full_product():
    default, full = (choose(cpu_cases(), full=full) for full in (False, True))
    assert 200 < len(default) < 330
    assert len(default) < len(full) / 3
    assert {case.dtype for case in default} == set(DTYPES) - {"tf32"}
    alone = [case for case in default if case.threads == 1]
    assert {case.dtype for case in alone} == {"fp32"}
    assert {case.cell for case in default if case.dtype == "bf16"} == set(GATES)
    assert any(c.shape.N == 1 and c.shape.T <= 10 and c.dtype == "bf16" for c in default)
    assert max(case.shape.N for case in default) == 8192


def test_the_full_product_has_each_kind_and_shape_in_every_dtype_on_one_thread_and_on_all():
    seen = Counter((c.cell, c.kind, c.shape) for c in cpu_cases())
    assert set(seen.values()) == {4 * 2}


def test_every_case_of_before_is_measured_in_float32():
    now = {case.id for case in choose(cpu_cases(), full=False)}
    for run in tables.full_runs().values():
        if "gpu" not in run.machine:
            assert {result.case.id for result in run.results} <= now


def test_cases_that_share_an_oracle_stand_together():
    cases = cpu_cases()
    places = {}
    for place, case in enumerate(cases):
        key = case.cell, case.shape, case.dtype, case.ragged, case.single_cell
        places.setdefault(key, []).append(place)
    assert all(p[-1] - p[0] == len(p) - 1 for p in places.values())
    assert all(cases[p[0]].backward for p in places.values())


def test_ids_say_dtype_and_threads():
    case = Case("lstm", "inference", SHAPE, dtype="autocast", threads=1)
    assert case.id == "lstm-inference-T5-N3-H8-I7-autocast-1thread"
    assert (case.autocast, case.products_dtype) == (True, "bf16")
    assert set(DTYPE_TITLES) == set(DTYPES)


@pytest.mark.parametrize("cell", GATES)
def test_autocast_is_around_the_forward_and_not_around_the_oracle(cell):
    work = build(Case(cell, "training", SHAPE, dtype="autocast"), CPU)
    seen = []

    def spy(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return work.module(*arguments)

    if (refused := refusal(cell, "autocast")) is not None:
        pytest.skip(refused)
    named = work.named(work.caller(spy, work.module.parameters())())
    double = work.double()
    double.named(double.caller(double.module, double.module.parameters())())
    assert seen == [True]
    assert not double.recast
    assert not torch.is_autocast_enabled("cpu")
    assert {t.dtype for name, t in named.items() if name.startswith("d")} == {torch.float32}
    assert torch.bfloat16 in {named["y"].dtype, named["h_n"].dtype} or cell == "gru"


@pytest.mark.parametrize("dtype", ["autocast", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_ours_and_torch_agree_and_ours_says_what_ran(monkeypatch, dtype, kind):
    case = Case("lstm", kind, SHAPE, dtype=dtype, threads=1)
    result = run_case(monkeypatch, case, [peers.TorchNN(), peers.FusedRNN()])
    assert result.failure is None
    refused = refusal("lstm", dtype)
    assert result.peers[BASELINE].skipped == refused
    assert result.seconds(OURS) > 0
    assert (result.speedup() is None) == (refused is not None)
    assert result.level
    assert result.peers[OURS].peak_bytes is None  # a thread's is that of all


def test_what_torch_cannot_run_is_checked_against_float64(monkeypatch):
    monkeypatch.setattr(peers, "refusal", lambda *_, **__: "it cannot")
    case = Case("lstm", "training", SHAPE, threads=1)
    result = run_case(monkeypatch, case, [peers.TorchNN(), peers.FusedRNN()])
    assert result.failure is None
    assert result.peers[BASELINE].skipped == "it cannot"
    assert result.speedup() is None
    assert 0 < result.peers[OURS].error < 1e-5
    liar = Liar("y")
    liar.refuses = lambda case, settings: None
    result = run_case(monkeypatch, case, [peers.TorchNN(), liar])
    assert result.failure.startswith("liar: y is off by")
    # And where nobody can, nothing is timed.
    assert run_case(monkeypatch, case, [peers.TorchNN()]).seconds(BASELINE) is None


def test_memory_of_other_dtypes_is_measured_by_the_full_product():
    case = Case("lstm", "inference", SHAPE)
    for full in (False, True):
        with closing(PeakMemory(1)) as memory:
            of = Harness(Settings(CPU, full=full), memory)
        assert of._takes_memory(case)
        assert of._takes_memory(replace(case, dtype="bf16")) is full
        assert not of._takes_memory(replace(case, threads=1))


def test_a_case_runs_on_its_threads_and_the_next_on_the_runs(monkeypatch):
    seen = []

    class Spy(peers.TorchNN):
        def prepare(self, work, settings):
            seen.append(torch.get_num_threads())
            return super().prepare(work, settings)

    torch.set_num_threads(2)
    ours = peers.FusedRNN()
    for threads in (1, None):
        case = Case("gru", "inference", SHAPE, dtype="bf16", threads=threads)
        run_case(monkeypatch, case, [Spy(), ours])
    assert seen == [1, 2]


def test_other_peers_say_why_they_sit_out():
    settings = Settings(CPU)
    case = Case("lstm", "inference", SHAPE, dtype="bf16")
    alone = Case("lstm", "inference", SHAPE, threads=1)
    assert "float32" in peers.OnnxRuntime().refuses(case, settings)
    assert "compilation" in peers.CompiledLoop().refuses(case, settings)
    assert "compilation" in peers.CompiledLoop().refuses(alone, settings)


class Wrong(peers.TorchNN):
    """torch.nn with a gradient that is wrong."""

    def prepare(self, work, settings):
        honest = super().prepare(work, settings)

        def named(returned):
            answer = honest.named(returned)
            return answer | {"dx": 2 * answer["dx"]}

        return Prepared(honest.call, named)


@pytest.mark.parametrize("wrong", ["dx", "d weight_ih_l0"])
def test_where_torch_is_wrong_float64_is_what_ours_is_held_against(monkeypatch, wrong):
    case = Case("lstm", "training", SHAPE)
    result = run_case(monkeypatch, case, [Wrong(), peers.FusedRNN()])
    assert result.failure is None
    assert result.peers[BASELINE].notes["wrong"].startswith("dx is off by 1 of")
    assert result.peers[BASELINE].error == pytest.approx(1, rel=1e-3)
    assert result.speedup() > 0
    result.peers[OURS].error = 0.0
    assert "torch.nn is wrong: dx is off" in render(run_of([result]))
    assert len(tables.wrong(run_of([result]))) == 3
    result = run_case(monkeypatch, case, [Wrong(), Liar(wrong)])
    assert result.failure.startswith(f"liar: {wrong} is off by")


def test_the_level_is_what_explain_says_or_the_one_in_use(monkeypatch):
    def row(how, backend="native"):
        return SimpleNamespace(how=how, backend=backend)

    assert units.level_of([row("amx, six products"), row("amx, six products")]) == (
        "amx, six products"
    )
    assert units.level_of([row(None, "torch.nn")]) is None
    from fused_rnn.backends import native

    monkeypatch.setattr(native, "simd_level", lambda: "avx2")
    assert units.level_of([row(None)]) == "avx2"


@pytest.mark.parametrize(
    ("level", "dtype", "expected"),
    [
        ("avx512", "fp32", ("fp32", 1)),
        ("avx512", "bf16", ("fp32", 1)),
        ("avx512_bf16", "bf16", ("bf16", 1)),
        ("amx", "bf16", ("bf16", 1)),
        ("amx", "autocast", ("bf16", 1)),
        ("amx", "fp32", ("bf16", 6)),
        ("amx, three products", "fp32", ("bf16", 3)),
        ("amx: 1 product", "fp32", ("bf16", 1)),
        ("amx", "fp16", ("fp32", 1)),
        ("something new", "fp32", ("fp32", 1)),
    ],
)
def test_the_unit_of_a_level(level, dtype, expected):
    assert units.unit(level, Case("lstm", "inference", SHAPE, dtype=dtype)) == expected


def leveled(case, level, rate):
    """Return a result of which ours ran at a rate of GFLOP/s of the case's own work."""
    seconds = case.flops / rate / 1e9
    result = result_of(case, 2 * seconds, seconds)
    result.peers[OURS].notes["level"] = level
    return result


def test_fractions_are_of_the_units_own_rate_on_as_many_threads():
    case = Case("lstm", "inference", SHAPE)
    run = run_of([])
    for level, dtype, threads, rate, fraction in (
        ("avx512", "fp32", None, 80.0, 0.8),
        ("avx512", "fp32", 1, 40.0, 0.8),
        ("amx", "fp32", None, 100.0, 0.6),
        ("amx", "bf16", None, 500.0, 0.5),
        ("amx", "bf16", 1, 250.0, 0.5),
    ):
        result = leveled(replace(case, dtype=dtype, threads=threads), level, rate)
        assert run.unit_fraction(result) == pytest.approx(fraction)
    assert run.unit_fraction(result_of(case, 1, 1)) is None
    assert run.unit_fraction(CaseResult(case)) is None


def test_a_run_with_dtypes_is_read_drawn_and_shown(tmp_path):
    cases = [
        Case("lstm", kind, SHAPE, dtype=dtype, threads=threads)
        for kind in ("training", "inference")
        for dtype, threads in (("bf16", None), ("fp32", 1), ("fp32", None), ("autocast", None))
    ]
    run = run_of([leveled(case, "amx", 100.0) for case in cases])
    write_json(run, tmp_path / "run.json")
    again = read_json(tmp_path / "run.json")
    assert [r.case for r in again.results] == [r.case for r in run.ordered]
    write_json(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "run.json").read_text()
    titles = [title for title, _ in again.groups]
    assert len(titles) == len(set(titles)) == 8
    assert "inference, one thread" in titles
    assert "inference, float32 under autocast to bfloat16" in titles
    text = render(again)
    assert all(title in text for title in titles)
    assert "bf16 1000.0, fp32 50.0 on one thread" in text
    shown = "\n".join(tables.cases(again))
    assert "| amx | 60.0% |" in shown
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    figure = plots.draw(again)
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    assert len(drawn) == 8
    assert sum(len(axis.texts) for axis in drawn) == len(cases)
    assert "one thread" in " ".join(axis.get_title(loc="right") for axis in drawn)


def test_rates_are_of_each_unit_on_all_threads_and_on_one(monkeypatch):
    for name in ("_SGEMM_SHAPES", "_BF16_SHAPES", "_ALONE_SHAPES"):
        monkeypatch.setattr(machine, name, ((8, 8, 8), (16, 8, 8)))
    monkeypatch.setattr(machine, "_COPY_BYTES", 1 << 12)
    torch.set_num_threads(2)
    rates = machine.measure_rates(1e-4)
    assert torch.get_num_threads() == 2
    assert rates["sgemm_gflops"] == max(rates["sgemm_all"].values())
    assert rates["one_thread"]["matmul_gflops"].keys() == rates["matmul_gflops"].keys()
    monkeypatch.setattr(machine, "_has_bf16_products", lambda: False)
    assert set(machine.measure_rates(1e-4)["matmul_gflops"]) == {"fp32"}

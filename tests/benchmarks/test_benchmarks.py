"""The benchmark suite: tiny cases through the command line, and what it must not get wrong."""

import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from benchmarks import harness, peers, tables, timing
from benchmarks.__main__ import main
from benchmarks.bar import judge
from benchmarks.cases import GATES, KINDS, Case, Shape, choose
from benchmarks.cases_cpu import cpu_cases
from benchmarks.harness import CaseResult, Harness, PeerResult
from benchmarks.memory import PeakMemory
from benchmarks.peers import BASELINE, OURS, OnnxRuntime, Prepared, Settings
from benchmarks.progress import Progress
from benchmarks.report import Run, render, write_json
from benchmarks.timing import Timing, time_interleaved
from benchmarks.verdicts import Verdict, geometric_mean
from benchmarks.workload import build

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = [Shape(5, 3, 7, 8), Shape(4, 3, 5, 8, layers=2, bidirectional=True)]
PATTERN = r"(gru-inference|lstm-training)-T50-N1-H128$|lstm-cell-nograd-N1-H16"


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_committed_run_is_read_as_it_was_written(tmp_path):
    runs = tables.full_runs()
    assert runs
    for name, run in runs.items():
        write_json(run, tmp_path / name)
        assert (tmp_path / name).read_text() == (tables.RESULTS / name).read_text()


def test_tables_have_every_case_and_every_loss():
    for run in tables.full_runs().values():
        everything = "\n".join(tables.cases(run))
        assert all(f"| `{r.case.cell} {r.case.label}` |" in everything for r in run.results)
        slower = {r.case.id for r in run.results if (s := r.speedup()) is not None and s < 1}
        named = {line.split("`")[1] for line in tables.losses(run) if f"| {BASELINE} |" in line}
        assert named == slower


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    json_path, plot_path = folder / "new" / "run.json", folder / "run.png"
    plot = ["--plot", plot_path] if has("matplotlib") else []
    tiny = ["--quick", "--threads", 1, "--seconds", 0.02, "--filter", PATTERN]
    done = run_cli(*tiny, "--json", json_path, *plot)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(json_path.read_text()), plot_path


def has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def test_json_names_machine_versions_settings_and_rates(finished):
    _, document, _ = finished
    assert document["schema"] == 1
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["torch"] == torch.__version__
    assert document["settings"]["threads"] == 1
    assert document["settings"]["quick"] is True
    assert document["settings"]["filter"] == PATTERN
    for rates in (document["rates"]["start"], document["rates"]["end"]):
        assert rates["matmul_gflops"]["fp32"] == rates["sgemm_gflops"]
        assert rates["one_thread"]["matmul_gflops"].keys() == rates["matmul_gflops"].keys()
        assert rates["sgemm_gflops"] == max(rates["sgemm_all"].values()) > 0
        assert rates["copy_gbytes"] > 0


def test_json_has_each_case_with_each_peer_timed_or_skipped_with_a_reason(finished):
    _, document, _ = finished
    cases = {case["id"]: case for case in document["cases"]}
    assert list(cases) == [
        "gru-inference-T50-N1-H128",
        "lstm-training-T50-N1-H128",
        "lstm-cell-nograd-N1-H16",
    ]
    for case in cases.values():
        assert case["failure"] is None
        assert set(case["peers"]) == {peer.name for peer in peers.PEERS}
        for peer in case["peers"].values():
            assert (peer["skipped"] is None) == ("median_s" in peer)
        ours, theirs = case["peers"][OURS], case["peers"][BASELINE]
        assert case["speedup"] == pytest.approx(theirs["median_s"] / ours["median_s"])
        assert 0 < ours["q1_s"] <= ours["median_s"] <= ours["q3_s"]
        assert ours["sgemm_fraction"] > 0
        assert 0 < ours["error"] < 1e-5
        assert ours["notes"]["backend"]
        assert ours["notes"]["level"] or ours["notes"]["backend"] != "native"
        assert 0 < ours["unit_fraction"] < 6 * ours["sgemm_fraction"] + 1e-9
        assert all(0 <= share <= 1 for share in case["other_work"].values())
    onnx = cases["gru-inference-T50-N1-H128"]["peers"]["onnxruntime"]
    assert "median_s" in onnx or "not installed" in onnx["skipped"]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux's clear_refs"
)
def test_json_has_the_peak_memory_of_ours_and_of_torch(finished):
    _, document, _ = finished
    training = next(case for case in document["cases"] if case["kind"] == "training")
    gradients = 4 * (512 * (128 + 128) + 2 * 512)
    for name in (OURS, BASELINE):
        assert gradients < training["peers"][name]["peak_bytes"] < 32 << 20


def test_table_says_who_wins_and_which_rows_of_the_bar_are_met(finished):
    done, document, _ = finished
    for case in document["cases"]:
        label = case["id"].replace(f"-{case['kind']}-", " ")
        assert label in done.stdout
    assert "sgemm" in done.stdout
    assert "geometric mean" in done.stdout
    assert "against torch.nn: faster in" in done.stdout
    for row in document["bar"]:
        assert row["title"] in done.stdout
    gru = next(row for row in document["bar"] if row["title"] == "GRU and RNN float32 inference")
    assert gru["met"] is (gru["geomean"] >= gru["geomean_bar"] and gru["worst"] >= gru["worst_bar"])
    assert "3 of 3 cases" in done.stderr


def test_plot_is_a_picture(finished):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    _, _, plot_path = finished
    assert plot_path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "no such case"], "matches no case"),
        (["--filter", "lstm["], "no regular expression"),
        (["--threads", "0"], "not above zero"),
        (["--threads", "two"], "invalid int value"),
        (["--seconds", "-1"], "not above zero"),
        (["--device", "abacus"], "invalid choice"),
        (["--jsom", "x"], "unrecognized arguments"),
        (["--quick", "--full"], "opposites"),
        (["--seed", "1"], "--sample's"),
        (["--sample", "0"], "not above zero"),
        (["--sample", "1", "--growth"], "not allowed with"),
        (["--sample", "1", "--filter", "x"], "neither --filter nor --plot"),
        (["--growth", "--filter", "no such series"], "no series"),
        (["--growth", "--device", "cuda"], "measure the CPU"),
        (["--judge", "no/such/file.json"], "No such file"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_list_prints_the_filtered_ids(capsys):
    assert main(["--list", "--filter", "lstm-inference-T100-N32-H256$"]) == 0
    assert capsys.readouterr().out.split() == ["lstm-inference-T100-N32-H256"]


def test_cases_have_unique_ids_and_every_kind_for_every_cell():
    cases = cpu_cases()
    assert len({case.id for case in cases}) == len(cases)
    assert {(case.cell, case.kind) for case in cases} == {(c, k) for c in GATES for k in KINDS}


def test_filter_is_a_substring_or_a_regular_expression():
    cases = cpu_cases()
    assert {case.cell for case in choose(cases, "^gru-.*-bi$")} == {"gru"}
    assert {case.shape.T for case in choose(cases, "T1000")} == {1000}
    quick = choose(cases, quick=True)
    assert 0 < len(quick) < len(cases) / 2


def test_flops_count_every_layer_and_direction_and_the_tokens_of_ragged_batches():
    dense = Case("lstm", "inference", Shape(4, 3, 5, 8, layers=2, bidirectional=True))
    assert dense.flops == 2 * 12 * 32 * 2 * ((5 + 8) + (16 + 8))
    assert Case("gru", "training", Shape(4, 3, 5, 8)).flops == 3 * 2 * 12 * 24 * 13
    ragged = Case("gru", "ragged-inference", Shape(40, 30, 5, 8))
    assert 20 <= ragged.lengths.min() < ragged.lengths.max() == 40
    assert ragged.flops == 2 * int(ragged.lengths.sum()) * 24 * 13


@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("kind", ["inference", "ragged-inference"])
@pytest.mark.parametrize("cell", GATES)
def test_the_onnx_graph_computes_what_torch_computes(cell, kind, shape):
    pytest.importorskip("onnx", reason="the graph is built with onnx")
    pytest.importorskip("onnxruntime", reason="the graph is run by onnxruntime")
    work = build(Case(cell, kind, shape), CPU)
    prepared = OnnxRuntime().prepare(work, Settings(CPU, threads=1))
    with torch.no_grad():
        expected = work.named(work.caller(work.module, ())())
    actual = prepared.named(prepared.call())
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["training", "ragged-training", "step-training", "cell-training"])
@pytest.mark.parametrize("cell", GATES)
def test_the_oracle_is_the_same_problem_in_float64(cell, kind):
    shape = Shape(1, 3, 7, 8) if kind.startswith(("cell", "step")) else TINY[1]
    work = build(Case(cell, kind, shape), CPU)
    single, double = (
        each.named(each.caller(each.module, each.module.parameters())())
        for each in (work, work.double())
    )
    assert {name for name in single if name.startswith("d")} >= {"dx"}
    for name, tensor in single.items():
        assert double[name].dtype == torch.float64
        torch.testing.assert_close(tensor.double(), double[name], atol=1e-5, rtol=1e-4)


class Liar(peers.TorchNN):
    """Changes one number of torch.nn's answer."""

    name = "liar"

    def __init__(self, wrong):
        self.wrong = wrong

    def prepare(self, work, settings):
        honest = super().prepare(work, settings)

        def named(returned):
            answer = honest.named(returned)
            tensor = answer[self.wrong].clone()
            tensor.view(-1)[0] += 0.01 * tensor.abs().max()
            return answer | {self.wrong: tensor}

        return Prepared(honest.call, named)


@pytest.mark.parametrize("wrong", ["y", "h_n", "dx", "d weight_hh_l0"])
def test_a_wrong_peer_fails_the_case_before_anything_is_timed(monkeypatch, wrong):
    monkeypatch.setattr(harness, "PEERS", [peers.TorchNN(), Liar(wrong)])
    with closing(PeakMemory(1)) as memory:
        case = Case("lstm", "training", TINY[0])
        result = Harness(Settings(CPU, seconds=0.01), memory).run(case)
    assert result.failure.startswith(f"liar: {wrong} is off by")
    assert all(peer.timing is None for peer in result.peers.values())


def test_a_nan_is_a_wrong_answer():
    expected = {"y": torch.ones(3)}
    assert harness.relative_error({"y": torch.tensor([1, 1, torch.nan])}, expected) == float("inf")


def test_rounds_interleave_the_peers(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "_SAMPLE_SECONDS", 1e-9)
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    timings = time_interleaved(calls, CPU, seconds=0.0)
    rounds = timings["a"].rounds
    measured = order[-3 * rounds :]
    assert all(set(measured[i : i + 3]) == set(calls) for i in range(0, len(measured), 3))
    assert {t.calls_per_sample for t in timings.values()} == {1}


@pytest.mark.skipif(
    not timing._THREADS.exists(), reason="the states of threads are read from Linux's /proc"
)
def test_a_peer_is_not_timed_while_threads_of_another_still_run():
    busy = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 400_000))
    busy.start()
    # It waits for Python's lock first, and while it waits it does not run.
    own_time = time.pthread_getcpuclockid(busy.ident)
    while time.clock_gettime(own_time) < 0.005:
        time.sleep(0.001)
    waited = timing._settle()
    still_busy = busy.is_alive()
    busy.join()
    assert waited > timing._SETTLE_STEP
    assert not still_busy or waited >= timing._SETTLE_LIMIT


def result_of(case, torch_s, ours_s, error=1e-7, peak=(10 << 20, 10 << 20)):
    found = CaseResult(case)
    for name, seconds, own_error, bytes_ in (
        (BASELINE, torch_s, 1e-7, peak[0]),
        (OURS, ours_s, error, peak[1]),
    ):
        clock = Timing(seconds, seconds, seconds, seconds, 7, 1)
        found.peers[name] = PeerResult(timing=clock, error=own_error, peak_bytes=bytes_)
    return found


def verdict(results, title):
    return next(row for row in judge(results, sgemm_gflops=100.0) if row.title.startswith(title))


def test_the_bar_asks_for_the_mean_and_for_the_worst_case():
    title = "GRU and RNN float32 inference"
    case, other = (Case("gru", "inference", Shape(T, 4, 8, 8)) for T in (10, 20))
    assert verdict([result_of(case, 3, 1), result_of(other, 2, 1)], title).met
    good_mean = verdict([result_of(case, 9, 1), result_of(other, 1, 1)], title)
    assert good_mean.geomean == pytest.approx(3)
    assert good_mean.worst_case == other.id
    assert good_mean.met is False
    good_worst = verdict([result_of(case, 1.5, 1), result_of(other, 1.5, 1)], title)
    assert good_worst.met is False
    assert verdict([], title).met is None


def test_the_bar_limits_memory_error_and_distance_to_sgemm():
    large = Case("lstm", "inference", Shape(10, 16, 512, 512))
    at_rate = large.flops / 100e9
    assert verdict([result_of(large, 1, at_rate / 0.8)], "inference, of the sgemm").met
    assert not verdict([result_of(large, 1, at_rate / 0.7)], "inference, of the sgemm").met
    training = Case("rnn", "training", Shape(10, 16, 8, 8))
    assert verdict([result_of(training, 1, 1)], "peak memory of training").met
    more = result_of(training, 1, 1, peak=(10 << 20, 12 << 20))
    assert not verdict([more], "peak memory of training").met
    assert not verdict([result_of(training, 1, 1, error=3e-7)], "error against float64, over").met
    assert verdict([result_of(training, 1, 1, error=3e-7)], "error against float64, where").met


def test_a_failed_case_is_in_no_mean():
    failed = result_of(Case("gru", "inference", TINY[0]), 1, 1)
    failed.failure = "wrong"
    assert verdict([failed], "GRU and RNN float32 inference").cases == 0


def test_the_report_marks_losses_and_failures():
    case, other = (Case("lstm", "inference", Shape(T, 4, 8, 8)) for T in (10, 20))
    failed = CaseResult(Case("gru", "inference", TINY[0]), failure="onnxruntime: y is off")
    results = [result_of(case, 1, 2), result_of(other, 3, 2), failed]
    results[0].other_work = {"processes": 0.2, "stolen": 0.0}
    rates = {"sgemm_gflops": 100.0, "sgemm_best": "mm", "copy_gbytes": 10.0}
    run = Run(
        machine={"cpu": "a cpu", "cores": 2, "caches": {}, "torch_simd": "AVX2"},
        versions={"torch": "2"},
        commit=None,
        settings={"threads": 2, "quick": False},
        rates={"start": rates, "end": rates | {"sgemm_gflops": 120.0}},
        results=results,
        verdicts=judge(results, 120.0),
    )
    assert run.sgemm_gflops == 120.0
    text = render(run)
    assert "0.500x<" in text
    assert "1.50x<" not in text
    assert "loses lstm-inference-T10-N4-H8  0.500x" in text
    assert "FAILED: onnxruntime: y is off" in text
    assert "other work disturbed 1 of 3 cases" in text
    assert next(line.endswith("disturbed") for line in text.splitlines() if "T10-N4" in line)
    assert "\033" not in text
    assert "\033[31m" in render(run, colour=True)


def test_geometric_mean():
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert geometric_mean([]) is None
    assert Verdict("nothing asked", 1, geomean=2.0).met is None


def test_progress_prints_few_lines_where_it_cannot_redraw():
    stream = io.StringIO()
    progress = Progress(100, stream)
    for number in range(100):
        progress.show(f"case {number}")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("100 of 100 cases in")

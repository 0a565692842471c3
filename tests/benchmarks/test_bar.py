"""The bar: what is asked with tile registers and without, from runs and from result files."""

import json

import pytest
import torch

from benchmarks import bar, judging, sampler, tables
from benchmarks.cases import Case, Shape
from benchmarks.document import heading, write
from benchmarks.draws import draws
from benchmarks.peers import Settings
from benchmarks.sampler import Sample
from tests.benchmarks.test_benchmarks import result_of


def rows(results, tiles):
    return {row.title: row for row in bar.judge(results, 100.0, tiles)}


def test_a_machine_has_tiles_by_its_flags():
    assert bar.has_tiles({"simd": ["avx2", "amx_tile"]})
    assert not bar.has_tiles({"simd": ["avx512f"]})
    assert not bar.has_tiles({})


def test_titles_are_unique():
    titles = [asked.title for asked in (*bar._ASKED, *bar._REPORTED)]
    assert len(titles) == len(set(titles))


def test_more_is_asked_with_tiles_and_of_batches_that_fill_them():
    one, eight = (
        result_of(Case("lstm", "inference", Shape(10, n, 64, 64)), speedup, 1)
        for n, speedup in ((1, 1.0), (8, 1.3))
    )
    found = rows([one, eight], tiles=True)
    large = found["LSTM float32 inference, N >= 8"]
    assert (large.cases, large.geomean_bar, large.worst_bar) == (1, 1.5, 1.2)
    assert large.met is False
    small = found["LSTM float32 inference, N < 8"]
    assert (small.cases, small.met) == (1, None)
    without = rows([one, eight], tiles=False)["LSTM float32 inference"]
    assert (without.cases, without.geomean_bar, without.worst_bar) == (2, 1.2, 0.97)
    assert without.met is False
    assert without.geomean == pytest.approx(1.3**0.5)


@pytest.mark.parametrize(
    ("case", "title"),
    [
        (Case("rnn", "training", Shape(9, 8, 4, 4)), "GRU and RNN float32 training step"),
        (
            Case("lstm", "training", Shape(9, 8, 4, 4), dtype="autocast"),
            "LSTM bfloat16 training step",
        ),
        (
            Case("gru", "inference", Shape(9, 8, 4, 4), dtype="bf16"),
            "GRU and RNN bfloat16 inference",
        ),
        (
            Case("gru", "training", Shape(9, 8, 4, 4), dtype="fp16"),
            "float16 inference and training step",
        ),
        (
            Case("gru", "training", Shape(9, 512, 4, 4)),
            "float32 training step, N = 512 to 8192",
        ),
        (Case("rnn", "ragged-training", Shape(9, 8, 4, 4), threads=1), "float32 on one thread"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_case_is_asked_for_in_one_row(case, title):
    counted = {
        row.title: row.cases
        for row in bar.judge([result_of(case, 2, 1)], 100.0)
        if row.cases and row.unit == "x" and "error" not in row.title
    }
    assert counted == {title: 1}


def test_a_file_of_before_is_judged_by_the_bar_of_today(capsys):
    name, run = next(iter(tables.full_runs().items()))
    verdicts = judging.judge_files([tables.RESULTS / name])
    found = {row.title: row for row in verdicts}
    inference = found["LSTM float32 inference"]
    old = next(row for row in run.verdicts if row.title == "LSTM inference")
    assert (inference.cases, inference.geomean) == (old.cases, old.geomean)
    assert inference.met is False
    printed = capsys.readouterr().out
    assert "rows are reached" in printed
    losses = [r.case.id for r in run.results if (s := r.speedup()) is not None and s < 1]
    assert all(f"{case} against torch.nn" in printed for case in losses)


def sample(draw, speedup):
    return Sample(draw, [(speedup, 1.0)])


def test_samples_are_judged_by_their_slowest_and_by_the_share_of_slow_ones(tmp_path, capsys):
    drawn = draws(0)
    samples = [sample(next(drawn), speedup) for speedup in [2.0] * 98 + [0.96, 0.95]]
    worst, slow = sampler.judge(samples)
    assert worst.met
    assert slow.worst == pytest.approx(0.02)
    assert slow.met
    samples[0] = sample(next(drawn), 0.89)
    assert not any(row.met for row in sampler.judge(samples))
    write(heading(Settings(torch.device("cpu"))) | sampler.as_json(samples), tmp_path / "s.json")
    verdicts = judging.judge_files([tmp_path / "s.json", tmp_path / "s.json"])
    assert [row.cases for row in verdicts] == [200, 200]
    printed = capsys.readouterr().out
    assert "missed: random shapes" in printed
    assert f"0.890x  {samples[0].draw.label} against torch.nn" in printed
    assert sampler.judge([]) == []


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"other\.json has neither cases"):
        judging.judge_files([tmp_path / "other.json"])

"""The demonstration at a tiny size: it runs, says what it found, and would notice a failure."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fused_rnn
from benchmarks.progress import _clock as benchmarks_clock

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import language_model  # noqa: E402
from word_lm import data, report  # noqa: E402
from word_lm.compare import Difference, Drift, compare, difference  # noqa: E402
from word_lm.model import CELLS, generate  # noqa: E402
from word_lm.progress import Progress  # noqa: E402
from word_lm.progress import clock as progress_clock  # noqa: E402
from word_lm.result import Result  # noqa: E402
from word_lm.speed import Speed  # noqa: E402
from word_lm.train import Run  # noqa: E402

SIZES = (
    "--updates 30 --embedding 8 --hidden 12 --layers 2 --batch 5 --steps 20 --rounds 2 --words 8"
)
TINY = [*SIZES.split(), "--threads", "1"]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Keep what the demonstration sets for its process from the other tests."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus() -> data.Corpus:
    return data.load()


@pytest.fixture
def run(corpus: data.Corpus) -> Run:
    torch.manual_seed(3)
    return language_model.begin(language_model.parse(["--cell", "lstm", *TINY]), corpus)


@pytest.mark.parametrize("cell", CELLS)
def test_demonstration(cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the picture needs matplotlib")
    picture = tmp_path / "new" / "demo.png"
    result = language_model.main(["--cell", cell, "--out", str(picture), *TINY])
    printed = capsys.readouterr().out

    name = CELLS[cell].__name__
    assert result.problem is None
    assert type(result.plain.model.rnn) is getattr(torch.nn, name)
    assert type(result.fused.model.rnn) is getattr(fused_rnn, name)
    assert result.swap == 15
    assert len(result.plain.losses) == len(result.fused.losses) == 30
    assert result.plain.losses[:15] == result.fused.losses[:15]
    assert sum(result.fused.losses[-5:]) < sum(result.fused.losses[:5])
    assert result.fused.validation.keys() == result.plain.validation.keys()
    assert 30 in result.fused.validation
    trained = [p for group in result.fused.optimizer.param_groups for p in group["params"]]
    assert list(map(id, trained)) == list(map(id, result.fused.model.parameters()))

    assert result.samples[0] == result.samples[1]
    assert not any(data.UNKNOWN in sample for sample in result.samples)
    assert f"rnn: torch.nn.{name} became fused_rnn.{name}." in printed
    for said in ("equal", "word for word the same", "the same curve", "wrote", "100%"):
        assert said in printed
    for row in result.speeds:
        assert row.job in printed
        assert min(*row.plain, *row.fused) > 0
    height, width, _ = pyplot.imread(picture).shape
    assert (width, height) == (1690, 936)


def test_script_runs_on_its_own(tmp_path: Path) -> None:
    script = [sys.executable, str(EXAMPLES / "language_model.py"), "--cell", "gru"]
    picture = tmp_path / "demo.png"
    env = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    run = functools.partial(subprocess.run, cwd=tmp_path, env=env, capture_output=True, text=True)
    done = run([*script, *TINY, "--out", str(picture)])
    assert done.returncode == 0, done.stderr
    assert "tokens per second" in done.stdout
    refused = run([*script, "--updates", "3"])
    assert refused.returncode == 2
    assert "can't be measured" in refused.stderr


def test_forks_draw_the_same_masks_in_any_order(run: Run) -> None:
    run.advance(2)
    forks = [copy.deepcopy(run) for _ in range(2)]
    forks[0].advance(4)
    for _ in range(4):
        forks[1].advance(1)
    assert forks[0].losses == forks[1].losses
    assert len(set(forks[0].losses)) == 6
    assert len(run.losses) == 2


def test_forks_validate_without_a_trace(run: Run, corpus: data.Corpus) -> None:
    fork = copy.deepcopy(run)
    fork.validate(data.columns(corpus.validation, 10))
    run.advance(3)
    fork.advance(3)
    assert run.losses == fork.losses


def test_a_loss_that_is_not_finite_raises(run: Run, corpus: data.Corpus) -> None:
    run.advance(1)
    with torch.no_grad():
        run.model.decoder.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="update 2 is nan"):
        run.advance(1)
    with pytest.raises(FloatingPointError, match="validation"):
        run.validate(data.columns(corpus.validation, 10))


def test_comparison_notices_a_changed_weight(run: Run, corpus: data.Corpus) -> None:
    words = data.columns(corpus.validation, 10)[:30]
    fork = copy.deepcopy(run)
    assert all(row.within and row.largest == 0 for row in compare(run, fork, words))
    with torch.no_grad():
        fork.model.rnn.weight_hh_l0[0, 0] += 0.5
    assert not any(row.within for row in compare(run, fork, words))


def test_nan_is_a_difference() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert not difference("values", [good, good], [good, bad], 1e-5).within
    assert not Drift(math.nan, 0.0, 0.0).within


def test_result_names_its_problem(run: Run) -> None:
    good = Difference("outputs", torch.float32, 0.0, 0.0, 1e-5)
    result = Result(run, run, 0, [good], Drift(1e-6, 1e-6, 1e-4), [], [])
    assert result.problem is None
    wrong = dataclasses.replace(result, differences=[good, dataclasses.replace(good, relative=1)])
    assert "results differ" in (wrong.problem or "")
    apart = dataclasses.replace(result, drift=Drift(0.1, 1e-6, 1e-4))
    assert "curves differ by 1.0e-01" in (apart.problem or "")


def test_slower_is_said() -> None:
    printed = report.speeds([Speed("job", [100.0] * 3, [80.0, 50.0, 120.0])])
    assert "0.80x slower" in printed
    assert "0.65 to 1.00" in printed


def test_text_is_split_without_overlap(corpus: data.Corpus) -> None:
    paragraphs = list(map(tuple, data.paragraphs()))
    assert len(paragraphs) == len(set(paragraphs))
    assert len(corpus.train) + len(corpus.validation) == sum(map(len, paragraphs))
    assert 0.07 < len(corpus.validation) / len(corpus.train) < 0.15
    assert corpus.words[corpus.unknown] == data.UNKNOWN
    for split in (corpus.train, corpus.validation):
        assert (split == corpus.unknown).float().mean() < 0.1
    used = torch.bincount(corpus.train, minlength=len(corpus.words))
    assert used.min() >= 2  # the vocabulary is the training split's


def test_columns_are_stretches_of_the_text() -> None:
    torch.testing.assert_close(
        data.columns(torch.arange(11), 3), torch.tensor([[0, 3, 6], [1, 4, 7], [2, 5, 8]])
    )


def test_generation_never_writes_the_banned_word(run: Run) -> None:
    with torch.no_grad():
        run.model.decoder.bias[5] = 100.0
    assert 5 in generate(run.model, [1], 10, banned=0, seed=0)
    words = generate(run.model, [1], 10, banned=5, seed=0)
    assert len(words) == 11
    assert 5 not in words


def test_text_reads_like_text() -> None:
    words = ["a", "call", "(", "of", "f", ")", "returns", ",", "then", "ends", ".", data.END]
    assert data.readable(words) == "a call (of f) returns, then ends. ¶"


def test_progress_is_shown_where_no_line_can_be_redrawn() -> None:
    stream = io.StringIO()
    progress = Progress(4, stream)
    progress.add(1, "first")
    progress.add(1, "too soon after it")
    progress.add(2, "last")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "25%" in lines[0]
    assert lines[1].endswith("last")
    assert "100%" in lines[1]


@pytest.mark.parametrize("clock", [progress_clock, benchmarks_clock])
@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (201, "3 min 21 s"), (15480, "4 h 18 min")],
)
def test_times_have_units(clock, seconds: float, said: str) -> None:
    assert clock(seconds) == said

"""The examples of what torch.nn has not: each at a tiny size, and the parts that could be wrong."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import gate_heatmap
import less_overfitting
import long_range
import rollout
import translate_dates

TINY = {
    long_range: "--updates 2 --batch 4 --hidden 5 --phrases 4 --tests 8",
    translate_dates: "--updates 2 --batch 4 --hidden 6 --tests 9",
    rollout: "--updates 2 --hidden 4 --tasks 3 --steps 9 --wide 5 --rounds 2",
    less_overfitting: "--updates 3 --hidden 8 --batch 4 --steps 5",
    gate_heatmap: "--updates 2 --hidden 8 --batch 4 --steps 5 --words 12 --units 4",
}


@pytest.fixture(autouse=True)
def _random_numbers() -> Iterator[None]:
    """Keep the examples' seeds from the other tests."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("example", TINY, ids=lambda module: module.__name__)
def test_runs_and_draws(example, tmp_path, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the picture needs matplotlib")
    picture = tmp_path / "picture.png"
    result = example.main([*TINY[example].split(), "--out", str(picture)])
    printed = capsys.readouterr().out
    assert f"wrote {picture}" in printed
    assert pyplot.imread(picture).std() > 0.05  # not one colour
    if example is long_range:
        assert list(result) == ["RNN", "GRU", "LSTM"]
        assert list(result["GRU"]) == [0, 1, 2, 4]
        assert all(f"  {cell:<6}(loss " in printed for cell in result)
    elif example is translate_dates:
        assert 0 <= result <= 1
        assert printed.count("right") + printed.count("wrong") == 8 + 1
        assert "of 9 new dates are right" in printed
    elif example is rollout:
        right, seconds = result
        assert len(right) == 2
        assert min(seconds) > 0
        assert "loop over LSTMCell" in printed
    elif example is less_overfitting:
        assert list(result) == list(less_overfitting.OPTIONS)
        assert all(curve.updates == [1, 2, 3] for curve in result.values())
        assert all(name in printed for name in result)
    else:
        assert len(result.words) == 12
        assert result.forget.shape == result.input.shape == (12, 4)
        assert all(word in printed for word in result.words)


def test_long_range_dependencies_are_learned_by_lstm_and_gru_alone(tmp_path):
    sizes = "--updates 500 --batch 32 --hidden 48 --phrases 6 --tests 200"
    table = long_range.main([*sizes.split(), "--out", str(tmp_path / "picture.png")])
    assert all(table[cell][6] > 0.9 for cell in ("LSTM", "GRU"))
    assert table["RNN"][6] < 0.75
    assert table["RNN"][0] > 0.9


def test_sentences_agree():
    rng = random.Random(0)
    for phrases in (0, 1, 5):
        for _ in range(20):
            words = long_range.sentence(phrases, rng)
            assert len(words) == 5 + 3 * phrases
            assert (words[1].endswith(("s", "es")) and words[-3] == "are") != (words[-3] == "is")
            assert set(words) <= set(long_range.VOCABULARY)


def test_dates_are_said_and_written_alike():
    rng = random.Random(0)
    dates = [translate_dates.date(rng) for _ in range(2000)]
    words, lengths, signs = translate_dates.batch(dates)
    assert words.shape == (int(lengths.max()), 2000)
    assert signs.shape == (10, 2000)
    # No two dates are said alike.
    assert len({tuple(said) for said, _ in dates}) >= len({written for _, written in dates})
    meaning = {}
    for said, written in dates:
        assert meaning.setdefault(tuple(said), written) == written
    assert translate_dates.number(21) == ["twenty", "one"]
    assert translate_dates.number(40) == ["forty"]
    assert translate_dates.number(13) == ["thirteen"]


def test_translation_is_the_forward_pass_sign_by_sign():
    model = translate_dates.Translator(6)
    words, lengths, _ = translate_dates.batch(
        [translate_dates.date(random.Random(i)) for i in range(5)]
    )
    signs, attention = model.translate(words, lengths)
    torch.testing.assert_close(model(words, lengths, signs).argmax(-1), signs)
    torch.testing.assert_close(attention.sum(-1), torch.ones(10, 5))
    for n, length in enumerate(lengths):
        assert not attention[:, n, length:].any()


def test_acting_and_learning_see_the_same_scores():
    policy, task = rollout.Policy(4), rollout.Recall(3, 6, seed=0)
    zeros = torch.zeros(1, 3, 4)
    first, state = rollout.roll_out(policy, task, 9, (zeros, zeros))
    second, _ = rollout.roll_out(policy, task, 9, state)
    cell = torch.nn.LSTMCell(5, 4)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in policy.rnn.state_dict().items()})
    for seen in (first, second):
        assert seen.resets.any()
        torch.testing.assert_close(policy(seen), rollout.by_cells(policy, cell, seen))


def test_only_what_was_shown_is_rewarded():
    task = rollout.Recall(50, 5, seed=0)
    signal = torch.zeros(50, dtype=torch.int64)
    rewards = due = 0
    for _ in range(30):
        seen, begins = task.observe()
        signal = torch.where(begins, seen[:, :-1].argmax(-1), signal)
        due += seen[:, -1].sum()
        rewards += task.act(signal).sum()
    assert rewards == due > 0

"""The sampler of random shapes: the same list for a seed, checked, timed again where it is slow."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

import fused_rnn
from benchmarks import draws as drawing
from benchmarks import sampler
from benchmarks.__main__ import main
from benchmarks.draws import DTYPES, Draw, draws, make_arguments, make_call, make_layer
from benchmarks.peers import BASELINE, OURS, Settings
from benchmarks.sampler import Sample
from benchmarks.text import Paint
from benchmarks.timing import Timing

SETTINGS = Settings(torch.device("cpu"), threads=1)
PLAIN = Draw(
    "lstm", "fp32", False, 5, 3, 7, 8, layers=1, bidirectional=False, bias=True, proj_size=0,
    relu=False, batch_first=False, ragged=False, states=False,
)  # fmt: skip
VARIANTS = [
    replace(PLAIN, cell="gru", dtype="bf16", training=True, ragged=True),
    replace(PLAIN, proj_size=4, states=True, layers=2, bidirectional=True, training=True),
    replace(PLAIN, cell="rnn", relu=True, bias=False, batch_first=True, dtype="fp64"),
    replace(PLAIN, dtype="autocast", training=True, states=True),
    replace(PLAIN, cell="gru", dtype="fp16", ragged=True, states=True, bidirectional=True),
]


def test_a_seed_gives_the_same_list_and_another_seed_another():
    first, again, other = (list(islice(draws(seed), 60)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({draw.label for draw in first}) == len(first)


def test_draws_are_within_the_limits_and_have_every_option():
    found = list(islice(draws(0), 400))
    for draw in found:
        assert draw.floats <= drawing._MOST_FLOATS
        assert draw.flops <= drawing._MOST_FLOPS
        for name, (low, high) in drawing._RANGES.items():
            assert low <= getattr(draw, name) <= high
        assert 0 <= draw.proj_size < draw.H
    for name, count in {"cell": 3, "dtype": len(DTYPES), "layers": 3}.items():
        assert len(Counter(getattr(draw, name) for draw in found)) == count
    for name in ("training", "bidirectional", "bias", "relu", "batch_first", "ragged", "states"):
        assert {getattr(draw, name) for draw in found} == {True, False}
    assert any(draw.proj_size for draw in found)
    assert max(draw.N for draw in found) > 2000
    assert max(draw.T for draw in found) > 300


def test_work_is_counted_as_the_cases_count_it():
    assert PLAIN.flops == 2 * 15 * 4 * 8 * (7 + 8)
    assert replace(PLAIN, training=True).flops == 3 * PLAIN.flops
    assert replace(PLAIN, proj_size=4).flops == 2 * 15 * (4 * 8 * (7 + 4) + 8 * 4)
    both = replace(PLAIN, layers=2, bidirectional=True)
    assert both.flops == 2 * 15 * 2 * 4 * 8 * ((7 + 8) + (16 + 8))
    assert replace(PLAIN, ragged=True).tokens < 15


def skip_what_torch_cannot(draw):
    """Skip a test that needs an answer of torch.nn's where there is none."""
    refused = sampler._refused(draw)
    if refused is not None:
        pytest.skip(refused)


@pytest.mark.parametrize("draw", [PLAIN, *VARIANTS], ids=lambda draw: draw.label)
def test_both_libraries_compute_a_drawn_problem(draw):
    skip_what_torch_cannot(draw)
    arguments = make_arguments(draw)
    answers = [make_call(draw, make_layer(draw, of), arguments)() for of in (nn, fused_rnn)]
    assert answers[0].shape == answers[1].shape
    tolerance = 1e-5 if draw.dtype in ("fp32", "fp64") else 5e-2
    torch.testing.assert_close(*(y.double() for y in answers), atol=tolerance, rtol=tolerance)


def timings_of(ratios, asked):
    """Stand in for the timing: ours takes a second, torch.nn so many in turn."""
    left = iter(ratios)

    def timed(calls, device, seconds):
        asked.append(seconds)
        theirs = next(left)
        return {name: Timing(s, s, s, s, 7, 1) for name, s in ((BASELINE, theirs), (OURS, 1.0))}

    return timed


@pytest.mark.parametrize(
    ("ratios", "speedup"),
    [([1.5], 1.5), ([0.8, 1.2, 1.1], 1.1), ([0.99, 0.7, 0.8], 0.8)],
    ids=["fast", "noise", "slow"],
)
def test_what_looks_slow_is_timed_again(monkeypatch, ratios, speedup):
    asked = []
    monkeypatch.setattr(sampler, "time_interleaved", timings_of(ratios, asked))
    found = sampler.measure(PLAIN, SETTINGS)
    assert found.speedup == speedup
    assert len(asked) == len(ratios)
    assert all(seconds > asked[0] for seconds in asked[1:])
    assert "native" in found.ran
    assert found.wrong == ""


def test_a_call_of_seconds_is_not_repeated(monkeypatch):
    monkeypatch.setattr(sampler, "time_interleaved", timings_of([], []))
    monkeypatch.setattr(sampler, "_PATIENCE", 0.0)
    assert len(sampler.measure(PLAIN, SETTINGS).attempts) == 1


@pytest.mark.parametrize("draw", [PLAIN, *VARIANTS], ids=lambda draw: draw.label)
def test_a_wrong_answer_is_noticed_and_torchs_own_is_not_ours(draw):
    skip_what_torch_cannot(draw)
    arguments = make_arguments(draw)
    right = make_call(draw, make_layer(draw, nn), arguments)()
    off = right + right.abs().max()
    assert sampler._wrong(draw, {OURS: right, BASELINE: right}, arguments) == ""
    assert sampler._wrong(draw, {OURS: right, BASELINE: off}, arguments) == ""
    assert "y is off by" in sampler._wrong(draw, {OURS: off, BASELINE: right}, arguments)


def test_the_slowest_come_first_with_the_shares_at_the_end():
    drawn = islice(draws(1), 50)
    samples = [Sample(draw, [(1 + n / 10, 1.0)], "native") for n, draw in enumerate(drawn)]
    samples += [Sample(PLAIN, [(0.95, 1.0)], "native"), Sample(VARIANTS[0], [(0.5, 1.0)], "x")]
    samples[0].wrong = "y is off"
    lines = sampler.render(samples, 1, Paint(False))
    assert VARIANTS[0].label in lines[2]
    assert "0.500x<" in lines[2]
    assert PLAIN.label in lines[3]
    assert sum("native" in line for line in lines) < 25
    text = "\n".join(lines)
    assert f"WRONG: {samples[0].draw.label}: y is off" in text
    assert "3.8% below 0.97x, 1.9% below 0.9x" in text
    assert sampler.render([], 1, Paint(False)) == ["no samples"]


def test_the_command_writes_what_is_read_again(monkeypatch, tmp_path, capsys):
    refused = replace(PLAIN, H=9, dtype="bf16")
    says = "torch.nn cannot run it here: no"
    monkeypatch.setattr(sampler, "_refused", lambda draw: says if draw == refused else None)
    tiny = [PLAIN, *(draw for draw in VARIANTS if draw.dtype != "autocast")]
    monkeypatch.setattr(sampler, "draws", lambda seed: iter([refused, *tiny]))
    monkeypatch.setattr(sampler, "time_interleaved", timings_of([2.0] * 6, []))
    path = tmp_path / "new" / "sample.json"
    asked = ["--sample", "100", "--seed", "7", "--threads", "1", "--json", str(path)]
    assert main(asked) == 0
    document = json.loads(path.read_text())
    assert document["settings"]["seed"] == 7
    assert [entry["label"] for entry in document["samples"]] == [draw.label for draw in tiny]
    again = sampler.read(document)
    assert [found.draw for found in again] == tiny
    assert sampler.as_json(again) == {"samples": document["samples"]}
    assert f"{len(tiny)} samples: 2.00x in the geometric mean" in capsys.readouterr().out
    monkeypatch.setattr(sampler, "_wrong", lambda *_: "y is off")
    monkeypatch.setattr(sampler, "time_interleaved", timings_of([2.0] * 6, []))
    assert main(asked) == 1


def test_time_ends_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sampler, "measure", lambda draw, settings: Sample(draw, [(2.0, 1.0)]))
    assert sampler.run(SETTINGS, 1e-9, 0, None)
    assert "1 samples" in capsys.readouterr().out

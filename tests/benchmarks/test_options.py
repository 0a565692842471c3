"""The benchmark of the options: its peers agree, and it notices where they do not."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import options, variants
from benchmarks.loops import LOOPS
from benchmarks.peers import Settings

CPU = torch.device("cpu")
SETTINGS = Settings(device=CPU, threads=1, quick=True, seconds=0.01)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_resets(cell):
    name, calls = options._resets(cell, 5, 3, 4, CPU)
    peer = f"torch.nn.{cell}Cell in a loop"
    row = options.timed(name, calls, SETTINGS, {peer: 1e9})
    assert list(row.timings) == [options.OURS, peer]
    assert row.speedup[peer] > 0
    assert not row.met
    assert "NOT MET" in "\n".join(options._lines(row, options.Paint(False)))


@pytest.mark.parametrize("grad", [False, True])
def test_steps(grad):
    with torch.set_grad_enabled(grad):
        row = options.timed(*options._step(2, 3, grad, CPU), SETTINGS)
    assert set(row.speedup) == {"torch.nn.LSTMCell", "torch.nn.LSTM with T=1"}
    assert all(speedup > 0 for speedup in row.speedup.values())
    assert not row.bar


def test_recomputation_keeps_less():
    row = options._recompute(6, 2, 5, SETTINGS)
    kept = row.kept_bytes
    assert 0 < kept[options.OURS] < kept["without recompute"]
    assert "MiB kept" in "\n".join(options._lines(row, options.Paint(False)))


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_the_variants(name):
    row = variants.training(name, 3, 2, 4, 8, SETTINGS)
    assert set(row.speedup) == {variants.PLAIN, variants.EAGER} == set(row.bar) | {variants.PLAIN}
    assert set(variants.inference(name, 3, 2, 4, 8, SETTINGS).speedup) == {variants.PLAIN}
    assert all(speedup > 0 for speedup in row.speedup.values())


def test_a_wrong_answer_is_noticed():
    calls = {options.OURS: lambda: torch.ones(2), "peer": lambda: torch.tensor([1.0, 1.1])}
    with pytest.raises(AssertionError, match="peer: "):
        options.timed("wrong", calls, SETTINGS)


def test_run_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    row = options.timed(*options._step(1, 2, False, CPU), SETTINGS)
    missed = options.Row("slow", row.timings, row.speedup, {"torch.nn.LSTMCell": 1e9})
    path = tmp_path / "options.json"
    monkeypatch.setattr(options, "measure", lambda settings: iter([row, missed]))
    assert not options.run(SETTINGS, path)
    document = json.loads(path.read_text())
    assert [r["met"] for r in document["rows"]] == [None, False]
    assert document["rows"][0]["timings"][options.OURS]["median_s"] > 0
    assert {"machine", "versions", "commit", "created", "settings"} < document.keys()
    assert "LSTM step, inference" in capsys.readouterr().out

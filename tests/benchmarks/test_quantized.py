"""The benchmark of int8 weights runs, and tells what is wrong with whom."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import quantized
from benchmarks.cases import Case, Shape
from benchmarks.peers import Settings
from benchmarks.workload import build

SETTINGS = Settings(torch.device("cpu"), threads=1, quick=True, seconds=0.01)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_row(cell, monkeypatch, tmp_path, capsys):
    work = build(Case(cell, "inference", Shape(1, 1, 32, 32)), SETTINGS.device)
    row = quantized._row("small", work, SETTINGS)
    assert row.bytes[quantized.INT8] < 0.4 * row.bytes[quantized.FLOAT]
    assert row.errors[quantized.FLOAT] < 1e-5 < row.errors[quantized.INT8] < 0.02
    assert row.speedup("nobody") is None
    monkeypatch.setattr(quantized, "measure", lambda settings: iter([row]))
    quantized.run(SETTINGS, tmp_path / "result.json")
    shown = capsys.readouterr().out
    assert "int8 over torch.nn: " in shown
    assert f"{row.bytes[quantized.INT8]} bytes" in shown
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["rows"][0]["timings"][quantized.INT8]["median_s"] > 0

"""No figure matters here: what is timed is timed for no longer than it takes."""

import gc
from types import SimpleNamespace

import pytest

from benchmarks import timing


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch):
    monkeypatch.setattr(timing, "_SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(timing, "_SETTLE_LIMIT", 2e-3)
    # A collection takes longer than all else, and there is one for every point.
    quick = SimpleNamespace(collect=lambda: 0, disable=gc.disable, enable=gc.enable)
    monkeypatch.setattr(timing, "gc", quick)

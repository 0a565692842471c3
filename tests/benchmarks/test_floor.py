"""The floor benchmark without a GPU: what it asks of the ops, and what it makes of the answers."""

from types import SimpleNamespace

import torch

from benchmarks import floor


class Clock:
    """Runs what it times, and has it last 1, 2, 3, ... milliseconds."""

    def __init__(self):
        self.calls = 0

    def __call__(self, call):
        call()
        self.calls += 1
        return self.calls * 1e-3


def fake_ops(asked):
    return SimpleNamespace(
        persistent_plan=lambda like, cell, T, N, H, P, backward: (
            "step by step: too large" if H > 9 else f"persistent, H = {H}"
        ),
        persistent_floor=lambda like, *rest: asked.append(rest),
    )


def test_rows_are_microseconds_of_a_step():
    asked = []
    cases = [("lstm", 5, 2), ("lstm", 10, 2), ("gru", 3, 1)]
    found = list(floor.rows(torch.device("cpu"), Clock(), fake_ops(asked), cases, T=4))
    assert asked == [
        (cell, 4, N, H, *parts)
        for cell, H, N in (cases[0], cases[2])
        for parts in ((True, False), (False, True), (True, True))
    ]
    first, second = found
    assert first[:6] == ("lstm", 5, 2, 250.0, 500.0, 750.0)
    assert first.scan == 0.0  # the product with the inputs lasted longer
    assert second.plan == "persistent, H = 3"
    lines = floor.text(found).splitlines()
    assert lines[0].split()[:4] == ["cell", "H", "N", "exchange"]
    assert lines[2].endswith("persistent, H = 3")
    assert first._replace(scan=500.0).over_floor == 2.0


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert floor.main() == 1
    assert "there is no CUDA device" in capsys.readouterr().out

"""The native backend's ways on a GPU: their names, which there are, and what the ops are told."""

from types import SimpleNamespace

import pytest
import torch

from fused_rnn.backends import Problem, native, use_way, way_named, way_of
from fused_rnn.backends.native import persistent, planned
from tests.operands import SMALL, make_inputs

PROBLEM = Problem(
    "lstm", torch.device("cpu"), torch.float32, 9, 4, 3, 5, 0, False, True, None, width=3
)


class Ops:
    """Ops that answer from a table, and keep what they were told."""

    def __init__(self):
        self.told, self.log = [0] * 6, []
        self.plans = {
            (False, 1): [1, 0, 2, 4],
            (False, 2): [5, 1, 1, 0],
            (True, 1): [4, 8],
            (True, 2): [],
        }

    def persistent_ways(self, like, cell, T, N, H, P, backward, training, directions):
        assert (cell, T, N, H, P) == ("lstm", 9, 4, 5, 0)
        return self.plans[backward, directions]

    def persistent_way(self, way):
        before, self.told = self.told, list(way)
        self.log.append(self.told)
        return before

    def persistent_plan(self, like, cell, T, N, H, P, backward, training=False, directions=1):
        return "persistent, told " + " ".join(map(str, self.told))


@pytest.fixture
def ops(monkeypatch):
    """Stand-ins for the ops."""
    made = Ops()
    monkeypatch.setattr(persistent, "ops", lambda: made)
    persistent._has_plan.cache_clear()
    yield made
    persistent._has_plan.cache_clear()


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("stepwise", (1, 0, 0), (1, 0, 0)),
        ("persistent", (2, 0, 0), (2, 0, 0)),
        ("persistent 1/0", (3, 1, 0), (2, 0, 0)),
        ("persistent 12/8 4/16", (3, 12, 8), (3, 4, 16)),
    ],
)
def test_names(name, forward, backward):
    assert planned.parse(name) == (forward, backward)
    way = way_named(f"native {name}")
    assert (way.name, way.way_name, way_of(way)) == ("native", name, f"native {name}")
    assert way_of(native) == "native"


@pytest.mark.parametrize("name", ["", "fast", "persistent 1", "persistent 1/2/3", "stepwise 1/0"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"knows no way '{name}'"):
        native.way(name)


def test_the_ways_of_an_inference(ops):
    found = planned.names(PROBLEM._replace(training=False), {})
    assert found == ["stepwise", "persistent", "persistent 1/0", "persistent 2/4"]
    assert planned.names(PROBLEM._replace(training=False), dict.fromkeys(found, 1.0)) == []


def test_the_ways_of_a_training_step(ops):
    found = planned.names(PROBLEM, {})
    assert found == [
        "stepwise", "persistent", "persistent 1/0", "persistent 2/4", "persistent 1/0 4/8",
    ]  # fmt: skip
    seconds = dict.fromkeys(found, 2.0)
    assert planned.names(PROBLEM, seconds) == []  # those of the first plan are the fastest
    seconds["persistent 2/4"] = 1.0
    (last,) = planned.names(PROBLEM, seconds)
    assert last == "persistent 2/4 4/8"
    assert planned.names(PROBLEM, seconds | {last: 0.5}) == []


def test_two_directions_at_once_or_one_after_the_other(ops):
    found = planned.names(PROBLEM._replace(training=False, directions=2), {})
    assert found == [
        "stepwise", "persistent", "persistent 5/1", "persistent 1/0", "persistent 2/4",
    ]  # fmt: skip


def test_without_a_plan_there_is_one_way(ops):
    ops.plans = {key: [] for key in ops.plans}
    assert planned.names(PROBLEM, {}) == ["stepwise"]
    assert planned.names(PROBLEM._replace(training=False), {}) == ["stepwise"]
    ops.plans[True, 1] = [4, 8]
    assert planned.names(PROBLEM, {}) == ["stepwise", "persistent"]


def test_on_a_cpu_there_are_none(ops):
    assert native.ways(PROBLEM, {}) == []
    on_gpu = PROBLEM._replace(device=torch.device("cuda"))
    assert native.ways(on_gpu._replace(T=9), {"stepwise": 1.0}) == []


def test_the_ops_are_told_before_and_as_before_afterwards(ops):
    inputs, _ = make_inputs(("lstm", False), SMALL, torch.float32, "cpu")
    seen = []

    def see(*args):
        seen.append(ops.told)
        return (inputs.x,) * 5

    backend = SimpleNamespace(
        name="native", forward=see, backward=see, scan_states=see, forward_both=see,
        backward_both=see,
    )  # fmt: skip
    way = planned.Way(backend, "persistent 1/0 4/8")
    way.forward("lstm", inputs, None, False, True)
    way.backward("lstm", inputs, None, False)
    way.scan_states("lstm", inputs, None, False, False)
    way.forward_both("lstm", (inputs, inputs), None, True)
    way.backward_both("lstm", (inputs, inputs), None)
    assert seen == [[3, 1, 0, 3, 4, 8]] * 5
    assert ops.told == [0] * 6
    backend.forward = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        way.forward("lstm", inputs, None, False, True)
    assert ops.told == [0] * 6


def test_plans_are_asked_for_by_the_way(ops):
    assert not native.way("stepwise").takes_both(PROBLEM)
    assert native.way("persistent 1/0").takes_both(PROBLEM)
    assert ops.log[0] == [3, 1, 0, 2, 0, 0]
    assert native.way("persistent").plan(PROBLEM) == native.simd_level()  # a CPU has none


def test_by_name(monkeypatch):
    with use_way("native stepwise"):
        from fused_rnn.backends import select

        backend = select(PROBLEM).backend
    assert backend.way_name == "stepwise"
    assert backend.supports(PROBLEM) is None

"""Plans chosen by name, on the host bench: the one that is told runs, and computes the same."""

import math

import pytest
import torch

from fused_rnn.backends import reference
from fused_rnn.backends.native import persistent, planned
from tests.backends.native.cuda.test_stepwise import kernel as stepwise_kernel  # noqa: F401 (a fixture)
from tests.conftest import TOLERANCES
from tests.native import plans
from tests.native.simt.library import Machine, stepwise
from tests.operands import (
    SHAPES,
    as_double,
    assert_near,
    cotangents,
    differentiate,
    make_inputs,
    needing,
    present,
)

DEVICE = 90, 4, 227 * 1024, [4, 2, 1, 0]
SHAPE = SHAPES["odd"]._replace(T=3, N=5, H=19)
THREADS = 256  # of a block of a persistent kernel, and of no other launch here
SCAN = SHAPE.T, SHAPE.N, SHAPE.H, 0


@pytest.fixture
def ops(stepwise_kernel, monkeypatch):  # noqa: F811
    """The bench's ops, on a device that has several plans, in place of the GPU's."""
    bench = torch.ops.fused_rnn_bench
    bench.make_device(*DEVICE)
    monkeypatch.setattr(persistent, "ops", lambda: bench)
    monkeypatch.delenv("FUSED_RNN_PERSISTENT", raising=False)
    yield bench
    assert bench.persistent_way([0] * 6) == [0] * 6  # nothing is left told


def found_plans(ops, backward):
    flat = ops.persistent_ways(torch.empty(0), "lstm", *SCAN, backward, True, 1)
    return list(zip(flat[::2], flat[1::2], strict=True))


def words(ops, backward, told):
    before = ops.persistent_way(told)
    said = ops.persistent_plan(torch.empty(0), "lstm", *SCAN, backward, True)
    ops.persistent_way(before)
    return said


@pytest.mark.parametrize("backward", [False, True])
def test_the_first_is_the_models(ops, backward):
    found = found_plans(ops, backward)
    assert len(found) == len(set(found)) > 2
    problem = plans.Problem("lstm", "float32", SHAPE.H, SHAPE.N, SHAPE.T, backward)
    *facts, clusters = DEVICE
    best = plans.plan(problem, plans.Device(*facts, True, tuple(clusters)))
    assert found[0] == (best.shape, best.cluster)


@pytest.mark.parametrize("backward", [False, True])
def test_each_has_words_of_its_own(ops, backward):
    told = {plan: [3, *plan] * 2 for plan in found_plans(ops, backward)}
    said = {plan: words(ops, backward, way) for plan, way in told.items()}
    assert all(text.startswith("persistent, ") for text in said.values())
    assert len(set(said.values())) == len(said)
    by_model = words(ops, backward, [2, 0, 0] * 2)
    assert by_model == said[found_plans(ops, backward)[0]]
    assert words(ops, backward, [1, 0, 0] * 2) == "step by step: it was chosen to be"
    assert "FUSED_RNN_PERSISTENT=1 would allow" in words(ops, backward, [0] * 6)
    gone = words(ops, backward, [3, 12, 8] * 2)
    assert gone == (
        "step by step: the plan that was chosen, of shape 12 and clusters of 8, does not fit here"
    )


def test_the_passes_are_told_apart(ops):
    told = [1, 0, 0, 2, 0, 0]
    assert words(ops, False, told).startswith("step by step")
    assert words(ops, True, told).startswith("persistent")


def test_what_no_plan_takes(ops):
    assert ops.persistent_ways(torch.empty(0), "lstm", 1, *SCAN[1:], False, True, 1) == []
    with pytest.raises(RuntimeError, match="way should have 6 numbers, got 5"):
        ops.persistent_way([0] * 5)
    with pytest.raises(RuntimeError, match="how should be from 0 to 3, got 4"):
        ops.persistent_way([1, 0, 0, 4, 0, 0])


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_the_plan_that_is_told_runs_and_is_right(stepwise_kernel, ops, which):  # noqa: F811
    forward, backward = (found_plans(ops, back)[which] for back in (False, True))
    name = "persistent {}/{} {}/{}".format(*forward, *backward)
    way = planned.Way(stepwise_kernel, name)
    inputs, batch_sizes = make_inputs(("lstm", False), SHAPE, torch.float32)
    gradients = cotangents(reference.forward("lstm", inputs, None, False, False)[:3])
    wide = [g if g is None else g.double() for g in gradients]
    oracle = needing(as_double(inputs))
    expected = differentiate(reference, "lstm", oracle, batch_sizes, False, wide)
    machine = Machine(stepwise())
    machine.last_launch()
    found = differentiate(way, "lstm", needing(inputs), batch_sizes, False, gradients)
    assert math.prod(machine.last_launch().block) == THREADS
    for i, tolerance in enumerate(TOLERANCES[torch.float32]):
        for actual, wanted in zip(present(found[i]), present(expected[i]), strict=True):
            assert_near(actual, wanted, tolerance)

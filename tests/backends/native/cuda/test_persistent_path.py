"""The persistent path as a whole without a GPU: plan, scratch, lengths, kernels on the host bench.

The device is made up so that the plan goes one way or another; what it says is held against that.
"""

import math
import re
from typing import NamedTuple

import pytest
import torch

from fused_rnn.backends import reference
from tests.backends.native.cuda.test_stepwise import kernel as stepwise_kernel  # noqa: F401 (a fixture)
from tests.backends.test_kernels import (  # noqa: F401 (the same tests, with the fixtures below)
    test_a_sequence_with_nan_stays_alone,
    test_every_cell_state,
    test_inference_computes_what_training_does,
    test_kernel_is_the_reference,
    test_operands_stand_anywhere_in_their_storage,
    test_two_runs_are_bit_equal,
)
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
    ragged,
)

KB = 1024
THREADS = 256  # of a block of a persistent kernel, and of no other launch here
STEP_BY_STEP = "step by step: "


class Bench(NamedTuple):
    """A device that leaves the plan one way, the words for it, and what is scanned there."""

    device: tuple[int, int, int, list[int]]
    forward: str
    backward: str
    H: int


BENCHES = {
    "one-block": Bench((80, 4, 227 * KB, [4, 0, 0, 0]), "that has all", "that has all", 17),
    "memory": Bench((80, 16, 20 * KB, [0, 0, 0, 0]), "through flags", "through flags", 19),
    "cluster": Bench((90, 1, 227 * KB, [0, 0, 1, 0]), "one cluster", "one cluster", 19),
    "clusters": Bench((90, 1, 36 * KB, [0, 2, 0, 0]), "one cluster", "that split the depth", 40),
}

MANY = 70  # sequences: several groups, or several chunks of a group, or both

in_one_block = pytest.mark.parametrize("bench", [BENCHES["one-block"]], ids=["one-block"])


@pytest.fixture
def device():
    """The bench takes CPU tensors."""
    return "cpu"


@pytest.fixture(params=[t for t in TOLERANCES if t != torch.float64], ids=str)
def dtype(request):
    """Each element type that persistent kernels take."""
    return request.param


@pytest.fixture(params=["lstm", "gru", "rnn_tanh", "rnn_relu"])
def variant(request):
    """Each cell, without a projection."""
    return request.param, False


@pytest.fixture(params=BENCHES.values(), ids=BENCHES.keys())
def bench(request):
    """Each made-up device."""
    return request.param


@pytest.fixture(params=["dense", "ragged"])
def shape(request, bench, variant):
    """Few sequences of a few steps, with no size a multiple of anything."""
    # One block could have as many units of a cell of one gate.
    H = 2 * bench.H + 1 if variant[0].startswith("rnn") and bench.H == 19 else bench.H
    if request.param == "ragged":
        return ragged((4, 1, 3, 3, 1, 2, 2), 3, H)
    return SHAPES["odd"]._replace(T=3, N=9, H=H)


@pytest.fixture
def ops(stepwise_kernel):  # noqa: F811
    """The bench's ops."""
    return torch.ops.fused_rnn_bench


@pytest.fixture
def kernel(stepwise_kernel, ops, bench, monkeypatch):  # noqa: F811
    """The native backend on the made-up device."""
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")
    ops.make_device(*bench.device)
    return stepwise_kernel


def words(ops, cell, shape, backward, dtype=torch.float32, training=False):
    """Return the plan of a scan."""
    like = torch.empty(0, dtype=dtype)
    return ops.persistent_plan(like, cell, shape.T, shape.N, shape.H, 0, backward, training)


@pytest.mark.usefixtures("kernel")
def test_the_plan_is_the_one_meant(ops, bench, shape, variant, dtype):
    cell, _ = variant
    assert bench.forward in words(ops, cell, shape, False, dtype)
    assert bench.backward in words(ops, cell, shape, True, dtype)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.usefixtures("kernel")
def test_the_kernel_of_a_plan(ops, bench, shape, variant, dtype, backward):
    cell, _ = variant
    problem = plans.Problem(cell, str(dtype).removeprefix("torch."), shape.H, shape.N, shape.T)
    *facts, clusters = bench.device
    wanted = plans.plan(
        problem._replace(backward=backward), plans.Device(*facts, True, tuple(clusters))
    )
    like = torch.empty(0, dtype=dtype)
    found = ops.persistent_kernel(like, cell, shape.T, shape.N, shape.H, backward)
    assert found == [wanted.meeting, wanted.shape]
    assert ops.persistent_kernel(like, cell, 1, shape.N, shape.H, backward) == []
    assert ops.device_facts(0) == [*facts, 1, *clusters]


def test_all_steps_are_one_launch(kernel, ops, shape, variant):
    cell, _ = variant
    machine = Machine(stepwise())
    inputs, batch_sizes = make_inputs(variant, shape, torch.float32)
    groups, blocks = re.search(
        r"(\d+) groups? of (\d+) block", words(ops, cell, shape, False)
    ).groups()
    machine.last_launch()
    kernel.forward(cell, inputs, batch_sizes, False, False)
    launch = machine.last_launch()
    assert math.prod(launch.grid) == int(groups) * int(blocks)
    assert math.prod(launch.block) == THREADS


@pytest.mark.parametrize("persistent", ["forward", "backward"])
def test_either_pass_goes_with_the_stepwise_other(
    kernel, shape, variant, dtype, reverse, persistent, monkeypatch
):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, dtype)
    oracle = needing(as_double(inputs))
    gradients = cotangents(reference.forward(cell, oracle, batch_sizes, reverse, False)[:3])
    gradients = [g if g is None else g.to(dtype) for g in gradients]
    wide = [g if g is None else g.double() for g in gradients]
    _, expected = differentiate(reference, cell, oracle, batch_sizes, reverse, wide)

    def switch(on):
        monkeypatch.setenv("FUSED_RNN_PERSISTENT", str(int(on)))

    switch(persistent == "forward")
    y, _, _, saved = kernel.forward(cell, inputs, batch_sizes, reverse, True)
    switch(persistent == "backward")
    needs = tuple(t is not None for t in inputs)
    found = kernel.backward(cell, inputs, batch_sizes, reverse, y, saved, *gradients, needs)
    for actual, wanted in zip(present(found), present(expected), strict=True):
        assert_near(actual, wanted, TOLERANCES[dtype].gradient)


@pytest.mark.parametrize(
    "bench", [b for b in BENCHES.values() if b is not BENCHES["clusters"]], ids=lambda b: b.forward
)
@pytest.mark.parametrize("variant", [("lstm", False), ("gru", False)], ids=["lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nan_stays_in_its_chunk(kernel, ops, bench, variant, reverse, dtype):
    cell, _ = variant
    shape = SHAPES["odd"]._replace(T=3, N=MANY, H=bench.H)
    for backward in (False, True):
        assert re.search(r"[2-9] chunks", words(ops, cell, shape, backward, dtype, training=True))
    clean, _ = make_inputs(variant, shape, dtype)
    spoilt = clean._replace(x=clean.x.clone())
    spoilt.x[:, 16:] = torch.nan  # the first sequence of the second chunk, or before it
    results = []
    for inputs in (clean, spoilt):
        y, _, _, saved = kernel.forward(cell, inputs, None, reverse, True)
        needs = tuple(t is not None for t in inputs)
        dx, *_ = kernel.backward(
            cell, inputs, None, reverse, y, saved, torch.ones_like(y), None, None, needs
        )
        results.append([y[:, :16], dx[:, :16]])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@in_one_block
def test_it_goes_step_by_step_where_the_device_has_no_room(kernel, variant, shape, reverse):
    cell, _ = variant
    machine = Machine(stepwise())
    inputs, batch_sizes = make_inputs(variant, shape, torch.float32)
    gradients = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])

    def run():
        return differentiate(kernel, cell, needing(inputs), batch_sizes, reverse, gradients)

    expected, wanted = run()
    with machine.refusal():
        found, actual = run()
        inference = kernel.forward(cell, inputs, batch_sizes, reverse, False)
    tolerance = TOLERANCES[torch.float32]
    for one, other in zip(present(found[:3]), present(expected[:3]), strict=True):
        assert_near(one, other.double(), tolerance.forward)
    for one, other in zip(present(inference[:3]), present(expected[:3]), strict=True):
        assert_near(one, other.double(), tolerance.forward)
    for one, other in zip(present(actual), present(wanted), strict=True):
        assert_near(one, other.double(), tolerance.gradient)


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_a_long_inference_goes_step_by_step(ops):
    shape = SHAPES["odd"]._replace(T=2**21, N=8)
    said = words(ops, "lstm", shape, False)
    assert said.startswith(STEP_BY_STEP + "the input products of all steps at once")
    assert words(ops, "lstm", shape, False, training=True).startswith("persistent")
    assert words(ops, "lstm", shape, True).startswith("persistent")


@in_one_block
def test_more_lengths_than_a_launch_takes(kernel, reverse):
    lengths = [1 + n % 3 for n in range(600)]
    inputs, batch_sizes = make_inputs(("gru", False), ragged(lengths, 2, 3), torch.float32)
    expected = reference.forward("gru", as_double(inputs), batch_sizes, reverse, False)
    found = kernel.forward("gru", inputs, batch_sizes, reverse, False)
    for actual, wanted in zip(present(found[:3]), present(expected[:3]), strict=True):
        assert_near(actual, wanted, TOLERANCES[torch.float32].forward)


@in_one_block
@pytest.mark.parametrize("value", ["", "0", "yes", None])
def test_it_has_to_be_asked_for(kernel, ops, value, monkeypatch):
    if value is None:
        monkeypatch.delenv("FUSED_RNN_PERSISTENT")
    else:
        monkeypatch.setenv("FUSED_RNN_PERSISTENT", value)
    said = words(ops, "lstm", SHAPES["odd"], False)
    assert said.startswith(STEP_BY_STEP + "FUSED_RNN_PERSISTENT=1 would allow")
    like, sizes = torch.empty(0), SHAPES["odd"]
    scan = "lstm", sizes.T, sizes.N, sizes.H, 0, False, True, 1
    assert ops.persistent_plan(like, *scan, True).startswith("persistent")


@in_one_block
def test_what_has_no_kernel_goes_step_by_step(kernel, ops, reverse):
    for dtype, projected in ((torch.float64, False), (torch.float32, True)):
        variant = ("lstm", projected)
        inputs, _ = make_inputs(variant, SHAPES["odd"], dtype)
        size = SHAPES["odd"].H // 2 if projected else 0
        said = ops.persistent_plan(inputs.x, "lstm", 5, 3, 17, size, False)
        assert said.startswith(STEP_BY_STEP + "no persistent kernel for")
        expected = reference.forward("lstm", as_double(inputs), None, reverse, False)
        found = kernel.forward("lstm", inputs, None, reverse, False)
        assert_near(found[0], expected[0], TOLERANCES[dtype].forward)


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_tf32_is_what_the_caller_says(ops):
    found = []
    for allowed in (True, False):
        ops.persistent_tf32(allowed)
        many = SHAPES["odd"]._replace(N=100)  # of one sequence alone, exact products keep some too
        found.append(words(ops, "lstm", many, False))
    assert "in registers 0 KB" not in found[0]
    assert "in registers 0 KB" in found[1]
    assert ops.persistent_tf32(False) is False


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_an_unknown_cell_is_refused(ops):
    with pytest.raises(RuntimeError, match=r"cell should be lstm, .* got peephole"):
        words(ops, "peephole", SHAPES["odd"], False)


@pytest.mark.parametrize("products", [False, True], ids=["idle", "products"])
@pytest.mark.usefixtures("kernel")
def test_the_floor_goes_through_every_step(ops, bench, products):
    like = torch.empty(0, dtype=torch.float16)
    T, *_ = sizes = (3, 9 if bench is BENCHES["clusters"] else MANY, bench.H)
    said = ops.persistent_plan(like, "lstm", *sizes, 0, False)
    groups, blocks, chunks = (
        int(n) for n in re.search(r"(\d+) group.* of (\d+) block.* (\d+) chunk", said).groups()
    )
    scratch = ops.persistent_floor(like, "lstm", *sizes, True, products)
    line = 32  # flags of a chunk: few blocks have one copy, in a line of its own
    assert blocks <= 16
    if bench is BENCHES["memory"]:
        flags = scratch.view(torch.int32)[-groups * chunks * line :].view(-1, line)
        assert (flags[:, :blocks] == T + 1).all()
        assert not flags[:, blocks:].any()
    else:
        assert scratch.numel() == 0
    without = ops.persistent_floor(like, "lstm", *sizes, False, products)
    flags = without.view(torch.int32)[-groups * chunks * line :] if without.numel() else without
    assert not flags.any()


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_no_floor_without_a_plan(ops):
    with pytest.raises(RuntimeError, match="there is no floor: there is no sequence"):
        ops.persistent_floor(torch.empty(0), "lstm", 5, 0, 3, True, True)

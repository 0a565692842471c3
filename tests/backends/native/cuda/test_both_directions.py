"""Both directions of a layer in one launch, without a GPU: the shipped path on the host bench."""

import functools
import math
import re

import pytest
import torch
from torch.library import opcheck

from fused_rnn.backends import Inputs, Problem, reference
from fused_rnn.backends.native import fakes as native_fakes
from fused_rnn.backends.native import persistent
from fused_rnn.scans import autograd
from tests.backends.native.cuda.test_persistent_path import (  # noqa: F401 (some are fixtures)
    KB,
    STEP_BY_STEP,
    Bench,
    dtype,
    shape,
    variant,
)
from tests.backends.native.cuda.test_stepwise import kernel as stepwise_kernel  # noqa: F401 (a fixture)
from tests.conftest import TOLERANCES
from tests.native.simt.library import Machine, stepwise
from tests.operands import (
    OF_OPERANDS,
    SHAPES,
    SMALL,
    as_double,
    assert_near,
    cotangents,
    make_inputs,
    needing,
    present,
)

# As in test_persistent_path, with room for both.
BENCHES = {
    "one-block": Bench((80, 8, 227 * KB, [8, 0, 0, 0]), "that has all", "that has all", 17),
    "memory": Bench((80, 32, 20 * KB, [0, 0, 0, 0]), "through flags", "through flags", 19),
    "cluster": Bench((90, 2, 227 * KB, [0, 0, 2, 0]), "one cluster", "one cluster", 19),
    # Where forward has a plan too, it is one of the others.
    "clusters": Bench((90, 2, 36 * KB, [0, 4, 0, 0]), "", "that split the depth", 40),
}
in_one_block = pytest.mark.parametrize("bench", [BENCHES["one-block"]], ids=["one-block"])
OPERANDS = [*Inputs._fields[:7], *(f"{name}_reverse" for name in Inputs._fields[1:7])]
RESULTS = ("y", "saved", "dy", "dh_n", "dc_n")


@pytest.fixture(params=BENCHES.values(), ids=BENCHES.keys())
def bench(request):
    """Each made-up device."""
    return request.param


@pytest.fixture
def ops(stepwise_kernel):  # noqa: F811
    """The bench's ops."""
    return torch.ops.fused_rnn_bench


@pytest.fixture
def kernel(stepwise_kernel, ops, bench, monkeypatch):  # noqa: F811
    """The native backend on the made-up device."""
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")
    for table, way in (
        (stepwise_kernel._FORWARD, "forward"),
        (stepwise_kernel._BACKWARD, "backward"),
    ):
        op = getattr(ops, f"bidirectional_{way}").default
        monkeypatch.setitem(table, stepwise_kernel._BOTH, op)
    ops.make_device(*bench.device)
    return stepwise_kernel


def draw(variant, shape, dtype=torch.float32):  # noqa: F811
    """Return the operands of both directions, and the batch sizes."""
    inputs, batch_sizes = make_inputs(variant, shape, dtype)
    return (inputs, make_inputs(variant, shape, dtype)[0]._replace(x=inputs.x)), batch_sizes


def both_needing(inputs):
    """Return copies that require gradients, with one x."""
    forward, reverse = map(needing, inputs)
    return forward, reverse._replace(x=forward.x)


def leaves(inputs):
    """Return the tensors of both directions, x once."""
    return present([*inputs[0], *inputs[1][1:]])


def scan(backend, cell, inputs, batch_sizes):
    """Return the results of both directions; of the reference, of two scans."""
    if backend is reference:
        results = [autograd.scan(backend, cell, inputs[k], batch_sizes, k == 1) for k in (0, 1)]
    else:
        results = autograd.scan_both(backend, cell, inputs, batch_sizes)
    return present([*results[0], *results[1]])


def differentiate(backend, cell, inputs, batch_sizes, gradients):
    """Return the results, and the gradients of all operands."""
    results = scan(backend, cell, inputs, batch_sizes)
    gradients = [g.to(r) for g, r in zip(gradients, results, strict=True)]
    return results, torch.autograd.grad(results, leaves(inputs), gradients)


def expectation(cell, inputs, batch_sizes):
    """Return gradients to feed back, and what the reference makes of them in float64."""
    wide = both_needing([as_double(of) for of in inputs])
    dtype = inputs[0].x.dtype  # noqa: F811
    gradients = cotangents(scan(reference, cell, wide, batch_sizes))
    gradients = [g.to(dtype).double() for g in gradients]
    return gradients, differentiate(reference, cell, wide, batch_sizes, gradients)


def assert_all_near(found, expected, tolerance):
    """Assert it of results and of gradients."""
    for actual, wanted, bound in zip(found, expected, tolerance, strict=True):
        for a, w in zip(actual, wanted, strict=True):
            assert_near(a, w, bound)


def words(ops, cell, shape, backward, dtype=torch.float32, directions=2):  # noqa: F811
    """Return the plan of both directions."""
    like = torch.empty(0, dtype=dtype)
    sizes = shape.T, shape.N, shape.H, 0
    return ops.persistent_plan(like, cell, *sizes, backward, True, directions)


def blocks_of(said):
    """Return how many blocks a direction has."""
    return math.prod(map(int, re.search(r"(\d+) groups? of (\d+) block", said).groups()))


@pytest.mark.usefixtures("kernel")
def test_the_plan_is_the_one_meant(ops, bench, shape, variant, dtype):  # noqa: F811
    cell, _ = variant
    for meant, backward in ((bench.forward, False), (bench.backward, True)):
        said = words(ops, cell, shape, backward, dtype)
        assert meant in said
        if meant or not said.startswith(STEP_BY_STEP):
            assert said.startswith("persistent, both directions in one launch, each ")


@pytest.mark.usefixtures("kernel", "no_known_plans")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_the_backend_asks_for_the_plans_there_are(ops, shape, variant, training, monkeypatch):  # noqa: F811
    cell, _ = variant
    monkeypatch.setattr(torch.ops.fused_rnn, "persistent_plan", ops.persistent_plan, raising=False)
    sizes = shape.T, shape.N, 3, shape.H, 0
    problem = Problem(cell, torch.device("cpu"), torch.float32, *sizes, False, training, None)
    like, passes = torch.empty(0), (False, True)[: 1 + training]
    plans = [
        ops.persistent_plan(like, cell, shape.T, shape.N, shape.H, 0, backward, training, 2)
        for backward in passes
    ]
    assert persistent.takes_both(problem) == any(p.startswith("persistent") for p in plans)
    said = persistent.words(problem, True)
    for plan in plans:
        assert plan in said or not plan.startswith("persistent")


@pytest.mark.usefixtures("no_known_plans")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_plan_for_backward_alone_is_one_in_training(training, monkeypatch):
    def plan(like, cell, T, N, H, P, backward, of_training, directions):
        assert directions == 2
        return "persistent" if backward else STEP_BY_STEP

    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")
    monkeypatch.setattr(torch.ops.fused_rnn, "persistent_plan", plan, raising=False)
    problem = Problem("gru", torch.device("cpu"), torch.float32, *range(5, 10), False, training, "")
    assert persistent.takes_both(problem) == training


def test_it_is_the_reference(kernel, shape, variant, dtype):  # noqa: F811
    cell, _ = variant
    inputs, batch_sizes = draw(variant, shape, dtype)
    gradients, expected = expectation(cell, inputs, batch_sizes)
    found = differentiate(kernel, cell, both_needing(inputs), batch_sizes, gradients)
    assert all(t.dtype == dtype and t.is_contiguous() for t in (*found[0], *found[1]))
    assert_all_near(found, expected, TOLERANCES[dtype])
    inference = scan(kernel, cell, inputs, batch_sizes)
    assert_all_near([inference], expected[:1], TOLERANCES[dtype][:1])
    again = differentiate(kernel, cell, both_needing(inputs), batch_sizes, gradients)
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_each_pass_is_one_launch(kernel, ops, shape, variant):  # noqa: F811
    cell, _ = variant
    machine = Machine(stepwise())
    inputs, batch_sizes = draw(variant, shape)
    results = scan(kernel, cell, both_needing(inputs), batch_sizes)
    forward = machine.last_launch()
    torch.autograd.backward([results[0].sum() + results[-1].sum()])
    for launch, backward in ((forward, False), (machine.last_launch(), True)):
        said = words(ops, cell, shape, backward)
        if not said.startswith(STEP_BY_STEP):
            assert math.prod(launch.grid) == 2 * blocks_of(said)


@pytest.mark.parametrize("bench", [BENCHES["cluster"]], ids=["cluster"])
def test_one_after_the_other_where_there_is_room_for_one(kernel, ops, bench, shape, variant):  # noqa: F811
    cell, _ = variant
    capability, sms, memory, _ = bench.device
    ops.make_device(capability, sms // 2, memory, [0, 0, 1, 0])
    machine = Machine(stepwise())
    inputs, batch_sizes = draw(variant, shape)
    gradients, expected = expectation(cell, inputs, batch_sizes)
    for backward in (False, True):
        assert "fit in no compiled way" in words(ops, cell, shape, backward)
    found = differentiate(kernel, cell, both_needing(inputs), batch_sizes, gradients)
    assert_all_near(found, expected, TOLERANCES[torch.float32])
    alone = words(ops, cell, shape, True, directions=1)
    assert math.prod(machine.last_launch().grid) == blocks_of(alone)


@in_one_block
@pytest.mark.parametrize("room", ["for one", "for none"])
def test_one_after_the_other_where_the_launch_is_refused(kernel, ops, shape, variant, room):  # noqa: F811
    cell, _ = variant
    machine = Machine(stepwise())
    inputs, batch_sizes = draw(variant, shape)
    gradients, expected = expectation(cell, inputs, batch_sizes)
    one, both = (
        [words(ops, cell, shape, backward, directions=n) for backward in (False, True)]
        for n in (1, 2)
    )
    assert all(s.startswith("persistent") for s in (*one, *both))
    refused = max(map(blocks_of, one)) + 1 if room == "for one" else 1
    if refused > 2 * min(map(blocks_of, both)):
        pytest.skip("a launch for one has as many blocks as one for both")
    with machine.refusal(refused):
        found = differentiate(kernel, cell, both_needing(inputs), batch_sizes, gradients)
        inference = scan(kernel, cell, inputs, batch_sizes)
    assert_all_near(found, expected, TOLERANCES[torch.float32])
    assert_all_near([inference], expected[:1], TOLERANCES[torch.float32][:1])
    threads = math.prod(machine.last_launch().block)
    assert (threads == 256) == (room == "for one")  # of a persistent kernel, and of no other here


@in_one_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sequences", [0, 3])
def test_what_has_no_plan_goes_step_by_step(kernel, variant, dtype, sequences):  # noqa: F811
    cell, _ = variant
    inputs, _ = draw(variant, SHAPES["odd"]._replace(N=sequences), dtype)
    gradients, expected = expectation(cell, inputs, None)
    found = differentiate(kernel, cell, both_needing(inputs), None, gradients)
    assert_all_near(found, expected, TOLERANCES[dtype])


@in_one_block
def test_either_direction_can_go_back_alone(kernel, shape, variant):  # noqa: F811
    cell, _ = variant
    inputs, batch_sizes = draw(variant, shape)
    given = both_needing(inputs)
    results = autograd.scan_both(kernel, cell, given, batch_sizes)
    for direction, of in enumerate(results):
        wide = needing(as_double(inputs[direction]))
        y = autograd.scan(reference, cell, wide, batch_sizes, direction == 1)[0]
        weights = cotangents([y])
        expected = torch.autograd.grad(y, present(wide), weights)
        weights = [w.to(of[0]) for w in weights]
        everything = leaves(given)
        found = torch.autograd.grad(
            of[0], everything, weights, retain_graph=True, allow_unused=True
        )
        own = {id(t) for t in present(given[direction])}
        for t, gradient in zip(everything, found, strict=True):
            assert (gradient is None) == (id(t) not in own)
        for actual, wanted in zip(present(found), expected, strict=True):
            assert_near(actual, wanted, TOLERANCES[torch.float32].gradient)


def arguments(variant, shape=SMALL, dtype=torch.float32):  # noqa: F811
    """Return what both ops take, by name."""
    (forward, reverse), batch_sizes = draw(variant, shape, dtype)
    operands = dict(zip(OPERANDS, (*forward[:7], *reverse[1:7]), strict=True))
    return {"cell": variant[0], **operands, "batch_sizes": batch_sizes}


def results_of(ops, named):
    """Return what the backward takes beside the operands, each result as its own gradient."""
    out = ops.bidirectional_forward(*named.values(), True)
    later = {}
    for (y, h_n, c_n, saved), which in ((out[:4], ""), (out[4:], "_reverse")):
        c_n = c_n if named["cell"] == "lstm" else None
        later |= {f"{n}{which}": t for n, t in zip(RESULTS, (y, saved, y, h_n, c_n), strict=True)}
    return later


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_a_gradient_alone_is_what_it_is_among_all(ops, variant):  # noqa: F811
    named = arguments(variant)
    args = (*named.values(), *results_of(ops, named).values())
    everything = ops.bidirectional_backward(*args, 2**13 - 1)
    for bit, name in enumerate(OPERANDS):
        alone = ops.bidirectional_backward(*args, 1 << bit)
        for k, (one, other) in enumerate(zip(alone, everything, strict=True)):
            expected = other if k == bit else other.new_empty(0)
            torch.testing.assert_close(one, expected, rtol=0, atol=0, msg=f"{k} for {name}")


register_once = functools.cache(native_fakes.register)  # torch 2.11 takes no second one


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_opcheck(ops, variant, shape):  # noqa: F811
    register_once("fused_rnn_bench::bidirectional")
    for named in (arguments(variant, shape), arguments(variant)):
        for training in (True, False):
            op = ops.bidirectional_forward.default
            opcheck(op, (*named.values(), training), test_utils=OF_OPERANDS)
        args = (*named.values(), *results_of(ops, named).values())
        for needs in (2**13 - 1, 0b1010101, 0):
            opcheck(ops.bidirectional_backward.default, (*args, needs), test_utils=OF_OPERANDS)


@in_one_block
@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("cell", lambda _: "peephole", "cell should be lstm, .* got peephole"),
        ("c0", lambda _: None, r"c0 should be a tensor \(N, H\) for an LSTM, got None"),
        ("h0", lambda t: t[:, 1:], r"h0 should have shape \(2, 4\), got \(2, 3\)"),
        ("c0_reverse", lambda _: None, "c0_reverse should be a tensor as in the forward .* None"),
        ("b_ih_reverse", lambda _: None, "b_ih_reverse should be a tensor as in the forward"),
        ("h0_reverse", lambda t: t[1:], r"h0_reverse should have shape \(2, 4\), got \(1, 4\)"),
        ("w_ih_reverse", lambda t: t[1:], r"w_ih_reverse should have shape \(16, 3\)"),
        ("w_hh_reverse", lambda t: t.double(), "w_hh_reverse should have the dtype of x, Float"),
        ("y_reverse", lambda t: t[1:], r"y_reverse should have shape \(3, 2, 4\), got \(2, 2, 4\)"),
        ("dc_n_reverse", lambda t: t[1:], r"dc_n_reverse should have shape \(2, 4\)"),
        ("saved_reverse", lambda t: t[1:], "saved should be what the training forward"),
        ("saved", lambda t: t.double(), "saved should be what the training forward"),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_messages_name_the_operand(ops, name, spoil, message):
    named = arguments(("lstm", False))
    later = results_of(ops, named)
    if name in named:
        named[name] = spoil(named[name])
        with pytest.raises(RuntimeError, match=message):
            ops.bidirectional_forward(*named.values(), True)
    else:
        later[name] = spoil(later[name])
    with pytest.raises(RuntimeError, match=message):
        ops.bidirectional_backward(*named.values(), *later.values(), 1)


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_a_cell_state_for_a_cell_without_one_is_an_error(ops):
    named = arguments(("gru", False))
    with pytest.raises(RuntimeError, match="c0 should be None for a cell without cell state"):
        ops.bidirectional_forward(*{**named, "c0": named["h0"]}.values(), True)


@in_one_block
@pytest.mark.usefixtures("kernel")
def test_directions_are_one_or_two(ops):
    with pytest.raises(RuntimeError, match="directions should be 1 or 2, got 3"):
        words(ops, "gru", SMALL, False, directions=3)

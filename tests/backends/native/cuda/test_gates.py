"""The fused gate kernels of CUDA, run on the host bench: what they compute, read and write."""

import pytest
import torch

from tests.conftest import TOLERANCES
from tests.native.core import assert_same_bits
from tests.native.gates import (
    EVERY_ARRAY,
    Step,
    backward,
    bench,
    draw,
    draw_incoming,
    expected_gradients,
    expected_step,
    forward,
    hidden,
    took_wide_accesses,
)
from tests.native.simt.library import FEW_THREADS, ORDERS

# (N, H)
SIZES = {
    "one-unit": (1, 1),
    "odd": (5, 7),
    "odd-several-blocks-of-rows": (300, 3),
    "odd-several-blocks-a-row": (3, 301),
    "vectors-too-few": (1, 8),
    "vectors-one-row": (1, 128),
    "vectors-several-blocks-of-rows": (260, 16),
    "vectors-several-blocks-a-row": (2, 1040),
    "vectors-not-a-power-of-two": (9, 48),
}

# Of N sequences, those before `inner` began earlier, and those before `outer` go on.
EDGES = {
    "some-begin-then-some-end": lambda N: (N // 3, N - N // 3),
    "some-end-then-some-begin": lambda N: (N - N // 3, N // 3),
    "first-step": lambda N: (0, N),
    "last-step": lambda N: (N, 0),
    "only-step": lambda N: (0, 0),
}

sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
edges_of_steps = pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES.keys())


@pytest.fixture(params=["odd", "vectors-several-blocks-of-rows"])
def few(request):
    """A size for narrow accesses and one for wide ones."""
    return SIZES[request.param]


def make(cell, dtype, size, edges=EDGES["some-begin-then-some-end"], **changes):
    return Step(cell, dtype, *size, *edges(size[0]), **changes)


def assert_stored(found, expected, kind):
    """Assert numbers within what arithmetic on numbers around 1 costs, and a rounding at the end.

    Half precision is only stored: the arithmetic is that of float32.
    """
    compute = torch.promote_types(found.dtype, torch.float32)
    tolerance = getattr(TOLERANCES[compute], kind)
    rounding = 0 if found.dtype == compute else torch.finfo(found.dtype).eps / 2
    torch.testing.assert_close(
        found.double(), expected.detach(), rtol=tolerance + rounding, atol=tolerance
    )


def assert_forward_is_expected(step):
    given = draw(step)
    found = forward(step, given)
    _, state = expected_step(step, given)
    of_h = [name for name in step.wanted if name != "c_again"]
    expected = dict.fromkeys(["h", *of_h], state.h)
    if step.cell == "lstm":
        of_c = [name for name in step.wanted if name == "c_again"]
        expected |= dict.fromkeys(["c", "c_n", *of_c], state.c)
    if step.cell == "gru" and step.training:
        a_nh = given["recurrent"].double().chunk(3, dim=1)[2]
        b_hn = given["b_hh"].double().chunk(3)[2] if "b_hh" in given else 0
        expected["a_nh"] = a_nh + b_hn
    assert found.keys() - {"gates"} == expected.keys()
    for name, wanted in expected.items():
        ends = name in ("h_n", "c_n")
        assert_stored(found[name], wanted[step.outer :] if ends else wanted, "forward")


def assert_gradients_are_expected(step, whole=False, leave_out=()):
    given = draw(step)
    incoming = draw_incoming(step, whole, leave_out)
    found = backward(step, given, forward(step, given), incoming)
    expected = expected_gradients(step, given, incoming)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert_stored(found[name], wanted, "gradient")


def run_both(step, given, incoming):
    """Return everything that forward and backward write."""
    kept = forward(step, given)
    gradients = backward(step, given, kept, incoming)
    return kept | {f"{name} of backward": t for name, t in gradients.items()}


def is_wide(step):
    """Return whether a launch should take 16 bytes at a time."""
    count = 16 // step.dtype.itemsize
    enough = step.N * step.H // count >= FEW_THREADS
    return step.H % count == 0 and enough and step.unaligned is None


@sizes
def test_forward(cell, dtype, size):
    step = make(cell, dtype, size)
    assert_forward_is_expected(step)
    assert took_wide_accesses(step) == is_wide(step)


@sizes
def test_backward(cell, dtype, size):
    step = make(cell, dtype, size)
    assert_gradients_are_expected(step)
    assert took_wide_accesses(step) == is_wide(step)


@edges_of_steps
def test_sequences_that_begin_or_end_here(cell, dtype, few, edges):
    assert_forward_is_expected(make(cell, dtype, few, edges))
    assert_gradients_are_expected(make(cell, dtype, few, edges))


@pytest.mark.parametrize("biases", [(), ("b_ih",), ("b_hh",)], ids=["none", "b_ih", "b_hh"])
def test_absent_biases_are_zero(cell, dtype, few, biases):
    assert_forward_is_expected(make(cell, dtype, few, biases=biases))


@pytest.mark.parametrize(
    "wanted",
    [(), ("h_again",), ("h_n",), ("c_again",)],
    ids=["none of them", "h_again", "h_n", "c_again"],
)
def test_outputs_that_are_not_wanted(cell, dtype, few, wanted):
    assert_forward_is_expected(make(cell, dtype, few, wanted=wanted))


def test_inference_gives_the_same_and_keeps_the_products(cell, dtype, few):
    step = make(cell, dtype, few)
    given = draw(step)
    training = forward(step, given)
    inference = forward(step._replace(training=False), given)
    assert_same_bits(inference, {name: training[name] for name in inference})
    assert training.keys() - inference.keys() == {"gates"} | ({"a_nh"} if cell == "gru" else set())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@edges_of_steps
def test_the_state_in_place(cell, dtype, few, edges):
    step = make(cell, dtype, few, edges)
    given = draw(step)
    assert_same_bits(forward(step._replace(in_place=True), given), forward(step, given))


def test_the_gradient_of_h_as_a_whole(cell, dtype, few):
    assert_gradients_are_expected(make(cell, dtype, few), whole=True)


@pytest.mark.parametrize(
    "absent", [("dy",), ("dh_n",), ("dc_n",), ("dc",), ("dy", "dh_n", "dc_n")], ids="-".join
)
def test_absent_gradients_are_zero(cell, dtype, few, absent):
    assert_gradients_are_expected(make(cell, dtype, few), leave_out=absent)


def test_the_gradient_of_a_projected_h(dtype, few):
    for edges in EDGES.values():
        step = make("lstm", dtype, few, edges)
        for absent in ((), ("dy",), ("dh_n",)):
            incoming = draw_incoming(step, leave_out=absent)
            zeros = torch.zeros(step.N, step.H, dtype=torch.float64)
            expected = zeros if incoming.dy is None else incoming.dy.double()
            ending = zeros if incoming.dh_n is None else incoming.dh_n.double()
            expected = expected + torch.cat([incoming.recurrent.double(), ending[step.outer :]])
            assert_stored(hidden(step, incoming), expected, "forward")


def test_accesses_do_not_change_the_numbers(cell, dtype):
    wide = make(cell, dtype, SIZES["vectors-several-blocks-of-rows"])
    narrow = wide._replace(unaligned=EVERY_ARRAY)
    given, incoming = draw(wide), draw_incoming(wide)
    found = run_both(wide, given, incoming)
    assert took_wide_accesses(wide)
    assert_same_bits(run_both(narrow, given, incoming), found)
    assert not took_wide_accesses(narrow)


@pytest.mark.parametrize("dtype", [torch.float16], ids=["float16"])
@pytest.mark.parametrize("whole", [False, True], ids=["in-parts", "whole"])
def test_one_unaligned_array_is_enough(cell, dtype, whole):
    step = make(cell, dtype, SIZES["vectors-not-a-power-of-two"])
    given, incoming = draw(step), draw_incoming(step, whole)
    kept = forward(step, given)
    for name in given.keys() | kept.keys():
        assert_same_bits(forward(step._replace(unaligned=name), given), kept)
        assert not took_wide_accesses(step), name
    gradients = backward(step, given, kept, incoming)
    assert took_wide_accesses(step)
    names = {"gates", *gradients}
    names |= {name for name, tensor in incoming._asdict().items() if tensor is not None}
    names |= {"prev", "initial", "extra"} if step.has_state else set()
    for name in names:
        found = backward(step._replace(unaligned=name), given, kept, incoming)
        assert_same_bits(found, gradients)
        assert not took_wide_accesses(step), name


def test_the_order_of_threads_and_blocks_does_not_matter(cell, dtype, few):
    step = make(cell, dtype, few)
    given, incoming = draw(step), draw_incoming(step)
    results = []
    for order in ORDERS:
        with bench().order(order):
            found = run_both(step, given, incoming)
            results.append(found | {"dh": hidden(step, incoming)})
    for found in results[1:]:
        assert_same_bits(found, results[0])


def test_no_sequence_no_launch(cell, dtype):
    step = make(cell, dtype, (0, 16))
    given, incoming = draw(step), draw_incoming(step)
    bench().last_launch()
    run_both(step, given, incoming)
    hidden(step, incoming)
    assert bench().last_launch() is None


@pytest.mark.parametrize("dtype", [torch.float16], ids=["float16"])
@pytest.mark.parametrize("cell", ["rnn_relu"])
def test_more_rows_than_a_grid_has(cell, dtype):
    step = make(cell, dtype, (65535 + 70, 65))
    assert_forward_is_expected(step)
    assert bench().last_launch().grid == (1, 65535, 1)
    assert_gradients_are_expected(step)
    assert bench().last_launch().grid == (1, 65535, 1)
    incoming = draw_incoming(step)._replace(dy=None, dh_n=None)
    found = hidden(step, incoming)
    assert bench().last_launch().grid == (1, 65535, 1)
    assert_stored(found[: step.outer], incoming.recurrent.double(), "forward")
    assert (found[step.outer :] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
@pytest.mark.parametrize("where", ["gates", "recurrent", "dy"])
def test_nan_stays_in_its_sequence(cell, dtype, few, where):
    step = make(cell, dtype, few)
    given, incoming = draw(step), draw_incoming(step)
    clean = run_both(step, given, incoming)
    (incoming.dy if where == "dy" else given[where])[1] = torch.nan
    found = run_both(step, given, incoming)
    assert found["dgates_x of backward" if where == "dy" else "h"][1].isnan().any()
    for name, tensor in found.items():
        first = step.outer if name in ("h_n", "c_n") else 0
        others = torch.arange(len(tensor)) + first != 1
        assert_same_bits({name: tensor[others]}, {name: clean[name][others]})

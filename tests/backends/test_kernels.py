"""Every kernel against the reference in float64."""

import pytest
import torch

from fused_rnn.backends import Inputs, reference
from fused_rnn.scans import autograd
from tests.operands import (
    Shape,
    as_double,
    assert_near,
    cotangents,
    differentiate,
    make_inputs,
    needing,
    present,
    ragged,
    shifted,
    skip_unless_supported,
)

NAMES = Inputs._fields


def test_kernel_is_the_reference(kernel, variant, shape, reverse, dtype, tolerance, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, dtype, device)
    skip_unless_supported(kernel, cell, inputs, batch_sizes)
    oracle = needing(as_double(inputs))
    gradients = cotangents(reference.forward(cell, oracle, batch_sizes, reverse, False)[:3])
    # What is fed back is rounded to the dtype for both.
    gradients = [g if g is None else g.to(dtype).double() for g in gradients]
    expected = differentiate(reference, cell, oracle, batch_sizes, reverse, gradients)

    found = differentiate(kernel, cell, needing(inputs), batch_sizes, reverse, gradients)

    for actual, wanted in zip(present(found[0]), present(expected[0]), strict=True):
        assert actual.dtype == dtype
        assert actual.is_contiguous()
        assert_near(actual, wanted, tolerance.forward)
    for name, actual, wanted in zip(NAMES, found[1], expected[1], strict=False):
        assert actual.dtype == dtype, name
        assert_near(actual, wanted, tolerance.gradient)


# A path of its own. For the interpreter, which takes no more than pairs of the parameters above.
@pytest.mark.parametrize("variant", [("lstm", True)], ids=["projected"])
@pytest.mark.parametrize("shape", [ragged((4, 1, 3, 3), 2, 9)], ids=["ragged"])
@pytest.mark.parametrize("reverse", [True], ids=["reverse"])
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
def test_ragged_reverse_and_projected(kernel, variant, shape, reverse, dtype, tolerance, device):
    test_kernel_is_the_reference(kernel, variant, shape, reverse, dtype, tolerance, device)


# More rows than forward or backward take at a time; ragged ones with whole vectors of h.
@pytest.mark.parametrize(
    "shape",
    [Shape(31, 30, 5, 17), ragged([n % 31 + 1 for n in range(60)], 5, 16)],
    ids=["dense", "ragged"],
)
def test_many_rows(kernel, variant, shape, reverse, dtype, tolerance, device):
    test_kernel_is_the_reference(kernel, variant, shape, reverse, dtype, tolerance, device)


@pytest.mark.parametrize("variant", [("lstm", False), ("lstm", True)], ids=["lstm", "projected"])
def test_every_cell_state(kernel, variant, shape, reverse, dtype, tolerance, device):
    inputs, batch_sizes = make_inputs(variant, shape, dtype, device)
    skip_unless_supported(kernel, "lstm", inputs, batch_sizes, states=True)
    oracle, operands = needing(as_double(inputs)), needing(inputs)
    scan = "lstm", oracle, batch_sizes, reverse
    expected = reference.scan_states(*scan)
    gradients = [g.to(dtype).double() for g in cotangents(expected)]
    found = autograd.scan_states(kernel, "lstm", operands, batch_sizes, reverse)
    inference = autograd.scan_states(kernel, "lstm", inputs, batch_sizes, reverse)
    for actual, again, wanted in zip(found, inference, expected, strict=True):
        assert_near(actual, wanted, tolerance.forward)
        assert_near(again, wanted, tolerance.forward)
    for used in (slice(None), slice(3, None)):  # all results, and c of every step alone
        wanted = torch.autograd.grad(
            expected[used], present(oracle), gradients[used], retain_graph=True, allow_unused=True
        )
        actual = torch.autograd.grad(
            found[used],
            present(operands),
            [g.to(inputs.x) for g in gradients[used]],
            retain_graph=True,
        )
        for a, w in zip(actual, wanted, strict=True):
            assert_near(a, torch.zeros_like(a) if w is None else w, tolerance.gradient)


def test_inference_computes_what_training_does(kernel, variant, shape, reverse, dtype, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, dtype, device)
    skip_unless_supported(kernel, cell, inputs, batch_sizes, training=False)
    inference = autograd.scan(kernel, cell, inputs, batch_sizes, reverse)
    training = autograd.scan(kernel, cell, needing(inputs), batch_sizes, reverse)
    tolerance = 4 * torch.finfo(dtype).eps
    for a, b in zip(present(inference), present(training), strict=True):
        assert a.grad_fn is None
        assert_near(a, b.double(), tolerance)


def test_two_runs_are_bit_equal(kernel, variant, shape, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, torch.float32, device)
    skip_unless_supported(kernel, cell, inputs, batch_sizes)
    gradients = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])
    before = [t.clone() for t in present(inputs)]
    results = [
        differentiate(kernel, cell, needing(inputs), batch_sizes, reverse, gradients)
        for _ in range(2)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    torch.testing.assert_close(present(inputs), before, rtol=0, atol=0)


def test_a_sequence_with_nan_stays_alone(kernel, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, torch.float32, device)
    skip_unless_supported(kernel, cell, inputs, batch_sizes)
    sizes = [small.N] * small.T if batch_sizes is None else batch_sizes.tolist()
    row = torch.tensor([n for size in sizes for n in range(size)], device=device)
    spoilt = inputs.x.clone().view(-1, small.I)
    spoilt[row == 1] = torch.nan
    clean = autograd.scan(kernel, cell, inputs, batch_sizes, reverse)
    found = autograd.scan(
        kernel, cell, inputs._replace(x=spoilt.view_as(inputs.x)), batch_sizes, reverse
    )
    y, expected = (r[0].reshape(len(row), -1) for r in (found, clean))
    assert y[row == 1].isnan().all()
    torch.testing.assert_close(y[row != 1], expected[row != 1], rtol=0, atol=0)
    for state, wanted in zip(present(found[1:]), present(clean[1:]), strict=True):
        assert state[1].isnan().all()
        torch.testing.assert_close(state[::2], wanted[::2], rtol=0, atol=0)


def test_operands_stand_anywhere_in_their_storage(kernel, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, torch.float32, device)
    skip_unless_supported(kernel, cell, inputs, batch_sizes)
    results = []
    for operands in (inputs, Inputs(*map(shifted, inputs))):
        for t in present(operands):
            t.requires_grad_()
        found = present(autograd.scan(kernel, cell, operands, batch_sizes, reverse))
        gradients = [shifted(r) if operands is not inputs else r.detach() for r in found]
        results.append([*found, *torch.autograd.grad(found, present(operands), gradients)])
    # Rounded in another order at most: what is aligned differs.
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("variant", [("gru", False), ("rnn_tanh", False), ("lstm", True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_goes_on_with_h_as_it_was_stored(kernel, variant, dtype, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, Shape(2, 40, 24, 64), dtype, device)
    skip_unless_supported(kernel, cell, inputs, None, training=False)
    if cell == "lstm":  # whose c is not rounded between the steps of a scan: let it forget c
        inputs.b_ih[64:128] = -100
    whole = autograd.scan(kernel, cell, inputs, None, False)[0][1]
    first = inputs._replace(x=inputs.x[:1])
    y, _, c = autograd.scan(kernel, cell, first, None, False)
    second = inputs._replace(x=inputs.x[1:], h0=y[0], c0=c)
    alone = autograd.scan(kernel, cell, second, None, False)[0][0]
    # Sums of float32 in another order change few of them; another h changes a large part.
    assert (whole != alone).float().mean() < 0.02

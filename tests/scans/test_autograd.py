"""Differentiation around the kernels: what autograd may ask of them."""

from itertools import product

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from fused_rnn.backends import Inputs, reference
from fused_rnn.scans import autograd
from tests.conftest import KERNELS
from tests.operands import (
    SHAPES,
    SMALL,
    Stub,
    as_double,
    assert_near,
    cotangents,
    differentiate,
    make_inputs,
    needing,
    present,
    skip_unless_supported,
)

NAMES = Inputs._fields


@pytest.fixture(params=[*KERNELS, Stub()], ids=lambda kernel: kernel.name)
def rules(request):
    """Each kernel, and one that cannot be wrong: tested with these is what is around them."""
    reason = request.param.available()
    if reason is not None:
        pytest.skip(reason)
    return request.param


def test_a_gradient_is_that_of_the_operand_which_needs_it(rules, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    gradients = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])
    all_of_them = needing(inputs)
    _, every = differentiate(rules, cell, all_of_them, batch_sizes, reverse, gradients)
    every = dict(
        zip((n for n, t in zip(NAMES, inputs, strict=True) if t is not None), every, strict=True)
    )
    for name in every:
        one = needing(inputs, [n == name for n in NAMES])
        _, (alone,) = differentiate(rules, cell, one, batch_sizes, reverse, gradients)
        torch.testing.assert_close(alone, every[name], msg=lambda m, name=name: f"only {name}: {m}")
        others = needing(inputs, [n != name for n in NAMES])
        _, rest = differentiate(rules, cell, others, batch_sizes, reverse, gradients)
        torch.testing.assert_close(
            list(rest),
            [d for n, d in every.items() if n != name],
            msg=lambda m, name=name: f"all but {name}: {m}",
        )


def test_any_subset_of_the_results_may_be_used(rules, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    every = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])
    for used in product([True, False], repeat=3):
        gradients = [g if use else None for g, use in zip(every, used, strict=True)]
        if not present(gradients):
            continue
        _, found = differentiate(rules, cell, needing(inputs), batch_sizes, reverse, gradients)
        _, expected = differentiate(
            reference, cell, needing(inputs), batch_sizes, reverse, gradients
        )
        for name, actual, wanted in zip(NAMES, found, expected, strict=False):
            # What a result does not depend on has no gradient, or one of zeros.
            none = torch.zeros((), device=device)
            actual, wanted = (none if d is None else d for d in (actual, wanted))
            torch.testing.assert_close(
                *torch.broadcast_tensors(actual.double(), wanted.double()),
                msg=lambda m, name=name, used=used: f"{name}, {used}: {m}",
            )


def test_nothing_is_kept_where_no_gradient_is_needed(rules, variant, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    told = []

    class Spy(Stub):
        def forward(self, *args):
            told.append(args[-1])
            return rules.forward(*args)

    autograd.scan(Spy(), cell, inputs, None, False)
    with torch.no_grad():
        results = autograd.scan(Spy(), cell, needing(inputs), None, False)
    autograd.scan(Spy(), cell, needing(inputs, [n == "w_hh" for n in NAMES]), None, False)
    assert told == [False, False, True]
    assert all(r.grad_fn is None and not r.requires_grad for r in present(results))


def test_gradients_of_sums_come_expanded(rules, variant, small, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    a, b = needing(inputs), needing(inputs)
    for backend, operands in ((rules, a), (reference, b)):
        y, h_n, _ = autograd.scan(backend, cell, operands, batch_sizes, False)
        (y.sum() + h_n.t().sum() + y[:1].sum()).backward()
    torch.testing.assert_close([t.grad for t in present(a)], [t.grad for t in present(b)])


def test_second_backward_needs_retain_graph(rules, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    inputs = needing(inputs)
    results = present(autograd.scan(rules, cell, inputs, batch_sizes, reverse))
    gradients = [torch.randn_like(r) for r in results]

    def back(retain_graph):
        return torch.autograd.grad(results, present(inputs), gradients, retain_graph=retain_graph)

    first, second = back(True), back(False)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        back(False)


@pytest.mark.parametrize("name", NAMES)
def test_what_backward_reads_must_not_change_before(rules, variant, name, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    # A copy of each leaf: autograd forbids changes of leaves altogether.
    inputs = Inputs(*(t if t is None else t.clone() for t in needing(inputs)))
    y, h_n, _ = autograd.scan(rules, cell, inputs, None, False)
    changed = getattr(inputs, name)
    if changed is None:
        assert cell != "lstm" or name == "w_hr"
        return
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y.sum() + h_n.sum()).backward()


def test_final_states_may_be_changed_in_place(rules, variant, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    inputs = needing(inputs)
    y, h_n, c_n = autograd.scan(rules, cell, inputs, None, False)
    expected = torch.autograd.grad(y.sum() + 2 * h_n.sum(), inputs.w_hh, retain_graph=True)
    for state in present([h_n, c_n]):
        state.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(y.sum() + h_n.sum(), inputs.w_hh), expected)


def test_hooks_on_saved_tensors_see_every_operand(rules, variant, small, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    expected = differentiate(
        rules,
        cell,
        needing(inputs),
        batch_sizes,
        False,
        cotangents_of_ones(rules, cell, inputs, batch_sizes),
    )
    packed = []

    def pack(t):
        packed.append(t)
        return t.clone()

    with saved_tensors_hooks(pack, lambda t: t):
        found = differentiate(
            rules,
            cell,
            needing(inputs),
            batch_sizes,
            False,
            cotangents_of_ones(rules, cell, inputs, batch_sizes),
        )
    for t in present(inputs):
        assert any(t.shape == p.shape and torch.equal(t, p) for p in packed)
    torch.testing.assert_close(found[1], expected[1])


def cotangents_of_ones(backend, cell, inputs, batch_sizes):
    results = autograd.scan(backend, cell, inputs, batch_sizes, False)
    return [r if r is None else torch.ones_like(r) for r in results]


def as_function(backend, cell, inputs, batch_sizes=None, reverse=False):
    """Return the scan as a function of its operands, each of them present."""

    def run(*given):
        rest = iter(given)
        operands = Inputs(*(t if t is None else next(rest) for t in inputs))
        return tuple(present(autograd.scan(backend, cell, operands, batch_sizes, reverse)))

    return run


def test_gradients_have_gradients(rules, variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    run = as_function(rules, cell, inputs, batch_sizes, reverse)
    operands = present(needing(inputs))
    assert gradcheck(run, operands, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(run, operands, fast_mode=True)


def test_gradients_of_the_reference_have_gradients(variant, small, reverse, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    run = as_function(reference, cell, inputs, batch_sizes, reverse)
    operands = present(needing(inputs))
    assert gradcheck(run, operands, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, operands, fast_mode=True)


def test_third_derivatives(rules, variant, device):
    cell, _ = variant

    def third(backend):
        torch.manual_seed(1)
        inputs, _ = make_inputs(variant, SMALL, device=device)
        x = inputs.x.requires_grad_()
        y, *_ = autograd.scan(backend, cell, inputs, None, False)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return y

    torch.testing.assert_close(third(rules), third(reference))


def test_a_path_between_operands_is_counted_once(rules, variant, device):
    cell, _ = variant

    def second(backend):
        torch.manual_seed(1)
        inputs, _ = make_inputs(variant, SMALL, device=device)
        x = inputs.x.requires_grad_()
        h0 = torch.tanh(x.sum() * inputs.h0)
        w_hh = inputs.w_hh * x.mean()
        y, h_n, _ = autograd.scan(backend, cell, inputs._replace(h0=h0, w_hh=w_hh), None, False)
        (dx,) = torch.autograd.grad(y.pow(2).sum() + h_n.sum(), x, create_graph=True)
        return dx.detach(), *torch.autograd.grad(dx.pow(2).sum(), x)

    torch.testing.assert_close(second(rules), second(reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_second_derivatives_of_other_dtypes(rules, variant, dtype, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, dtype, device)

    def penalty(backend, operands):
        y, *_ = autograd.scan(backend, cell, operands, None, False)
        (dx,) = torch.autograd.grad(y.sum(), operands.x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), operands.w_ih)[0]

    found = penalty(rules, needing(inputs))
    assert found.dtype == dtype
    assert_near(found, penalty(reference, needing(as_double(inputs))), 8 * torch.finfo(dtype).eps)


def test_backward_carries_tangents(rules, variant, small, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    inputs = needing(inputs)
    y, *_ = autograd.scan(rules, cell, inputs, batch_sizes, False)
    gradient, tangent = torch.randn_like(y), torch.randn_like(y)
    # The backward is linear, so that a tangent goes through it like any other gradient.
    expected = torch.autograd.grad(y, inputs.x, tangent, retain_graph=True)
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, inputs.x, forward_ad.make_dual(gradient, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dx).tangent, *expected)


def test_a_step_is_a_scan_of_one(rules, cell, dtype, tolerance, device):
    inputs, _ = make_inputs((cell, False), SHAPES["one-step"], dtype, device)
    skip_unless_supported(rules, cell, inputs, None)
    a, b = needing(inputs), needing(as_double(inputs))
    h, c = autograd.step(rules, cell, True, a.x[0], *a[1:7])
    _, h_n, c_n = autograd.scan(reference, cell, b, None, False)
    gradients = cotangents([h, c])
    used = [(r, g.to(r)) for r, g in zip((h, c), gradients, strict=True) if r is not None]
    found = torch.autograd.grad([r for r, _ in used], present(a), [g for _, g in used])
    used = [(r, g) for r, g in zip((h_n, c_n), gradients, strict=True) if r is not None]
    expected = torch.autograd.grad([r for r, _ in used], present(b), [g for _, g in used])

    for actual, wanted in zip(present([h, c]), present([h_n, c_n]), strict=True):
        assert_near(actual, wanted, tolerance.forward)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.shape == wanted.shape
        assert_near(actual, wanted, tolerance.gradient)


def test_gradients_of_a_step_have_gradients(rules, cell, device):
    inputs, _ = make_inputs((cell, False), SHAPES["one-step"], device=device)

    def run(x, *given):
        rest = iter(given)
        others = [t if t is None else next(rest) for t in inputs[1:]]
        return tuple(present(autograd.step(rules, cell, True, x[0], *others[:6])))

    operands = present(needing(inputs))
    assert gradcheck(run, operands, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(run, operands, fast_mode=True)


@pytest.mark.parametrize("name", ["x", "h0", "w_hh"])
def test_what_the_backward_of_a_step_reads_must_not_change(rules, cell, name, device):
    inputs, _ = make_inputs((cell, False), SHAPES["one-step"], device=device)
    inputs = Inputs(*(t if t is None else t.clone() for t in needing(inputs)))
    h, _ = autograd.step(rules, cell, True, inputs.x[0], *inputs[1:7])
    with torch.no_grad():
        getattr(inputs, name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_backward_under_autocast_computes_as_the_forward_did(rules, variant, small, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, torch.float32, device)
    found = []
    for inside in (False, True):
        operands = needing(inputs)
        y, *_ = autograd.scan(rules, cell, operands, batch_sizes, False)
        with torch.autocast(device, torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(y.sum(), present(operands)))
            assert torch.is_autocast_enabled(device) is inside
    torch.testing.assert_close(*found, rtol=0, atol=0)

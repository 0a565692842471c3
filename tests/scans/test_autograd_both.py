"""Both directions at once, on a backend that cannot be wrong: derivatives, and who takes it."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import backends
from fused_rnn.backends import BACKENDS, Inputs, native, reference
from fused_rnn.scans import autograd
from tests.operands import SMALL, Stub, cotangents, make_inputs, present

GPU = torch.device("cuda", 0)


class Both(Stub):
    """Scans both directions at once, two scans of the reference; counts how often."""

    name = "both"

    def __init__(self):
        self.calls = []

    def takes_both(self, problem):
        return problem.P == 0

    def forward_both(self, cell, inputs, batch_sizes, training):
        self.calls.append("training" if training else "inference")
        assert inputs[0].x is inputs[1].x
        # What is saved tells the directions apart.
        return tuple(
            (*self.forward(cell, of, batch_sizes, reverse, training)[:3], (torch.tensor(reverse),))
            for reverse, of in zip((False, True), inputs, strict=True)
        )

    def backward_both(self, cell, inputs, batch_sizes, y, saved, given, needs):
        self.calls.append("backward")
        assert [len(g) for g in given] == [3, 3]
        assert [of[0].item() for of in saved] == [False, True]
        each = needs[:8], (needs[0], *needs[8:])
        forward, reverse = (
            Stub.backward(self, cell, inputs[k], batch_sizes, k == 1, y[k], (), *given[k], each[k])
            for k in (0, 1)
        )
        dx = forward[0] + reverse[0] if needs[0] else None
        return dx, *forward[1:], *reverse[1:]

    def backward(self, cell, inputs, batch_sizes, reverse, y, saved, *others):
        self.calls.append("reverse" if reverse else "forward")
        assert saved[0].item() is reverse
        return super().backward(cell, inputs, batch_sizes, reverse, y, (), *others)


@pytest.fixture
def backend():
    return Both()


@pytest.fixture
def variant(cell):
    """Each cell, without a projection."""
    return cell, False


def draw(variant, small, dtype=torch.float64):
    """Return x and the others of both directions, 15 in all, and the batch sizes."""
    inputs, batch_sizes = make_inputs(variant, small, dtype)
    return (*inputs, *make_inputs(variant, small, dtype)[0][1:]), batch_sizes


def as_function(backend, cell, operands, batch_sizes):
    """Return the scan of both directions as a function of the operands that are present."""

    def run(*given):
        rest = iter(given)
        x, *others = (t if t is None else next(rest) for t in operands)
        inputs = Inputs(x, *others[:7]), Inputs(x, *others[7:])
        if backend is reference:
            both = [autograd.scan(backend, cell, inputs[k], batch_sizes, k == 1) for k in (0, 1)]
        else:
            both = autograd.scan_both(backend, cell, inputs, batch_sizes)
        return tuple(present([*both[0], *both[1]]))

    return run


def needing(tensors, needs=None):
    """Return copies of those that are present; all need a gradient, or those of these indices."""
    return [
        t.detach().clone().requires_grad_(needs is None or k in needs)
        for k, t in enumerate(present(tensors))
    ]


def differentiate(backend, cell, operands, batch_sizes, gradients, needs=None):
    """Return the results, and the gradients of those that need one; None gradients are unused."""
    given = needing(operands, needs)
    results = as_function(backend, cell, operands, batch_sizes)(*given)
    used = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None]
    of = [t for t in given if t.requires_grad]
    found = torch.autograd.grad([r for r, _ in used], of, [g for _, g in used], allow_unused=True)
    return results, found


def cotangents_of(cell, operands, batch_sizes):
    return cotangents(as_function(reference, cell, operands, batch_sizes)(*present(operands)))


def test_gradients(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    scan = cell, operands, batch_sizes, cotangents_of(cell, operands, batch_sizes)
    torch.testing.assert_close(differentiate(backend, *scan), differentiate(reference, *scan))
    assert backend.calls == ["training", "backward"]


def test_inference_keeps_nothing(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    run = as_function(backend, cell, operands, batch_sizes)
    with torch.no_grad():
        found = run(*needing(operands))
    assert not any(t.requires_grad for t in (*found, *run(*present(operands))))
    assert backend.calls == ["inference"] * 2
    torch.testing.assert_close(
        found, as_function(reference, cell, operands, batch_sizes)(*present(operands))
    )


def test_a_gradient_is_that_of_the_operand_which_needs_it(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    scan = cell, operands, batch_sizes, cotangents_of(cell, operands, batch_sizes)
    _, every = differentiate(backend, *scan)
    count = len(every)
    for k in range(count):
        _, (alone,) = differentiate(backend, *scan, {k})
        torch.testing.assert_close(alone, every[k])
        _, rest = differentiate(backend, *scan, set(range(count)) - {k})
        torch.testing.assert_close(rest, (*every[:k], *every[k + 1 :]))


def test_a_direction_that_nobody_uses_has_no_gradients(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    every = cotangents_of(cell, operands, batch_sizes)
    own = len(every) // 2
    for unused, ran in ((slice(own), "reverse"), (slice(own, None), "forward")):
        gradients = list(every)
        gradients[unused] = [None] * own
        scan = cell, operands, batch_sizes, gradients
        _, found = differentiate(backend, *scan)
        _, expected = differentiate(reference, *scan)
        assert [g is None for g in found] == [g is None for g in expected]
        torch.testing.assert_close(present(found), present(expected))
        assert backend.calls[-1] == ran


def test_gradients_of_sums_come_expanded(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    found = []
    for of in (backend, reference):
        given = needing(operands)
        results = as_function(of, cell, operands, batch_sizes)(*given)
        sum(r.t().sum() if r.dim() == 2 else r.sum() for r in results).backward()
        found.append([t.grad for t in given])
    torch.testing.assert_close(*found)


def test_gradients_have_gradients(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    run = as_function(backend, cell, operands, batch_sizes)
    given = needing(operands)
    assert gradcheck(run, given, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(run, given, fast_mode=True)


def test_gradients_of_gradients_are_those_of_two_scans(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    found = []
    for of in (backend, reference):
        given = needing(operands)
        results = as_function(of, cell, operands, batch_sizes)(*given)
        total = sum(r.pow(3).sum() for r in results)
        first = torch.autograd.grad(total, given, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append((*first, *torch.autograd.grad(penalty, given)))
    torch.testing.assert_close(*found)
    assert backend.calls == ["training", "backward"]  # and before that, by the reference


def test_second_backward_needs_retain_graph(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    given = needing(operands)
    results = as_function(backend, cell, operands, batch_sizes)(*given)
    total = sum(r.sum() for r in results)
    first = torch.autograd.grad(total, given, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, given), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(total, given)


def test_backward_carries_tangents(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small)
    given = needing(operands)
    y, *_ = as_function(backend, cell, operands, batch_sizes)(*given)
    gradient, tangent = torch.randn_like(y), torch.randn_like(y)
    expected = torch.autograd.grad(y, given[0], tangent, retain_graph=True)
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, given[0], forward_ad.make_dual(gradient, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dx).tangent, *expected)


def test_backward_under_autocast_computes_as_the_forward_did(backend, variant, small):
    cell, _ = variant
    operands, batch_sizes = draw(variant, small, torch.float32)
    found = []
    for inside in (False, True):
        given = needing(operands)
        results = as_function(backend, cell, operands, batch_sizes)(*given)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(sum(r.sum() for r in results), given))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["x", "w_hh", "y"])
def test_what_backward_reads_must_not_change_before(backend, variant, changed):
    cell, _ = variant
    operands, _ = draw(variant, SMALL)
    given = [t.clone() for t in needing(operands)]
    results = as_function(backend, cell, operands, None)(*given)
    index = {"x": 0, "w_hh": 4 if cell == "lstm" else 3}.get(changed)
    with torch.no_grad():
        (results[0] if index is None else given[index]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(r.sum() for r in results[1:]).backward()


@pytest.fixture
def chosen(backend, monkeypatch):
    """The backend as the only one there is, next to the reference."""
    monkeypatch.setitem(BACKENDS, backend.name, backend)
    for choice in (backends._automatic, backends._by_name):
        choice.cache_clear()
    with fused_rnn.use_backend(backend.name):
        yield backend
    for choice in (backends._automatic, backends._by_name):
        choice.cache_clear()


def run_module(rnn, x, lengths):
    """Return the outputs and the gradients of a module."""
    given = x if lengths is None else pack_padded_sequence(x, lengths)
    y, state = rnn(given)
    y = y if lengths is None else y.data
    states = state if isinstance(state, tuple) else (state,)
    loss = y.square().sum() + sum(s.sum() for s in states)
    return (y, *states), torch.autograd.grad(loss, [x, *rnn.parameters()])


@pytest.mark.parametrize("lengths", [None, [5, 3, 3]], ids=["dense", "ragged"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_layers_on_layers(chosen, name, lengths):
    rnn = getattr(fused_rnn, name)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    found = run_module(rnn, x, lengths)
    assert chosen.calls == ["training"] * 2 + ["backward"] * 2
    with fused_rnn.use_backend("reference"):
        torch.testing.assert_close(found, run_module(rnn, x, lengths))


def test_who_goes_direction_by_direction(chosen):
    x = torch.randn(5, 3, 3, requires_grad=True)
    fused_rnn.GRU(3, 4)(x)
    fused_rnn.LSTM(3, 4, proj_size=2, bidirectional=True)(x)
    fused_rnn.GRU(3, 4, bidirectional=True, recompute=True)(x)
    fused_rnn.GRU(3, 4, bidirectional=True)(x, return_states=True)
    assert chosen.calls == []


def plans(monkeypatch, answer):
    """Have the native kernels answer like that for a GPU; return what they were asked."""
    asked = []

    def plan(like, *args):
        asked.append(args)
        return answer(*args)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size))
    monkeypatch.setattr(torch.ops.fused_rnn, "persistent_plan", plan, raising=False)
    monkeypatch.setattr(native, "_cuda_missing", None)
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")
    return asked


@pytest.mark.usefixtures("no_known_plans")
@pytest.mark.parametrize("with_plan", [(), (False,), (True,), (False, True)], ids=str)
def test_native_takes_both_where_a_pass_has_a_plan(monkeypatch, cell, with_plan):
    def answer(*args):
        return "persistent, so" if args[5] in with_plan else "step by step: why"

    asked = plans(monkeypatch, answer)
    inference = backends.Problem(cell, GPU, torch.float16, 3, 2, 5, 7, 0, False, False, None)
    training = inference._replace(training=True)
    assert native.takes_both(inference) is (False in with_plan)
    assert asked == [(cell, 3, 2, 7, 0, False, False, 2)]
    assert native.takes_both(training) is bool(with_plan)
    count = len(asked)
    assert native.takes_both(training) is bool(with_plan)
    assert len(asked) == count
    assert native.takes_both(training._replace(device=torch.device("cpu"))) is False
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "0")
    assert native.takes_both(training) is False
    assert len(asked) == count


@pytest.mark.usefixtures("no_known_plans")
def test_native_says_how_both_directions_run(monkeypatch):
    answers = {}
    plans(monkeypatch, lambda *args: answers[args[5], args[7] if len(args) > 7 else 1])
    problem = backends.Problem("gru", GPU, torch.float16, 3, 2, 5, 7, 0, False, True, None)
    for backward in (False, True):
        answers |= {(backward, 1): "persistent, alone", (backward, 2): "persistent, both"}
    assert native.plan(problem, True) == "persistent, both"
    assert native.plan(problem) == "persistent, alone"
    answers[True, 2] = "step by step: too large"
    after = "persistent, alone; one direction after the other: too large"
    assert native.plan(problem, True) == f"forward persistent, both; backward {after}"
    answers[True, 1] = "step by step: larger"
    expected = "forward persistent, both; backward step by step: larger"
    assert native.plan(problem, True) == expected

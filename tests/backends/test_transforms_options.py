"""Derivatives of every kind, and vmap, over each way to set up and to call a layer."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from tests.twins import (
    CONFIGURED,
    LAYERS,
    MODULES,
    example,
    first,
    leaves,
    sequences,
    states,
    twins,
)

# How a layer may be called, beside its plain call.
CALLS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([2, 3])},
    "resets": {"resets": torch.tensor([[False, True], [True, False], [False, False]])},
    "states": {"return_states": True},
}
double = {"dtype": torch.float64}


def made(layer, options):
    """Return a small layer in float64, and a function of an input, states and weights."""
    module = getattr(fused_rnn, layer)(2, 4, **options, **double)
    names = [n for n, _ in module.named_parameters()]
    pair = layer == "LSTM"

    def call(kwargs):
        def run(x, *others):
            hx = others[:2] if pair else others[0]
            weights = dict(zip(names, others[2 if pair else 1 :], strict=True))
            return tuple(leaves(functional_call(module, weights, (x, hx), kwargs)))

        return run

    return module, call


def given(module, steps=3, n=2):
    shape = (n, steps) if module.batch_first else (steps, n)
    others = (*leaves(states(module, n, torch.float64)), *module.parameters())
    return [t.detach().requires_grad_() for t in (torch.randn(*shape, 2, **double), *others)]


def arguments(module, call):
    kwargs = dict(CALLS[call])
    if call == "resets" and module.batch_first:
        kwargs["resets"] = kwargs["resets"].t()
    return kwargs


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_gradients_and_their_gradients(layer, options, call):
    module, function = made(layer, options)
    run, operands = function(arguments(module, call)), given(module)
    assert gradcheck(run, operands, fast_mode=True)
    assert gradgradcheck(run, operands, fast_mode=True)


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_gradients_of_packed_and_unbatched_input(layer, options):
    module, _ = made(layer, options)
    packed = sequences((1, 3, 2), 2, enforce_sorted=False)

    def run_packed(data, *hx):
        hx = hx if len(hx) == 2 else hx[0]
        return tuple(leaves(module(PackedSequence(data, *packed[1:]), hx)))

    def run_unbatched(x, *hx):
        return tuple(leaves(module(x, hx if len(hx) == 2 else hx[0])))

    for run, x, n in ((run_packed, packed.data, 3), (run_unbatched, torch.randn(3, 2), None)):
        operands = [x.double(), *leaves(states(module, n, torch.float64))]
        operands = [t.detach().requires_grad_() for t in operands]
        assert gradcheck(run, operands, fast_mode=True)
        assert gradgradcheck(run, operands, fast_mode=True)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_forward_mode_agrees_with_reverse_mode(layer, options, call):
    module, function = made(layer, options)
    run, operands = function(arguments(module, call)), tuple(given(module))
    tangents = tuple(map(torch.randn_like, operands))
    results, found = jvp(run, operands, tangents)
    cotangents = [torch.randn_like(r) for r in results]
    backwards = torch.autograd.grad(run(*operands), operands, cotangents)
    products = [
        sum((a * b).sum() for a, b in zip(left, right, strict=True))
        for left, right in ((found, cotangents), (backwards, tangents))
    ]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_vmap_over_inputs_and_states(layer, options):
    module, function = made(layer, options)
    run = function({})
    members = [given(module) for _ in range(3)]
    count = len(leaves(states(module, 2)))
    stacked = [torch.stack(ts) for ts in zip(*(m[: 1 + count] for m in members), strict=True)]
    weights = members[0][1 + count :]
    found = vmap(run, (0,) * (1 + count) + (None,) * len(weights))(*stacked, *weights)
    for k in range(3):
        expected = run(*(t[k] for t in stacked), *weights)
        torch.testing.assert_close([t[k] for t in found], list(expected))


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_an_ensemble_and_its_gradients(layer, options):
    members = [made(layer, options)[0] for _ in range(3)]
    weights, _ = stack_module_state(members)
    weights = {n: w.detach() for n, w in weights.items()}
    x = torch.randn(3, 2, 2, **double)

    def loss(weights):
        return first(functional_call(members[0], weights, (x,))).pow(2).sum()

    found = vmap(grad(loss))(weights)
    for k, member in enumerate(members):
        expected = torch.autograd.grad(first(member(x)).pow(2).sum(), list(member.parameters()))
        torch.testing.assert_close([found[n][k] for n in weights], list(expected))


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_gradients_of_each_sample(layer, options):
    module, _ = made(layer, options)
    weights = {n: p.detach() for n, p in module.named_parameters()}
    x = torch.randn(4, 3, 2, **double)  # unbatched samples

    def loss(weights, x):
        return first(functional_call(module, weights, (x,))).pow(2).sum()

    found = vmap(grad(loss), (None, 0))(weights, x)
    for k in range(len(x)):
        expected = torch.autograd.grad(first(module(x[k])).pow(2).sum(), list(module.parameters()))
        torch.testing.assert_close([found[n][k] for n in weights], list(expected))


@pytest.mark.parametrize("layer", LAYERS)
def test_vmap_of_vmap_and_along_other_dims(layer):
    module, _ = made(layer, {})
    x = torch.randn(3, 2, 4, 5, 2, **double)  # (T, 2, N, 5, I): vmap over the dims 1 and 3

    def run(x):
        return first(module(x))

    found = vmap(vmap(run, 2, 2), 1, 1)(x)
    for i in range(2):
        for k in range(5):
            torch.testing.assert_close(found[:, i, :, k], run(x[:, i, :, k]))


@pytest.mark.parametrize("name", MODULES)
def test_hessians(name):
    module = getattr(fused_rnn, name)(3, 4, **double)
    x = example(name).double()

    def loss(x):
        return first(module(x)).pow(2).sum()

    whole = hessian(loss)(x)
    torch.testing.assert_close(jacfwd(jacrev(loss))(x), whole)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, x), whole)
    tangent = torch.randn_like(x)
    _, product = jvp(grad(loss), (x,), (tangent,))
    torch.testing.assert_close(product, torch.tensordot(whole, tangent, dims=x.dim()))


def test_vmap_with_dropout_between_the_layers():
    module = fused_rnn.GRU(2, 4, 2, dropout=0.5)
    x = torch.randn(3, 2, 2).expand(4, 3, 2, 2)
    same = vmap(lambda x: first(module(x)), randomness="same")(x)
    torch.testing.assert_close(same[0], same[1])
    different = vmap(lambda x: first(module(x)), randomness="different")(x)
    assert not torch.equal(different[0], different[1])


@pytest.mark.parametrize("name", MODULES)
def test_backward_in_eval_mode(name):
    # cuDNN refuses this; every backend of ours must not.
    gradients = []
    for module in twins(name, 3, 4):
        module.eval()
        torch.manual_seed(1)
        x = example(name).requires_grad_()
        operands = [x, *module.parameters()]
        gradients.append(torch.autograd.grad(first(module(x)).pow(2).sum(), operands))
    torch.testing.assert_close(*gradients)


def kept(run):
    """Return how many elements autograd keeps for a backward."""
    counts = []

    def pack(t):
        counts.append(t.numel())
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        result = first(run())
    return sum(counts), result


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_reference_recomputes_too(layer, call):
    module, counts, gradients = getattr(fused_rnn, layer)(2, 4, **double), [], []
    x, kwargs = torch.randn(3, 2, 2, **double), CALLS[call]
    with fused_rnn.use_backend("reference"):
        for recompute in (False, True):
            module.recompute = recompute
            count, y = kept(lambda: module(x, **kwargs))
            counts.append(count)
            gradients.append(torch.autograd.grad(y.pow(2).sum(), list(module.parameters())))

        def run(x):
            return first(module(x, **kwargs))

        operands = [x.requires_grad_()]
        assert gradgradcheck(run, operands, fast_mode=True)
        assert gradcheck(run, operands, check_batched_grad=True, check_forward_ad=True)
        torch.testing.assert_close(jacrev(run)(x), jacfwd(run)(x))
        torch.testing.assert_close(vmap(run)(x[None])[0], run(x))
    assert counts[1] < counts[0]
    torch.testing.assert_close(*gradients)


class Own(torch.Tensor):
    """A tensor that is none of torch's own."""


def test_options_of_functions_that_torch_can_do_with():
    weights, x = [list(torch.nn.GRU(2, 4).parameters())], torch.randn(3, 2, 2)
    gru, own = fused_rnn.functional.gru, x.as_subclass(Own)
    state = torch.randn(1, 1, 4)
    for options in ({"recompute": True}, {"initial_state": state}):
        found = gru(own, None, weights, **options)[0].as_subclass(torch.Tensor)
        torch.testing.assert_close(found, gru(x, None, weights, **options)[0])
    for options in ({"return_states": True}, {"lengths": torch.tensor([2, 3])}):
        with pytest.raises(RuntimeError, match="knows of no options"):
            gru(own, None, weights, **options)

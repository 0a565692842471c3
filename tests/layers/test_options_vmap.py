"""Lengths and resets that torch.func.vmap batches, against a loop over the samples."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap

import fused_rnn
from tests.twins import leaves

T, N, B = 5, 3, 4
LENGTHS = torch.tensor([[5, 2, 0], [1, 5, 3], [0, 0, 0], [4, 4, 1]])
RESETS = torch.rand(B, T, N, generator=torch.Generator().manual_seed(2)) < 0.3
GIVEN = {
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "both": {"lengths": LENGTHS, "resets": RESETS},
}
LAYERS = [
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "learn_initial_state": True}),
    ("GRU", {"bidirectional": True, "learn_initial_state": True}),
    ("RNN", {"num_layers": 2}),
]


@pytest.fixture(params=LAYERS, ids=lambda p: "-".join([p[0], *p[1]]))
def layer(request):
    """A layer of each kind, with an initial state that is not zero where it learns one."""
    name, options = request.param
    module = getattr(fused_rnn, name)(3, 4, **options, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    return module


@pytest.fixture(params=GIVEN)
def given(request):
    """What is batched."""
    return GIVEN[request.param]


def sample(given, b):
    """Return what is given for one sample."""
    return {name: t[b] for name, t in given.items()}


@pytest.mark.parametrize("of_input", [0, None], ids=["input too", "one input"])
@pytest.mark.parametrize("return_states", [False, True])
def test_results(layer, given, of_input, return_states):
    x = torch.randn(B, T, N, 3, dtype=torch.float64)
    x = x if of_input == 0 else x[0]

    def run(x, given):
        return tuple(leaves(layer(x, **given, return_states=return_states)))

    found = vmap(run, (of_input, 0))(x, given)
    samples = [run(x[b] if of_input == 0 else x, sample(given, b)) for b in range(B)]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*samples, strict=True))))


def test_gradients_of_every_sample(layer, given):
    x = torch.randn(B, T, N, 3, dtype=torch.float64)
    x[0, 2:, 1] = torch.nan if "lengths" in given else 0  # past an end
    weights = {name: w.detach() for name, w in layer.named_parameters()}

    def loss(weights, x, given):
        return sum(r.square().sum() for r in leaves(functional_call(layer, weights, (x,), given)))

    found = vmap(grad(loss), (None, 0, 0))(weights, x, given)
    for b in range(B):
        expected = torch.autograd.grad(
            loss(dict(layer.named_parameters()), x[b], sample(given, b)), list(layer.parameters())
        )
        for w, of in zip(expected, found.values(), strict=True):
            torch.testing.assert_close(of[b], w)


@pytest.mark.parametrize("transform", ["jacrev", "jvp", "grad outside", "vmap of vmap"])
def test_other_transforms(layer, given, transform):
    x = torch.randn(B, T, N, 3, dtype=torch.float64)

    def run(x, given):
        return leaves(layer(x, **given))[0].cumsum(0).sin()

    def of_all(x):
        return vmap(run)(x, given).square().sum()

    samples = [sample(given, b) for b in range(B)]
    if transform == "jacrev":
        found = vmap(jacrev(run))(x, given)
        expected = torch.stack([jacrev(run)(x[b], samples[b]) for b in range(B)])
    elif transform == "jvp":
        v = torch.randn_like(x)
        found = vmap(lambda x, v, of: jvp(lambda x: run(x, of), (x,), (v,))[1])(x, v, given)
        each = [jvp(lambda x, of=samples[b]: run(x, of), (x[b],), (v[b],))[1] for b in range(B)]
        expected = torch.stack(each)
    elif transform == "grad outside":
        found = grad(of_all)(x)
        x.requires_grad_()
        total = sum(run(x[b], samples[b]).square().sum() for b in range(B))
        (expected,) = torch.autograd.grad(total, x)
    else:
        found = vmap(lambda x: vmap(run)(x, given))(torch.stack([x, -x]))
        both = [torch.stack([run(s[b], samples[b]) for b in range(B)]) for s in (x, -x)]
        expected = torch.stack(both)
    torch.testing.assert_close(found, expected)


def test_unbatched_input_and_the_gates(layer):
    x, lengths = torch.randn(B, T, 3, dtype=torch.float64), torch.tensor([5, 0, 2, 1])

    def run(x, length):
        return leaves(layer(x, lengths=length))[0], layer.gates(x, lengths=length)

    y, gates = vmap(run)(x, lengths)
    for b in range(B):
        expected = run(x[b], lengths[b])
        torch.testing.assert_close((y[b], {name: g[b] for name, g in gates.items()}), expected)


def test_a_function_of_weights():
    layer = fused_rnn.GRU(3, 4, batch_first=True, dtype=torch.float64)
    weights = [[w.detach() for w in row] for row in layer.all_weights]
    x = torch.randn(B, N, T, 3, dtype=torch.float64)

    def run(weights, x, lengths):
        y, _ = fused_rnn.functional.gru(x, None, weights, batch_first=True, lengths=lengths)
        return y.square().sum()

    found = vmap(grad(run), (None, 0, 0))(weights, x, LENGTHS)
    for b in range(B):
        expected = grad(run)(weights, x[b], LENGTHS[b])
        torch.testing.assert_close([w[b] for w in found[0]], expected[0])


@pytest.mark.parametrize("inside", [lambda run: run, grad], ids=["vmap", "vmap of grad"])
@pytest.mark.parametrize("wrong", [6, -1])
def test_a_wrong_length_is_told(wrong, inside):
    layer, x = fused_rnn.GRU(3, 4), torch.randn(B, T, N, 3)
    lengths = LENGTHS.clone()
    lengths[2, 1] = wrong
    told = rf"lengths should be from 0 to 5, the number of steps, got: {wrong} at index 2, 1"
    with pytest.raises(ValueError, match=told):
        vmap(inside(lambda x, of: layer(x, lengths=of)[0].sum()))(x, lengths)


def test_what_cannot_be_batched():
    layer, x = fused_rnn.GRU(3, 4), torch.randn(T, N, 3)

    def run(given):
        return layer(x, **given)[0]

    with fused_rnn.use_backend("torch"), pytest.raises(RuntimeError, match=r"torch\.nn was asked"):
        vmap(run)(GIVEN["both"])
    with pytest.raises(ValueError, match=r"lengths should have shape \(3,\), got: \(2,\)"):
        vmap(run)({"lengths": LENGTHS[:, :2]})
    with pytest.raises(TypeError, match="lengths should be a tensor of integers"):
        vmap(run)({"lengths": LENGTHS.double()})
    with fused_rnn.backends.record() as records:
        vmap(run)(GIVEN["both"])
    assert [record.backend for record in records] == ["reference"]

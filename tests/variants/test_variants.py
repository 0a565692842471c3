"""Layers with options, against the same equations by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn.variants.philox import philox as in_torch
from tests.twins import leaves
from tests.variants.by_hand import by_hand, philox

T, N, I, H = 4, 3, 3, 4  # noqa: E741

ALL = {
    "recurrent_dropout": 0.4,
    "zoneout": 0.3,
    "layer_norm": True,
    "num_heads": 2,
}
GATED = {"recurrent_activation": ("hard_sigmoid", 0.2, 0.5), "activation": "relu"}
OPTIONS = {
    "LSTM": ALL
    | GATED
    | {
        "zoneout": (0.3, 0.6),
        "use_peepholes": True,
        "input_forget": True,
        "cell_clip": 0.4,
        "proj_clip": 0.2,
    },
    "GRU": ALL | GATED | {"reset_after": False},
    "RNN": ALL,
}
SINGLES = [(layer, name) for layer, options in OPTIONS.items() for name in options]
PAIRS = [(layer, *pair) for layer, options in OPTIONS.items() for pair in combinations(options, 2)]


def make(layer, names, **more):
    """Return a layer with options on, and these options."""
    options = {name: OPTIONS[layer][name] for name in names}
    if "proj_clip" in options:
        more = {"proj_size": 2, **more}
    module = getattr(fused_rnn, layer)(I, H, **options, **more).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    return module, options


def cuts():
    """Return lengths and resets of N sequences."""
    resets = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]).bool()
    return torch.tensor([2, 4, 3]), resets


def check(module, options, x, **given):
    """Compare a call with the equations by hand, and its gradients."""
    x = x.clone().requires_grad_()
    operands = [x, *module.parameters()]
    y, h_n, c_n, _ = by_hand(module, options, x, **given)
    expected = [y, h_n, *([] if c_n is None else [c_n])]
    found = leaves(module(x, **given))
    torch.testing.assert_close(found, expected)
    weights = [torch.randn_like(t) for t in expected]
    of = [
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(r, weights, strict=True)), operands)
        for r in (found, expected)
    ]
    torch.testing.assert_close(*of)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pairs(pair):
    layer, *names = pair
    module, options = make(layer, names, num_layers=2, bidirectional=True)
    lengths, resets = cuts()
    x = torch.randn(T, N, I, dtype=torch.float64)
    check(module, options, x, lengths=lengths, resets=resets)
    check(module.eval(), options, x)


@pytest.mark.parametrize("layer", OPTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_all_at_once(layer, bias, backend):
    module, options = make(layer, OPTIONS[layer], bias=bias)
    with fused_rnn.use_backend(backend):
        check(module, options, torch.randn(T, N, I, dtype=torch.float64))


@pytest.mark.parametrize(("layer", "name"), SINGLES)
def test_the_specification(layer, name):
    module, options = make(layer, [name])
    with fused_rnn.use_backend("reference"):
        check(module, options, torch.randn(T, N, I, dtype=torch.float64))


@pytest.mark.parametrize(("layer", "name"), SINGLES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 7, 17), (3, 2, 5, 70)], ids=str)
def test_shapes(layer, name, shape):
    steps, n, width, units = shape
    options = {name: OPTIONS[layer][name]}
    if name == "num_heads":
        options[name] = 1 if units == 1 else units if units == 17 else 5
    more = {"proj_size": units - units // 2 if units > 1 else 0} if name == "proj_clip" else {}
    if name == "proj_clip" and units == 1:
        pytest.skip("a projection is smaller than hidden_size")
    module = getattr(fused_rnn, layer)(width, units, **options, **more).double()
    check(module, options, torch.randn(steps, n, width, dtype=torch.float64))


def test_philox():
    """The vectors of Random123's kat_vectors, and plain torch against plain integers."""
    for counter, key, expected in (
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        assert philox(counter, key) == expected
        words = in_torch([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
        assert tuple(map(int, words)) == expected


@pytest.mark.parametrize("layer", OPTIONS)
def test_masks_are_the_same_however_sequences_are_packed(layer):
    module, _ = make(layer, ["zoneout", "recurrent_dropout"], num_layers=2, bidirectional=True)
    x, (lengths, _) = torch.randn(T, N, I, dtype=torch.float64), cuts()
    torch.manual_seed(1)
    y, state = module(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    torch.manual_seed(1)
    y_packed, state_packed = module(packed)
    assert isinstance(y_packed, PackedSequence)
    torch.testing.assert_close(pad_packed_sequence(y_packed)[0], y)
    torch.testing.assert_close(state_packed, state)
    torch.manual_seed(1)
    again, _ = module(x)
    torch.testing.assert_close(again[:, 1], y[:, 1])  # whose length is all steps
    torch.manual_seed(2)
    assert not torch.equal(module(x)[0], again)


def test_masks_differ_from_step_to_step():
    module, _ = make("LSTM", ["zoneout"])
    h = module(torch.randn(40, 2, I, dtype=torch.float64))[0]
    kept = h[1:] == h[:-1]
    assert 0.2 < kept.double().mean() < 0.4
    assert (kept[1:] != kept[:-1]).any(0).all()
    assert (kept[:, 0] != kept[:, 1]).any()
    module, _ = make("GRU", ["zoneout"])
    assert torch.equal(module.eval()(h[..., :I])[0], module(h[..., :I])[0])


@pytest.mark.parametrize("layer", OPTIONS)
def test_steps(layer):
    names = [name for name in OPTIONS[layer] if name != "recurrent_dropout"]
    module, _ = make(layer, names, num_layers=2)
    x = torch.randn(T, N, I, dtype=torch.float64)
    y, state = module.eval()(x)
    now, outputs = None, []
    for row in x:
        out, now = module.step(row, now)
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs), y)
    torch.testing.assert_close(now, state)
    torch.testing.assert_close(module.step(x[0, 0])[0], y[0, 0])


def test_a_step_has_no_mask_of_a_sequence():
    module, _ = make("GRU", ["recurrent_dropout"])
    with pytest.raises(RuntimeError, match="one mask for all steps of a sequence"):
        module.step(torch.randn(2, I, dtype=torch.float64))


@pytest.mark.parametrize("layer", OPTIONS)
def test_gates_and_states(layer):
    module, options = make(layer, OPTIONS[layer], num_layers=2, bidirectional=True)
    x, (lengths, resets) = torch.randn(T, N, I, dtype=torch.float64), cuts()
    found = module.gates(x, lengths=lengths, resets=resets)
    module.eval()
    y, _, _, gates = by_hand(module, options, x, lengths, resets)
    for name, values in found.items():
        for k, rows in enumerate(gates):
            for i, row in enumerate(rows):
                for t, of_step in enumerate(row):
                    expected = torch.zeros(H).double() if of_step is None else of_step[name]
                    torch.testing.assert_close(values[t, k, i], expected)
    *_, states = module(x, lengths=lengths, resets=resets, return_states=True)
    h = states[0] if layer == "LSTM" else states
    torch.testing.assert_close(h[:, -2:].transpose(1, 2).flatten(2), y)


@pytest.mark.parametrize("layer", OPTIONS)
@pytest.mark.parametrize("states", [False, True])
def test_recompute(layer, states):
    found = []
    module, _ = make(layer, OPTIONS[layer], num_layers=2)
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    for recompute in (False, True):
        module.recompute = recompute
        torch.manual_seed(3)
        results = leaves(module(x, return_states=states))
        loss = sum(t.pow(2).sum() for t in results)
        found.append([*results, *torch.autograd.grad(loss, [x, *module.parameters()])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layer", OPTIONS)
def test_gradients_of_gradients(layer):
    module, _ = make(layer, OPTIONS[layer])
    operands = [torch.randn(2, 2, I, dtype=torch.float64, requires_grad=True)]
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        torch.manual_seed(4)
        given = dict(zip(names, values, strict=True))
        return tuple(leaves(torch.func.functional_call(module, given, (x,))))

    operands += [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(run, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, operands, fast_mode=True)


@pytest.mark.parametrize("layer", OPTIONS)
def test_checkpointing_draws_the_same_again(layer):
    module, _ = make(layer, OPTIONS[layer])
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (
        module,
        lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False),
    ):
        torch.manual_seed(5)
        found.append(torch.autograd.grad(run(x)[0].pow(2).sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*found)

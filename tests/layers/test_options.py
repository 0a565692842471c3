"""Options together: under autocast, in copies, in graphs, and where there are none."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.backends import reference
from fused_rnn.convert import reason_to_leave
from tests.layers.small import OPTIONS, Asking, H, I, N, T, example, forward_sum, make
from tests.twins import LAYERS, leaves


@pytest.mark.parametrize("layer", LAYERS)
def test_options_under_autocast(layer):
    module = make(layer, torch.float32, num_layers=2, bidirectional=True, **OPTIONS)
    x = example(module, torch.float32)
    lengths, resets = torch.tensor([2, 5, 0]), torch.rand(T, N) < 0.3
    options = {"lengths": lengths, "resets": resets}
    y, state = module(x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        y_16, state_16, steps = module(x, return_states=True, **options)
        gates = module.gates(x, **options)
    assert y_16.dtype == leaves(steps)[0].dtype == torch.bfloat16
    bound = {"rtol": 0, "atol": 5e-2}
    torch.testing.assert_close(y_16.float(), y, **bound)
    torch.testing.assert_close([s.float() for s in leaves(state_16)], leaves(state), **bound)
    for name, gate in module.gates(x, **options).items():
        torch.testing.assert_close(gates[name].float(), gate, **bound)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_options_nothing_is_different(layer):
    module, plain = getattr(fused_rnn, layer)(I, H), getattr(nn, layer)(I, H)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert vars(module).keys() == vars(plain).keys()
    assert repr(module) == repr(plain)


@pytest.mark.parametrize("layer", LAYERS)
def test_options_are_shown(layer):
    module = getattr(fused_rnn, layer)(I, H, batch_first=True, **OPTIONS)
    assert repr(module) == (
        f"{layer}({I}, {H}, batch_first=True, learn_initial_state=True, recompute=True)"
    )
    with pytest.raises(TypeError, match="unexpected keyword argument 'learned'"):
        getattr(fused_rnn, layer)(I, H, learned=True)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
@pytest.mark.parametrize("layer", LAYERS)
def test_copies(layer, how):
    module = make(layer, **OPTIONS)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    elif how == "deepcopy":
        twin = copy.deepcopy(module)
    else:
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    assert repr(twin) == repr(module)
    x = example(module)
    torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)
    assert torch.autograd.grad(forward_sum(twin, x), twin.h0)[0].any()


def test_options_of_converted_layers():
    model = nn.Sequential(nn.LSTM(I, H))
    fused_rnn.convert(model)
    x, lengths = torch.randn(T, N, I), torch.tensor([2, 5, 0])
    y, _ = model[0](x, lengths=lengths)
    assert not y[2:, 0].any()
    model[0].recompute = True
    assert reason_to_leave(nn.LSTM(I, H)) is None
    fused_rnn.revert(model)
    assert type(model[0]) is nn.LSTM
    assert repr(model[0]) == "LSTM(3, 4)"
    fused_rnn.convert(model)
    assert repr(model[0]) == "LSTM(3, 4, recompute=True)"


def test_explain_names_what_ran():
    model = make("GRU", num_layers=2, **OPTIONS)
    rows = fused_rnn.explain(model, example(model), lengths=torch.tensor([1, 0, 5]))
    assert [(row.layer, row.direction) for row in rows] == [(0, "forward"), (1, "forward")]
    with fused_rnn.use_backend("reference"):
        rows = fused_rnn.explain(model, example(model), resets=torch.zeros(T, N, dtype=torch.bool))
    assert {row.backend for row in rows} == {reference.name}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_can_be_exported(layer, strict):
    module = make(layer, torch.float32, num_layers=2, **OPTIONS)
    batch = {"x": {1: torch.export.Dim("n", min=2, max=64)}}
    one = {"x": {0: torch.export.Dim("n", min=2, max=64)}}
    for model, x, more, dims in (
        (Asking(module, lambda layer, x: layer(x)), example(module, torch.float32), 7, batch),
        (Asking(module, lambda layer, x: layer.step(x)), torch.randn(N, I), 7, one),
    ):
        x = x.detach()
        exported = torch.export.export(model, (x,), dynamic_shapes=dims, strict=strict).module()
        for given in (x, torch.randn(*x.shape[:-2], more, I)):
            torch.testing.assert_close(leaves(exported(given)), leaves(model(given)))


def test_a_learned_state_and_recompute_stay_in_the_graph():
    module = make("GRU", torch.float32, **OPTIONS)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(T, N, I)
    expected = forward_sum(module, x)
    found = forward_sum(compiled, x)
    torch.testing.assert_close(found, expected)
    of = list(module.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, of), torch.autograd.grad(expected, of))

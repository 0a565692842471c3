"""learn_initial_state: where sequences begin."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.scans import stack
from tests.layers.small import H, I, N, T, example, make
from tests.twins import CONFIGURED, LAYERS, leaves, sequences, states


@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed", "step"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_learned_state_is_where_a_call_begins(layer, options, kind):
    module = make(layer, learn_initial_state=True, **options)
    x = example(module).detach()
    if kind == "unbatched" or (kind == "step" and module.bidirectional):
        x, n, run = x[0], None, module
    elif kind == "packed":
        x, n, run = sequences((4, 2, 5), I, enforce_sorted=False), 3, module
        x = x._replace(data=x.data.double())
    elif kind == "step":
        x, n, run = x.flatten(0, 1)[:N], N, module.step
    else:
        n, run = N, module
    learned = [module.h0, module.c0] if module.mode == "LSTM" else [module.h0]
    with torch.no_grad():
        hx = tuple(s[:, 0] if n is None else s.repeat(1, n, 1) for s in learned)
    results = run(x), run(x, hx if len(hx) > 1 else hx[0])
    torch.testing.assert_close(*(leaves(r) for r in results), rtol=0, atol=0)
    found = torch.autograd.grad(sum(t.pow(2).sum() for t in leaves(results[0])), learned)
    for s in hx:
        s.requires_grad_()
    again = run(x, hx if len(hx) > 1 else hx[0])
    expected = torch.autograd.grad(sum(t.pow(2).sum() for t in leaves(again)), hx)
    summed = [e.unsqueeze(1) if n is None else e.sum(1, keepdim=True) for e in expected]
    torch.testing.assert_close(list(found), summed)


@pytest.mark.parametrize("layer", LAYERS)
def test_learned_state_is_a_parameter(layer):
    torch.manual_seed(0)
    module = getattr(fused_rnn, layer)(I, H, 2, bidirectional=True, learn_initial_state=True)
    torch.manual_seed(0)
    plain = getattr(fused_rnn, layer)(I, H, 2, bidirectional=True)
    names = ["h0", "c0"] if layer == "LSTM" else ["h0"]
    assert list(module.state_dict()) == [*plain.state_dict(), *names]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)
    x = torch.randn(T, N, I)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)  # zeros at first
    with torch.no_grad():
        module.h0.fill_(1)
    module.reset_parameters()
    assert not any(getattr(module, name).any() for name in names)
    moved = getattr(fused_rnn, layer)(
        I, H, learn_initial_state=True, device="meta", dtype=torch.float64
    )
    assert (moved.h0.device.type, moved.h0.dtype) == ("meta", torch.float64)


def test_a_given_state_comes_before_the_learned_one():
    module = make("LSTM", learn_initial_state=True)
    plain = fused_rnn.LSTM(I, H).double()
    plain.load_state_dict(module.state_dict(), strict=False)
    x, hx = example(module), states(module, N, torch.float64)
    torch.testing.assert_close(module(x, hx), plain(x, hx), rtol=0, atol=0)


def test_wrong_input_gets_torchs_words():
    module = make("GRU", learn_initial_state=True)
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 4D instead"):
        module(torch.zeros(1, 1, 1, I))
    with pytest.raises(ValueError, match="RNN input dtype"):
        module(torch.zeros(T, N, I))


def test_torch_gets_a_learned_state_dense(monkeypatch):
    """As cuDNN wants it."""
    seen = []
    by_module, by_operator = nn.GRU.forward, stack.TORCH_LAYERS["gru"]

    def forward(self, input, hx):
        seen.append(hx.is_contiguous())
        return by_module(self, input, hx)

    def operator(x, hx, *others):
        seen.append(hx.is_contiguous())
        return by_operator(x, hx, *others)

    class Own(torch.Tensor):
        """Not a plain tensor."""

    monkeypatch.setattr(nn.GRU, "forward", forward)
    monkeypatch.setitem(stack.TORCH_LAYERS, "gru", operator)
    module = make("GRU", torch.float32, num_layers=2, learn_initial_state=True)
    x = torch.randn(T, N, I)
    module(x.as_subclass(Own))
    with fused_rnn.use_backend("torch"):
        module(x)
        fused_rnn.functional.gru(x, None, module.all_weights, initial_state=module.h0)
    assert seen == [True] * 3


def test_torch_has_no_learned_state():
    module = make("GRU", learn_initial_state=True)
    with pytest.raises(RuntimeError, match="which has no learned initial state"):
        torch.jit.script(module)
    said = []
    fused_rnn.revert(module, report=said.append)
    assert type(module) is fused_rnn.GRU
    assert "torch.nn has no learned initial state" in str(said[0])


def test_a_learned_initial_state_is_for_each_sequence_of_a_packed_input():
    module = make("LSTM", learn_initial_state=True)
    packed = sequences((2, 1, 1, 1), I, enforce_sorted=True)
    packed = packed._replace(data=packed.data.double())
    given = tuple(s.expand(-1, 4, -1).contiguous() for s in (module.h0, module.c0))
    torch.testing.assert_close(module(packed)[0].data, module(packed, given)[0].data)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_learned_state_in_a_state_dict_for_a_plain_layer(layer):
    learned = nn.Sequential(make(layer, learn_initial_state=True))
    plain = nn.Sequential(getattr(fused_rnn, layer)(I, H))
    keys = "0.h0, 0.c0" if layer == "LSTM" else "0.h0"
    hint = rf"learned initial state \({keys}\).*learn_initial_state=True"
    with pytest.warns(UserWarning, match=hint), pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(learned.state_dict())
    with pytest.warns(UserWarning, match=hint):
        plain.load_state_dict(learned.state_dict(), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.load_state_dict(learned.state_dict())
        plain.load_state_dict(plain.state_dict())
        # Another module's h0 is that module's business.
        with pytest.raises(RuntimeError, match="Unexpected key"):
            plain.load_state_dict(plain.state_dict() | {"h0": torch.zeros(1)})

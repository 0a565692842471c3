"""recompute: a forward for what the first one has not kept."""

from __future__ import annotations

import copy

import pytest
import torch

from fused_rnn.backends import native
from tests.layers.small import H, I, N, T, example, forward_sum, make
from tests.twins import CONFIGURED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "lengths"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_recomputed_gradients_are_bit_equal(layer, options, ragged, dtype):
    keeping = make(layer, dtype, **options)
    recomputing = copy.deepcopy(keeping)
    recomputing.recompute = True
    x = example(keeping, dtype)
    given = {"lengths": torch.tensor([2, 5, 4])} if ragged else {}
    found = []
    for module in (keeping, recomputing):
        torch.manual_seed(1)  # dropout's masks
        total = forward_sum(module, x, **given)
        found.append([total, *torch.autograd.grad(total, [x, *module.parameters()])])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_recomputing_keeps_nothing_but_operands_and_outputs():
    module = make("LSTM", torch.float32, num_layers=2, dropout=0.5)

    def kept_bytes():
        storages = {}

        def keep(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            output = module(torch.randn(64, 8, I))[0]
        assert output.requires_grad
        return sum(storages.values())

    before = kept_bytes()
    module.recompute = True
    kept, step = kept_bytes(), 64 * 8 * 4
    weights = sum(p.numel() * 4 for p in module.parameters())
    # x of both layers, the dropped output and its mask, y of both layers, final states.
    assert kept <= weights + step * (I + 4 * H) + 20 * 8 * H * 4
    assert before > kept + step * 2 * 4 * H


@pytest.mark.skipif(native.available() is not None, reason="there are no kernels to run again")
def test_the_forward_of_backward_is_one_in_training_mode(monkeypatch):
    seen = []
    run = native.forward

    def watched(*args):
        seen.append(args[-1])
        return run(*args)

    monkeypatch.setattr(native, "forward", watched)
    module = make("GRU", recompute=True, num_layers=2)
    forward_sum(module, example(module)).backward()
    assert seen == [False, False, True, True]


def test_recomputing_within_other_things():
    module = make("GRU", recompute=True)
    x = example(module)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)
    total = forward_sum(module, x)
    first = torch.autograd.grad(total, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, x), first, rtol=0, atol=0)
    with torch.autocast("cpu"):
        (inside,) = torch.autograd.grad(forward_sum(module, x), x)
    assert inside.dtype == torch.float64


def test_recompute_of_what_only_torch_runs():
    """No option that torch.nn's own forward would have to know of."""
    module = make("LSTM", torch.complex64, recompute=True)
    y, _ = module(torch.randn(T, N, I, dtype=torch.complex64))
    assert y.requires_grad

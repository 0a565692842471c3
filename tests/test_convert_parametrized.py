"""convert and revert on layers whose weights are computed from other parameters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_rnn
from fused_rnn.convert import Swap
from tests.tagger import CELLS, LAYERS, H, I, contents, run


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized(name: str, norm: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    weight = "weight_hh_l0" if name in LAYERS else "weight_hh"
    # In training mode spectral_norm changes its vectors whenever the weight is read.
    module = norm(getattr(nn, name)(I, H, dtype=torch.float64), weight).eval()
    old, before, expected = type(module), contents(module), run(module)
    expected.sum().backward()
    gradients = {key: p.grad.clone() for key, p in module.named_parameters()}
    module.zero_grad()

    swaps: list[Swap] = []
    fused_rnn.convert(module, report=swaps.append)
    assert [(s.old, s.new) for s in swaps] == [(old, type(module))]
    assert isinstance(module, getattr(fused_rnn, name))
    assert type(module).__name__ == old.__name__
    assert parametrize.type_before_parametrizations(module) is getattr(fused_rnn, name)
    assert set(gradients) == {key for key, _ in module.named_parameters()}
    got = run(module)
    torch.testing.assert_close(got, expected)
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(module)
    got.sum().backward()
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key])

    fused_rnn.revert(module)
    assert type(module) is old
    assert contents(module) == before


def test_parametrizations_changed_between() -> None:
    module = parametrizations.weight_norm(nn.LSTM(I, H, dtype=torch.float64), "weight_hh_l0")
    fused_rnn.convert(module)
    parametrizations.weight_norm(module, "weight_ih_l0")
    expected = run(module)
    fused_rnn.revert(module)
    assert parametrize.type_before_parametrizations(module) is nn.LSTM
    assert parametrize.is_parametrized(module, "weight_ih_l0")
    torch.testing.assert_close(run(module), expected)
    fused_rnn.convert(module)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parametrize.remove_parametrizations(module, name)
    assert type(module) is fused_rnn.LSTM
    torch.testing.assert_close(run(fused_rnn.revert(module)), expected)
    assert type(module) is nn.LSTM


def test_parametrized_copies_part_ways() -> None:
    module = parametrizations.weight_norm(nn.GRU(I, H, dtype=torch.float64), "weight_hh_l0")
    twin = copy.deepcopy(module)
    old, expected = type(twin), run(twin)
    fused_rnn.convert(module)
    assert type(twin) is old is not type(module)
    torch.testing.assert_close(run(copy.deepcopy(module)), expected)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    torch.testing.assert_close(run(twin), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_style_weight_norm() -> None:
    # A module with torch's old weight_norm can't be deep-copied.
    module, twin = nn.LSTM(I, H, dtype=torch.float64), nn.LSTM(I, H, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    for m in (module, twin):
        nn.utils.weight_norm(m, "weight_hh_l0")
    fused_rnn.convert(twin)
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)
        twin.weight_hh_l0_g.mul_(2)
    expected, got = run(module), run(twin)
    torch.testing.assert_close(got, expected)
    expected.sum().backward()
    got.sum().backward()
    torch.testing.assert_close(twin.weight_hh_l0_g.grad, module.weight_hh_l0_g.grad)
    torch.testing.assert_close(twin.weight_hh_l0_v.grad, module.weight_hh_l0_v.grad)
    nn.utils.remove_weight_norm(twin, "weight_hh_l0")
    torch.testing.assert_close(run(twin), expected)


def test_prune() -> None:
    module = nn.GRU(I, H, dtype=torch.float64)
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    expected = run(module)
    torch.testing.assert_close(run(fused_rnn.convert(module)), expected)

"""quantize and dequantize: what they swap, what they leave, and that they undo each other."""

from __future__ import annotations

import io
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn
from fused_rnn.convert import Swap
from tests.tagger import CELLS, LAYERS, H, I, N, T, tagger
from tests.twins import leaves


@pytest.mark.parametrize("source", [nn, fused_rnn], ids=["torch", "ours"])
@pytest.mark.parametrize("layer", LAYERS)
def test_there_and_back(layer, source):
    module = getattr(source, layer)(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, N, I)
    before, shown = leaves(module(x)), repr(module)
    parameters = dict(module.named_parameters())
    assert fused_rnn.quantize(module, keep=True) is module
    assert type(module) is getattr(fused_rnn, f"Quantized{layer}")
    assert list(module.parameters()) == []
    assert isinstance(module, getattr(nn, layer))
    assert fused_rnn.dequantize(module) is module
    assert type(module) is getattr(source, layer)
    assert repr(module) == shown
    assert list(module.buffers()) == []
    assert [id(p) for p in module.parameters()] == [id(p) for p in parameters.values()]
    assert list(module.state_dict()) == list(parameters)
    torch.testing.assert_close(leaves(module(x)), before, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_whole_layers_are_loaded_safely(layer):
    module = fused_rnn.quantize(getattr(nn, layer)(I, H))
    torch.save(module, file := io.BytesIO())
    file.seek(0)
    with torch.serialization.safe_globals(fused_rnn.safe_globals()):
        twin = torch.load(file, weights_only=True)
    x = torch.randn(T, N, I)
    torch.testing.assert_close(leaves(twin(x)), leaves(module(x)), rtol=0, atol=0)


def test_options_come_back():
    module = fused_rnn.LSTM(I, H, learn_initial_state=True, recompute=True)
    shown, keys = repr(module), list(module.state_dict())
    fused_rnn.quantize(module, keep=True)
    assert "recompute" not in repr(module)
    fused_rnn.dequantize(module)
    assert repr(module) == shown
    assert list(module.state_dict()) == keys


@pytest.mark.parametrize(("dtype", "share"), [(torch.int8, 0.3), (torch.bfloat16, 0.51)])
def test_the_sizes(dtype, share):
    module = nn.LSTM(256, 256)
    floats = sum(p.nbytes for p in module.parameters())
    fused_rnn.quantize(module, dtype=dtype)
    assert sum(b.nbytes for b in module.buffers()) < share * floats
    assert vars(module).get("_fused_rnn_float") is None


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_and_its_report(layer):
    model = tagger(layer).float()
    x = torch.randn(T, N, I)
    with torch.no_grad():
        before, swaps = model(x), []
        fused_rnn.quantize(model, keep=True, report=swaps.append)
        assert {s.name: s.new is not None for s in swaps} == {
            "encoder.0": True, "middle.0": True, "steps.cell": False,
        }  # fmt: skip
        assert "layers alone" in str(swaps[-1])
        assert model.again is model.middle[0]
        after = model(x)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, before, rtol=0, atol=0.02)
        swaps.clear()
        fused_rnn.dequantize(model, report=swaps.append)
        assert len(swaps) == 2
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)


class Own(nn.LSTM):
    """A user's own layer."""


def weight_normed():
    return parametrizations.weight_norm(nn.LSTM(I, H), "weight_hh_l0")


def not_finite():
    module = nn.GRU(I, H)
    with torch.no_grad():
        module.weight_hh_l0[1, 1] = torch.inf
    return module


def replaced():
    module = nn.GRU(I, H)
    module.forward = lambda x: x
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        *((lambda c=c: getattr(nn, c)(I, H), "a cell") for c in CELLS),
        (lambda: Own(I, H), "a class of its own"),
        (weight_normed, "remove_parametrizations"),
        (not_finite, "not finite"),
        (replaced, "its forward was replaced"),
        (lambda: nn.LSTM(I, H, dtype=torch.float64), r"torch\.float64"),
        (lambda: nn.LSTM(I, H, device="meta"), "have values"),
        (lambda: fused_rnn.quantize(nn.LSTM(I, H)), "quantized already"),
    ],
)
def test_left_alone(make, reason):
    module = make()
    cls, keys = type(module), list(module.state_dict())
    swaps: list[Swap] = []
    fused_rnn.quantize(module, report=swaps.append)
    assert type(module) is cls
    assert list(module.state_dict()) == keys
    assert swaps[0].new is None
    assert re.search(reason, str(swaps[0]))


def test_what_was_not_kept_stays_quantized():
    module = fused_rnn.quantize(nn.LSTM(I, H))
    swaps: list[Swap] = []
    fused_rnn.dequantize(module, report=swaps.append)
    assert type(module) is fused_rnn.QuantizedLSTM
    assert "keep=True" in str(swaps[0])


def test_convert_and_revert_leave_a_quantized_layer():
    module = fused_rnn.quantize(nn.LSTM(I, H))
    for swap in (fused_rnn.convert, fused_rnn.revert):
        swaps: list[Swap] = []
        swap(module, report=swaps.append)
        assert type(module) is fused_rnn.QuantizedLSTM
        assert "dequantize" in str(swaps[0])


@pytest.mark.parametrize("run", [fused_rnn.quantize, fused_rnn.dequantize])
def test_arguments(run):
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got: int"):
        run(3)
    with pytest.raises(TypeError, match="report should be"):
        run(nn.LSTM(I, H), report=3)


def test_arguments_of_quantize():
    with pytest.raises(TypeError, match="keep should be of type bool, got: int"):
        fused_rnn.quantize(nn.LSTM(I, H), keep=1)
    with pytest.raises(ValueError, match=r"dtype should be torch\.int8 or torch\.bfloat16, got"):
        fused_rnn.quantize(nn.LSTM(I, H), dtype=torch.float16)

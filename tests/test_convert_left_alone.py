"""convert and revert: what they leave alone, what they say about it, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fused_rnn
from fused_rnn.convert import Swap
from tests.tagger import H, I, N, T, tagger


class Louder(nn.LSTM):
    """A user's own layer."""

    def forward(self, *args: Tensor) -> Any:
        out, state = super().forward(*args)
        return 2 * out, state


class OwnGRU(fused_rnn.GRU):
    """A user's own layer on ours."""


def patched() -> nn.Module:
    module = nn.LSTM(I, H)
    old_forward = module.forward
    module.forward = lambda *args: old_forward(*args)
    return module


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(I, H)), {nn.LSTM})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("", lambda: Louder(I, H), "a class of its own"),
        (
            "",
            lambda: parametrizations.weight_norm(Louder(I, H), "weight_hh_l0"),
            "a class of its own",
        ),
        ("", lambda: OwnGRU(I, H), "a class of its own"),
        ("", patched, "forward was replaced"),
        ("0", lambda: torch.jit.script(nn.Sequential(nn.GRU(I, H))), "TorchScript"),
        ("", lambda: torch.jit.trace(nn.LSTM(I, H), torch.zeros(T, N, I)), "TorchScript"),
        ("0", quantized, "quantized"),
    ],
    ids=["own", "parametrized", "on ours", "patched", "scripted", "traced", "quantized"],
)
def test_left_alone_and_reported(name: str, make: Callable[[], nn.Module], why: str) -> None:
    model = make()
    x, module = torch.rand(T, N, I), dict(model.named_modules())[name]
    old, expected = type(module), model(x)
    attributes = {key: id(value) for key, value in vars(module).items()}
    swaps: list[Swap] = []
    fused_rnn.convert(model, report=swaps.append)
    fused_rnn.revert(model, report=swaps.append)
    assert [(s.name, s.old, s.new) for s in swaps] == [(name, old, None)] * 2
    assert why in swaps[0].reason
    assert swaps[0].reason in str(swaps[0])
    assert type(module) is old
    assert {key: id(value) for key, value in vars(module).items()} == attributes
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_report_reads_as_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = parametrizations.weight_norm(nn.GRU(I, H), "weight_hh_l0")
    model = nn.ModuleDict({"a": nn.LSTM(I, H), "b": wrapped, "c": Louder(I, H)})
    fused_rnn.convert(model, report=print)
    fused_rnn.convert(nn.RNNCell(I, H), report=print)
    assert capsys.readouterr().out.splitlines() == [
        "a: torch.nn.LSTM became fused_rnn.LSTM.",
        "b: torch.nn.GRU (parametrized) became fused_rnn.GRU (parametrized).",
        f"c: {__name__}.Louder was left alone: "
        "it is a class of its own, whose code a swap would lose.",
        "the model itself: torch.nn.RNNCell became fused_rnn.RNNCell.",
    ]


@pytest.mark.parametrize("swap", [fused_rnn.convert, fused_rnn.revert])
def test_true_prints(swap: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.LSTM(I, H), fused_rnn.GRU(I, H))
    shown = copy.deepcopy(model)
    swap(shown, report=print)
    expected = capsys.readouterr().out
    assert expected.count("\n") == 2
    swap(copy.deepcopy(model), report=False)
    assert capsys.readouterr().out == ""
    swap(model, report=True)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("report", ["print", 1, [], {}], ids=repr)
def test_what_is_no_report_changes_nothing(report: object) -> None:
    model = nn.Sequential(nn.LSTM(I, H), fused_rnn.GRU(I, H))
    for swap in (fused_rnn.convert, fused_rnn.revert):
        with pytest.raises(TypeError, match=r"^report should be a function or True, got: "):
            swap(model, report=report)
        assert [type(m) for m in model] == [nn.LSTM, fused_rnn.GRU]


def test_a_report_that_raises_leaves_no_half() -> None:
    model = tagger("LSTM")
    with pytest.raises(KeyError, match="encoder"):
        fused_rnn.convert(model, report=lambda swap: {}[swap.name])
    assert type(model.steps["cell"]) is fused_rnn.LSTMCell


@pytest.mark.parametrize("what", [None, nn.LSTM, "model", [nn.LSTM(I, H)]])
def test_not_a_module(what: Any) -> None:
    for function in (fused_rnn.convert, fused_rnn.revert):
        with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got: \w+"):
            function(what)

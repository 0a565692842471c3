"""convert and revert: what they swap, keep and leave alone, and that they undo each other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_rnn
from fused_rnn.convert import Swap

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
I, H, N, T = 3, 4, 2, 5  # noqa: E741


def run(module: nn.Module, x: Tensor | None = None) -> Tensor:
    """Return the module's output on (T, N, I) input; a cell's on its first step."""
    generator = torch.Generator().manual_seed(7)
    if x is None:
        x = torch.rand(T, N, I, generator=generator, dtype=torch.float64)
    out = module(x if hasattr(module, "num_layers") else x[0])
    return out[0] if isinstance(out, tuple) else out


class Tagger(nn.Module):
    """A user's model: layers and a cell in each kind of container, one of them used twice."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[layer]
        make = getattr(nn, layer)
        self.encoder = nn.Sequential(make(I, H, num_layers=2, bidirectional=True))
        self.middle = nn.ModuleList([make(2 * H, H), nn.Dropout(0.0)])
        self.again = self.middle[0]
        self.steps = nn.ModuleDict({"cell": cell(H, 2 * H)})
        self.out = nn.Linear(2 * H, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.encoder(x)
        x, _ = self.middle[0](x)
        x, _ = self.again(torch.cat([x, x], -1))
        state = None
        for row in x:
            state = self.steps["cell"](row, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


def tagger(layer: str) -> Tagger:
    torch.manual_seed(0)
    return Tagger(layer).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.rand(T, N, I, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def contents(model: nn.Module) -> dict[str, tuple[type, set[str]]]:
    """Return each module's type and attributes."""
    return {name: (type(m), set(vars(m))) for name, m in model.named_modules()}


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_root_of_each_type(name: str, training: bool) -> None:
    module = getattr(nn, name)(I, H, dtype=torch.float64).train(training)
    module.bias_hh_l0.requires_grad_(False) if name in LAYERS else None
    before, parameters = run(module), dict(module.named_parameters())
    state, shown = module.state_dict(), repr(module)

    assert fused_rnn.convert(module) is module
    assert type(module) is getattr(fused_rnn, name)
    assert module.training is training
    assert repr(module) == shown
    for key, parameter in module.named_parameters():
        assert parameter is parameters[key]
    assert list(module.state_dict()) == list(state)
    assert module.state_dict()._metadata == state._metadata
    torch.testing.assert_close(run(module), before)

    assert fused_rnn.revert(module) is module
    assert type(module) is getattr(nn, name)
    torch.testing.assert_close(run(module), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True},
        {"bias": False},
    ],
)
def test_options_survive(options: dict[str, Any]) -> None:
    module = nn.LSTM(I, H, dtype=torch.float64, **options)
    before, shown = run(module), repr(module)
    fused_rnn.convert(module)
    assert repr(module) == shown
    torch.testing.assert_close(run(module), before)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("name", ["RNN", "RNNCell"])
def test_nonlinearity_survives(name: str, nonlinearity: str) -> None:
    module = getattr(nn, name)(I, H, nonlinearity=nonlinearity, dtype=torch.float64)
    before = run(module)
    torch.testing.assert_close(run(fused_rnn.convert(module)), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_survives(dtype: torch.dtype) -> None:
    module = fused_rnn.convert(nn.LSTM(I, H, dtype=dtype))
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert module(torch.zeros(T, N, I, dtype=dtype))[0].dtype == dtype


@pytest.mark.parametrize("layer", LAYERS)
def test_nested_and_tied(layer: str) -> None:
    model = tagger(layer)
    before, x = {name: id(m) for name, m in model.named_modules()}, torch.rand(T, N, I).double()
    expected, swaps = model(x), []
    assert fused_rnn.convert(model, report=swaps.append) is model
    assert [s.name for s in swaps] == ["encoder.0", "middle.0", "steps.cell"]
    assert all(s.new is type(model.get_submodule(s.name)) and s.reason is None for s in swaps)
    assert [s.new.__module__.partition(".")[0] for s in swaps] == ["fused_rnn"] * 3
    assert {name: id(m) for name, m in model.named_modules()} == before
    assert model.again is model.middle[0]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_training_goes_on_along_the_same_curve(layer: str, optimizer: Any) -> None:
    model, twin = tagger(layer), tagger(layer)
    ours, theirs = (optimizer(m.parameters(), lr=0.05) for m in (model, twin))
    assert train(model, ours, 3, seed=1) == train(twin, theirs, 3, seed=1)
    fused_rnn.convert(model)
    during = train(model, ours, 8, seed=2), train(twin, theirs, 8, seed=2)
    fused_rnn.revert(model)
    after = train(model, ours, 3, seed=3), train(twin, theirs, 3, seed=3)
    torch.testing.assert_close(during[0], during[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(after[0], after[1], rtol=1e-9, atol=0)
    assert len(set(during[0])) == len(set(after[0])) + 5 == 8
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-7, atol=1e-9)


def test_hooks_survive() -> None:
    module, calls = nn.GRU(I, H, dtype=torch.float64), []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    module.register_forward_pre_hook(note("forward_pre"))
    module.register_forward_hook(note("forward"))
    module.register_full_backward_pre_hook(note("backward_pre"))
    module.register_full_backward_hook(note("backward"))
    module.register_state_dict_pre_hook(note("state_dict_pre"))
    module.register_state_dict_post_hook(note("state_dict"))
    module.register_load_state_dict_pre_hook(note("load_pre"))
    module.register_load_state_dict_post_hook(note("load"))
    fused_rnn.convert(module)
    run(module, torch.rand(T, N, I).double().requires_grad_()).sum().backward()
    assert calls == ["forward_pre", "forward", "backward_pre", "backward"]
    module.load_state_dict(module.state_dict())
    assert calls[4:] == ["state_dict_pre", "state_dict", "load_pre", "load"]


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


@pytest.mark.parametrize("layer", LAYERS)
def test_twice_is_harmless(layer: str) -> None:
    model, swaps = tagger(layer), []
    before = contents(model)
    fused_rnn.revert(model, report=swaps.append)
    assert contents(model) == before
    fused_rnn.convert(model)
    during = contents(model)
    fused_rnn.convert(model, report=swaps.append)
    assert contents(model) == during
    assert [s.new for s in swaps] == [None] * 6
    assert [s.reason for s in swaps] == ["it is of torch.nn already"] * 3 + [
        "it is of fused_rnn already"
    ] * 3


@pytest.mark.parametrize("layer", LAYERS)
def test_revert_is_exact(layer: str) -> None:
    model = tagger(layer)
    parametrizations.weight_norm(model.middle[0], "weight_ih_l0")
    before, state = contents(model), copy.deepcopy(model.state_dict())
    x = torch.rand(T, N, I).double()
    expected = model(x)
    fused_rnn.convert(model)
    model(x).sum().backward()
    fused_rnn.revert(model)
    assert contents(model) == before
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_revert_of_layers_built_fused() -> None:
    model = nn.Sequential(
        fused_rnn.LSTM(I, H), parametrizations.weight_norm(fused_rnn.GRU(I, H), "weight_hh_l0")
    )
    fused_rnn.revert(model)
    assert type(model[0]) is nn.LSTM
    assert parametrize.type_before_parametrizations(model[1]) is nn.GRU


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_of_a_converted_model(layer: str, how: str) -> None:
    model = fused_rnn.convert(tagger(layer))
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert {name: type(m) for name, m in twin.named_modules()} == {
        name: type(m) for name, m in model.named_modules()
    }
    x = torch.rand(T, N, I).double()
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    fused_rnn.revert(twin)
    assert type(twin.middle[0]) is getattr(nn, layer)
    assert type(model.middle[0]) is getattr(fused_rnn, layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_state_dicts_go_both_ways(layer: str) -> None:
    plain, ours = tagger(layer), fused_rnn.convert(tagger(layer))
    for p in ours.parameters():
        nn.init.normal_(p)
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(T, N, I).double()
    torch.testing.assert_close(plain(x), ours(x))
    other = tagger(layer)
    ours.load_state_dict(other.state_dict())
    torch.testing.assert_close(ours(x), other(x))


def test_data_parallel_names() -> None:
    swaps: list[Swap] = []
    model = fused_rnn.convert(nn.DataParallel(tagger("LSTM")), report=swaps.append)
    assert swaps[0].name == "module.encoder.0"
    assert type(model.module.middle[0]) is fused_rnn.LSTM


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_distributed_data_parallel() -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        swaps: list[Swap] = []
        model, twin = nn.parallel.DistributedDataParallel(tagger("GRU")), tagger("GRU")
        fused_rnn.convert(model, report=swaps.append)
        assert swaps[0].name == "module.encoder.0"
        ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        torch.testing.assert_close(train(model, ours, 3, seed=1), train(twin, theirs, 3, seed=1))
    finally:
        torch.distributed.destroy_process_group()


def test_graph_module() -> None:
    model = torch.fx.symbolic_trace(tagger("LSTM").encoder)
    x = torch.rand(T, N, I).double()
    expected = model(x)[0]
    fused_rnn.convert(model)
    assert type(model.get_submodule("0")) is fused_rnn.LSTM
    torch.testing.assert_close(model(x)[0], expected)


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

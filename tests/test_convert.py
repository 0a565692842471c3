"""convert and revert: what they swap, what they keep, and that they undo each other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fused_rnn
from fused_rnn.backends import record
from fused_rnn.convert import Swap
from tests.tagger import CELLS, LAYERS, H, I, N, T, contents, run, tagger, train


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_root_of_each_type(name: str, training: bool, device: str) -> None:
    module = getattr(nn, name)(I, H, dtype=torch.float64, device=device).train(training)
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
    with record() as ran:
        torch.testing.assert_close(run(module), before)
    assert len(ran) == 1

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
def test_options_survive(options: dict[str, Any], device: str) -> None:
    module = nn.LSTM(I, H, dtype=torch.float64, device=device, **options)
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
def test_training_goes_on_along_the_same_curve(layer: str, optimizer: Any, device: str) -> None:
    model, twin = tagger(layer).to(device), tagger(layer).to(device)
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


@pytest.mark.parametrize("how", ["torch.compile", "Module.compile"])
def test_compiled_model(how: str) -> None:
    torch.compiler.reset()
    model = tagger("GRU").encoder
    x = torch.rand(T, N, I).double()
    scans: list[torch.fx.Node] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        scans.extend(n for n in graph.graph.nodes if n.target is torch.ops.fused_rnn.layer_forward)
        return graph.forward

    if how == "torch.compile":
        compiled = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
        compiled = model
    expected = compiled(x)[0]
    assert not scans
    fused_rnn.convert(compiled)
    torch.testing.assert_close(compiled(x)[0], expected)
    assert len(scans) == 4  # of two layers, both directions
    scans.clear()
    fused_rnn.revert(compiled)
    torch.testing.assert_close(compiled(x)[0], expected, rtol=0, atol=0)
    assert not scans

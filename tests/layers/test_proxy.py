"""A layer passes for an instance of torch.nn's: for isinstance, and for what goes by __class__."""

from __future__ import annotations

import abc
import copy
import functools
import inspect
import io
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fused_rnn
from tests.twins import CELLS, LAYERS, MODULES, example, first

T, N, I, H = 5, 2, 3, 6  # noqa: E741


class Mine(fused_rnn.LSTM):
    """A user's own layer, of a class that keeps a list of those derived from it."""

    label = "mine"
    derived: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Mine.derived.append(cls)

    def clone(self) -> Mine:
        return self.__class__(self.input_size, self.hidden_size)


class Abstract(fused_rnn.GRU, abc.ABC):
    """A user's own layer whose class has a metaclass."""


KINDS = [
    pytest.param(fused_rnn.LSTM, nn.LSTM, id="LSTM"),
    pytest.param(fused_rnn.GRU, nn.GRU, id="GRU"),
    pytest.param(fused_rnn.RNN, nn.RNN, id="RNN"),
    pytest.param(Mine, nn.LSTM, id="subclass"),
    pytest.param(Abstract, nn.GRU, id="metaclass"),
]


def halved(module: nn.Module, name: str) -> None:
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    parametrize.register_parametrization(module, name, Half())


@pytest.mark.parametrize("name", MODULES)
def test_a_converted_module_is_initialised_by_its_type(name):
    model = fused_rnn.convert(nn.Sequential(getattr(nn, name)(I, H)))

    def initialise(module):
        if isinstance(module, getattr(nn, name)):
            for parameter in module.parameters():
                nn.init.constant_(parameter, 0.5)

    model.apply(initialise)
    assert all(bool((p == 0.5).all()) for p in model.parameters())
    others = [other for other in LAYERS + CELLS if other != name]
    assert not any(isinstance(model[0], getattr(nn, other)) for other in others)


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_is_of_its_own_class_and_torchs(ours, theirs):
    layer = ours(I, H)
    assert type(layer) is ours
    assert not issubclass(ours, theirs)  # which TorchDynamo would refuse
    for cls in (ours, theirs, nn.RNNBase, nn.Module):
        assert isinstance(layer, cls)
        assert issubclass(layer.__class__, cls)
    assert layer.__class__ == ours
    assert {ours: 1}[layer.__class__] == 1
    assert layer.__class__.__name__ == ours.__name__
    assert repr(layer).startswith(f"{ours.__name__}(")
    assert isinstance(ours(I, H), layer.__class__)
    assert not isinstance(nn.Linear(2, 2), layer.__class__)
    assert pickle.loads(pickle.dumps(layer.__class__)) == ours

    @functools.singledispatch
    def dispatch(module):
        return "something else"

    dispatch.register(theirs, lambda module: "torch.nn's")
    assert dispatch(layer) == "torch.nn's"


def test_a_class_of_the_user_is_seen_whole():
    Mine.derived.clear()  # sharding derives from it too, in tests that may have run before
    layer = Mine(I, H)
    assert layer.__class__.label == "mine"
    assert type(layer.clone()) is Mine
    assert isinstance(layer, fused_rnn.LSTM(I, H).__class__)
    assert not isinstance(fused_rnn.LSTM(I, H), layer.__class__)
    assert Mine.derived == []

    class Further(layer.__class__):
        def forward(self, *args, **kwargs):
            output, state = super().forward(*args, **kwargs)
            return 2 * output, state

    assert Further.__bases__ == (Mine,)
    assert Mine.derived == [Further]
    Mine.derived.clear()
    further, x = Further(I, H), torch.randn(T, N, I)
    assert isinstance(further, nn.LSTM)
    further.load_state_dict(layer.state_dict())
    torch.testing.assert_close(further(x)[0], 2 * layer(x)[0])


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_parametrized_and_back(ours, theirs, compiled):
    layer, x = ours(I, H), torch.randn(T, N, I)
    before = layer(x)[0]
    halved(layer, "weight_hh_l0")
    halved(layer, "bias_ih_l0")
    assert isinstance(layer, theirs)
    assert isinstance(layer, ours)
    assert parametrize.type_before_parametrizations(layer) is ours
    assert type(layer).__module__ == parametrize.__name__
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    torch.compiler.reset()
    run = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    during = run(x)[0]
    assert not torch.equal(before, during)
    torch.testing.assert_close(twin(x)[0], during)
    for name in ("weight_hh_l0", "bias_ih_l0"):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
    assert type(layer) is ours
    assert isinstance(layer, theirs)
    torch.testing.assert_close(layer(x)[0], before)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_sharded_and_replicated(ours, theirs):
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.fsdp import FSDPModule, fully_shard

    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, mesh = torch.randn(T, N, I), dist.init_device_mesh("cpu", (1,))
        for wrap in (lambda m: fully_shard(m, mesh=mesh), replicate):
            layer = ours(I, H)
            expected = layer(x)[0]
            wrap(layer)
            assert all(isinstance(layer, cls) for cls in (ours, theirs))
            assert not issubclass(type(layer), theirs)
            torch.testing.assert_close(layer(x)[0], expected)
        assert not isinstance(layer, FSDPModule)
        assert isinstance(fully_shard(ours(I, H), mesh=mesh), FSDPModule)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_a_compiled_program_asks(ours, theirs):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ours(I, H)

        def forward(self, x):
            output, state = self.rnn(x)
            if isinstance(self.rnn, nn.LSTM):
                state = state[0]
            return output + len(self.rnn.__class__.__name__), state

    torch.compiler.reset()
    model, x = Model(), torch.randn(T, N, I)
    expected = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(x), expected)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_with_every_protocol(name, protocol):
    module = getattr(fused_rnn, name)(I, H)
    twin = pickle.loads(pickle.dumps(module, protocol=protocol))
    assert type(twin) is type(module)
    x = example(name)
    torch.testing.assert_close(first(twin(x)), first(module(x)), rtol=0, atol=0)


def test_a_layer_pickled_before_there_were_proxies():
    layer = Mine(I, H)
    _, (cls,), state, *_ = layer.__reduce_ex__(2)
    twin = cls.__new__(cls)  # what the opcode NEWOBJ does
    twin.__setstate__(copy.deepcopy(state))
    x = torch.randn(T, N, I)
    assert type(twin) is Mine
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_whole_models_load_with_weights_only(name):
    options = {} if name in CELLS else {"num_layers": 2, "learn_initial_state": True}
    model = nn.Sequential(getattr(fused_rnn, name)(I, H, **options))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([*fused_rnn.safe_globals(), nn.Sequential]):
        assert not torch.serialization.get_unsafe_globals_in_checkpoint(file)
        file.seek(0)
        again = torch.load(file, weights_only=True)
    assert type(again[0]) is type(model[0])
    x = example(name)
    torch.testing.assert_close(first(again(x)), first(model(x)), rtol=0, atol=0)


def test_a_class_that_was_put_aside_and_back():
    layer, x = fused_rnn.LSTM(I, H), torch.randn(T, N, I)
    before, expected = layer.__class__, layer(x)
    layer.__class__ = nn.LSTM
    assert type(layer) is nn.LSTM
    layer.__class__ = before
    assert isinstance(layer, nn.LSTM)
    assert layer.__class__ is before
    assert type(layer) is fused_rnn.LSTM
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in MODULES if name != "RNN"])
def test_quantization_that_leaves_it_as_it_is_says_so(name):
    model = fused_rnn.convert(nn.Sequential(getattr(nn, name)(I, H)))
    quantize = torch.ao.quantization.quantize_dynamic
    with pytest.warns(UserWarning, match=rf"leaves a fused_rnn.{name} in floating point.*revert"):
        quantize(model, {getattr(nn, name)})
    quantized = quantize(fused_rnn.revert(model), {getattr(nn, name)})
    assert type(quantized[0]).__module__.startswith("torch.ao.nn.quantized")


def test_a_class_that_was_pickled_by_its_value():
    """As cloudpickle does, which takes the proxy for the class itself."""

    class Mine(fused_rnn.LSTM):
        pass

    Mine._fused_rnn_proxy = Mine._own = Mine
    assert isinstance(Mine(3, 4), nn.LSTM)


def test_a_constructor_of_another_base_gets_the_arguments():
    class Counted:
        def __new__(cls, *args):
            made = super().__new__(cls)
            made.__dict__["given"] = args
            return made

    class Mine(fused_rnn.LSTM, Counted):
        pass

    assert Mine(3, 4).given == (3, 4)


def test_the_stand_in_has_the_signature():
    assert inspect.signature(fused_rnn.GRU(3, 4).__class__) == inspect.signature(fused_rnn.GRU)

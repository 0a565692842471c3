"""What inspect.signature, and so an editor, shows of the layers and cells; and what goes by it."""

import inspect
from inspect import Parameter

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.layers.varied import OPTIONS
from tests.twins import CELLS, LAYERS, MODULES

OURS = {"learn_initial_state": False, "recompute": False}
# Those that make a variant, without those that the layer's cell has not.
VARIED = {
    "LSTM": {k: v for k, v in OPTIONS.items() if k != "reset_after"},
    "GRU": {
        k: v
        for k, v in OPTIONS.items()
        if k not in ("use_peepholes", "input_forget", "cell_clip", "proj_clip")
    },
    "RNN": {
        k: OPTIONS[k]
        for k in ("recurrent_dropout", "zoneout", "layer_norm", "norm_eps", "num_heads")
    },
}
VARIED |= {
    f"{k}Cell": {n: v for n, v in of.items() if n != "proj_clip"} for k, of in VARIED.items()
}


def documented(name):
    """Return the arguments that torch.nn documents, in its order, and their defaults."""
    required = {"input_size": Parameter.empty, "hidden_size": Parameter.empty}
    nonlinearity = {"nonlinearity": "tanh"}
    tail = {"device": None, "dtype": None}
    if name in CELLS:
        return required | {"bias": True} | (nonlinearity if name == "RNNCell" else {}) | tail
    return (
        required
        | {"num_layers": 1}
        | (nonlinearity if name == "RNN" else {})
        | {"bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        | ({"proj_size": 0} if name == "LSTM" else {})
        | tail
    )


@pytest.mark.parametrize("name", MODULES)
def test_constructors_show_every_argument(name):
    shown = inspect.signature(getattr(fused_rnn, name)).parameters
    ours = (OURS if name in LAYERS else {}) | VARIED[name]
    expected = documented(name) | ours
    assert {key: p.default for key, p in shown.items()} == expected
    assert list(shown) == list(expected)
    for key, p in shown.items():
        assert p.kind is (Parameter.KEYWORD_ONLY if key in ours else p.POSITIONAL_OR_KEYWORD)
        # A type and not its name, so that it need not be looked up.
        assert p.annotation is not Parameter.empty
        assert not isinstance(p.annotation, str)


@pytest.mark.parametrize("name", MODULES)
def test_methods_show_every_argument(name):
    module = getattr(fused_rnn, name)
    for method in ("forward", *(("step", "gates") if name in LAYERS else ())):
        signature = inspect.signature(getattr(module, method))
        assert signature.return_annotation is not Parameter.empty
        for key, p in list(signature.parameters.items())[1:]:
            assert p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
            assert p.annotation is not Parameter.empty, key


@pytest.mark.parametrize("name", MODULES)
def test_arguments_stand_where_they_are_documented_to(name):
    given = {"num_layers": 2, "nonlinearity": "relu", "bias": False, "batch_first": True}
    given |= {"input_size": 3, "hidden_size": 4, "dropout": 0.25, "bidirectional": True}
    given |= {"proj_size": 2, "device": "meta", "dtype": torch.float64}
    arguments = {key: given[key] for key in documented(name)}
    module = getattr(fused_rnn, name)
    by_place, by_name = module(*arguments.values()), module(**arguments)
    assert repr(by_place) == repr(by_name)
    for a, b in zip(by_place.parameters(), by_name.parameters(), strict=True):
        assert (a.device.type, a.dtype, a.shape) == ("meta", torch.float64, b.shape)
        assert (b.device.type, b.dtype) == ("meta", torch.float64)
    for key, value in given.items():
        if key in arguments and key not in ("device", "dtype"):
            assert getattr(by_place, key) == value


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_places_that_torch_has_for_something_else(name):
    module = getattr(fused_rnn, name)
    arguments = list(documented(name).values())[2:]
    with pytest.raises(TypeError, match=r"but .* were given"):
        module(3, 4, *arguments, 2)
    with pytest.raises(TypeError, match="multiple values for argument 'device'"):
        module(3, 4, *arguments[:-1], device="cpu")
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        module(3, 4, *arguments, foo=1)


@pytest.mark.parametrize("name", MODULES)
def test_skip_init(name):
    module = nn.utils.skip_init(getattr(fused_rnn, name), 3, 4, dtype=torch.float64)
    like = getattr(nn, name)(3, 4)
    assert [p.shape for p in module.parameters()] == [p.shape for p in like.parameters()]
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("cpu", torch.float64)}


@pytest.mark.parametrize("name", MODULES)
def test_a_subclass_with_a_constructor_of_its_own(name):
    base = getattr(fused_rnn, name)

    class Named(base):
        def __init__(self, label, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.label = label

    torch.manual_seed(1)
    module = Named("encoder", 3, hidden_size=4)
    torch.manual_seed(1)
    plain = base(3, 4)
    assert module.label == "encoder"
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=0)

"""Layers of Keras and nodes of ONNX as layers here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fused_rnn

T, N, I, H = 4, 3, 2, 5  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def model_of(kind, directions=1, bias=True, peepholes=False, **attributes):
    """Return a model of one node with random weights."""
    rng, rows = np.random.default_rng(0), GATES[kind] * H

    def draw(*shape):
        return rng.normal(size=shape).astype("float32")

    arrays = {"W": draw(directions, rows, I), "R": draw(directions, rows, H)}
    if bias:
        arrays["B"] = draw(directions, 2 * rows)
    if peepholes:
        arrays["P"] = draw(directions, 3 * H)
    inputs = ["x", "W", "R", "B" if bias else "", "", "", "", "P" if peepholes else ""]
    if directions > 1:
        attributes["direction"] = "bidirectional"
    inputs = inputs if kind == "LSTM" else inputs[:4]
    node = helper.make_node(kind, inputs, ["y"], name="rnn", hidden_size=H, **attributes)
    graph = helper.make_graph(
        [node],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, N, I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, directions, N, H])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


HARD = ["HardSigmoid", "Relu"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"directions": 2, "peepholes": True}),
        ("LSTM", {"input_forget": 1, "peepholes": True}),
        ("LSTM", {"bias": False, "activations": [*HARD, "Relu"]}),
        (
            "LSTM",
            {
                "input_forget": 1,
                "activations": ["HardSigmoid", "Tanh", "Tanh"],
                "activation_alpha": [0.3],
                "activation_beta": [0.5],
            },
        ),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"directions": 2, "linear_before_reset": 0}),
        ("GRU", {"activations": HARD, "activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("RNN", {}),
        ("RNN", {"activations": ["Relu"]}),
    ],
)
def test_onnx(kind, options, tmp_path):
    model = model_of(kind, **options)
    x = torch.randn(T, N, I)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    expected = expected.transpose(1, 2).flatten(2)
    onnx.save(model, tmp_path / "model.onnx")
    for given in (model, tmp_path / "model.onnx"):
        torch.testing.assert_close(fused_rnn.from_onnx(given)(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("LSTM", {"clip": 1.0}, "clip, of what goes into activations"),
        ("LSTM", {"direction": "reverse"}, "reverse direction alone"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "the same in all places"),
        ("GRU", {"activations": ["Sigmoid", "Elu"]}, "should be Tanh or Relu, got: Elu"),
        ("GRU", {"activations": ["Tanh", "Tanh"]}, "should be Sigmoid or HardSigmoid, got: Tanh"),
    ],
)
def test_what_onnx_has_and_layers_have_not(kind, options, message):
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_onnx(model_of(kind, **options))


def test_which_node():
    model = model_of("GRU")
    with pytest.raises(ValueError, match=r"one recurrent node of the name 'a', .* no recurrent"):
        fused_rnn.from_onnx(model, "a")
    model.graph.node.append(model.graph.node[0])
    model.graph.node[1].name = "other"
    with pytest.raises(ValueError, match="one recurrent node, or its name be given: 'rnn', 'oth"):
        fused_rnn.from_onnx(model)
    assert isinstance(fused_rnn.from_onnx(model, "other"), fused_rnn.GRU)
    del model.graph.initializer[0]
    with pytest.raises(ValueError, match="input 'W' of the node should be a constant"):
        fused_rnn.from_onnx(model, "rnn")


class Stub:
    """What from_keras asks a layer of Keras for."""

    def __init__(self, weights, **config):
        self.weights, self.config = weights, config

    def get_weights(self):
        return self.weights

    def get_config(self):
        return self.config


def stub(kind, module, **config):
    """Return the layer of Keras that a module is of."""
    order = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2], "SimpleRNN": [0]}[kind]

    def there(t):
        return torch.cat([t.chunk(len(order))[k] for k in order]).detach().numpy()

    w, r, b_x, b_h = module.all_weights[0]
    two = kind == "GRU" and config.get("reset_after", True)
    bias = np.stack([there(b_x), there(b_h)]) if two else there(b_x + b_h)
    return type(kind, (Stub,), {})([there(w).T, there(r).T, bias], **config)


@pytest.mark.parametrize(
    ("kind", "layer", "config"),
    [
        ("LSTM", "LSTM", {"recurrent_activation": "hard_sigmoid", "activation": "relu"}),
        ("GRU", "GRU", {"reset_after": True}),
        ("GRU", "GRU", {"reset_after": False}),
        ("SimpleRNN", "RNN", {}),
    ],
)
def test_keras(kind, layer, config):
    module = getattr(fused_rnn, layer)(I, H, batch_first=True, **config)
    found = fused_rnn.from_keras(stub(kind, module, **config))
    x = torch.randn(N, T, I)
    torch.testing.assert_close(found(x), module(x))
    assert type(found) is type(module)


def test_what_keras_has_and_layers_have_not():
    module = fused_rnn.GRU(I, H)
    for config, message in (
        ({"go_backwards": True}, "go_backwards has no counterpart"),
        ({"stateful": True}, "stateful has no counterpart"),
        ({"activation": "elu"}, "activation should be 'tanh' or 'relu', got: 'elu'"),
        ({"recurrent_activation": "relu"}, "recurrent_activation should be 'sigmoid' or 'hard"),
    ):
        with pytest.raises(ValueError, match=message):
            fused_rnn.from_keras(stub("GRU", module, **config))
    with pytest.raises(TypeError, match="layer should be a layer of Keras, got: int"):
        fused_rnn.from_keras(3)
    with pytest.raises(TypeError, match="an LSTM, a GRU or a SimpleRNN of Keras, got: Stub"):
        fused_rnn.from_keras(Stub([]))
    with pytest.raises(ValueError, match="should be built"):
        fused_rnn.from_keras(type("GRU", (Stub,), {})([]))


@pytest.mark.parametrize(
    ("module", "version", "expected"),
    [
        ("keras.src.layers.rnn.gru", "3.5.0", "hard_sigmoid"),
        ("keras.src.layers.rnn.gru", "2.15.0", ("hard_sigmoid", 0.2, 0.5)),
        ("tf_keras.src.layers.rnn.gru", "2.16.0", ("hard_sigmoid", 0.2, 0.5)),
    ],
)
def test_hard_sigmoids_of_two_generations(module, version, expected, monkeypatch):
    root = module.split(".")[0]
    monkeypatch.setitem(sys.modules, root, SimpleNamespace(__version__=version))
    given = fused_rnn.GRU(I, H, batch_first=True, recurrent_activation=expected)
    # No word of reset_after: of a Keras that had no such option.
    given_before = fused_rnn.GRU(
        I, H, batch_first=True, recurrent_activation=expected, reset_after=False
    )
    layer = stub("GRU", given, recurrent_activation="hard_sigmoid", reset_after=True)
    type(layer).__module__ = module
    assert repr(fused_rnn.from_keras(layer)) == repr(given)
    before = stub("GRU", given, reset_after=False)
    before.config = {"recurrent_activation": "hard_sigmoid"}
    type(before).__module__ = module
    assert repr(fused_rnn.from_keras(before)) == repr(given_before)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}),
        ("LSTM", {"activation": "relu", "use_bias": False}),
        ("GRU", {"reset_after": False}),
        ("GRU", {}),
        ("SimpleRNN", {}),
    ],
)
def test_keras_itself(kind, config, both, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layer = getattr(keras.layers, kind)(H, return_sequences=True, **config)
    layer = keras.layers.Bidirectional(layer) if both else layer
    x = torch.randn(N, T, I)
    layer.build((N, T, I))
    for weight in layer.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    expected = torch.as_tensor(layer(x)).detach()
    torch.testing.assert_close(fused_rnn.from_keras(layer)(x)[0], expected, rtol=1e-4, atol=1e-5)

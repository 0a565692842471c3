"""torch.onnx.export over the layers: standard nodes, and what onnxruntime makes of them."""

import importlib.util
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import fused_rnn
from tests.twins import CELLS, LAYERS, example, leaves, states

# The exporter that traces by torch.export, which torch takes by default, writes with onnxscript.
EXPORTERS = [
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"
        ),
        id="dynamo",
    ),
    pytest.param(False, id="torchscript"),
]
STACKS = [
    ("LSTM", {"num_layers": 2, "bidirectional": True}, ["LSTM"] * 2),
    ("LSTM", {"batch_first": True, "bias": False}, ["LSTM"]),
    ("GRU", {"num_layers": 2, "bidirectional": True, "dropout": 0.5}, ["GRU"] * 2),
    ("RNN", {}, ["RNN"]),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}, ["RNN"]),
]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning"),
]


class Model(nn.Module):
    """A layer among others, with a state or without."""

    def __init__(self, layer, **options):
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(fused_rnn, layer)(3, 4, **options)

    def forward(self, x, *hx):
        state = (hx if len(hx) == 2 else hx[0]) if hx else None
        return tuple(leaves(self.rnn(torch.tanh(self.before(x)), state)))


def arguments(model, steps, n, stateful):
    x = torch.randn(*((n, steps) if model.rnn.batch_first else (steps, n)), 3)
    return (x, *(leaves(states(model.rnn, n)) if stateful else ()))


def exported(model, args, file, dynamo):
    """Write the model for any length and batch, and return what is in the file."""
    names = ["x", "h0", "c0"][: len(args)]
    axes = ["n", "steps"] if getattr(model, "rnn", model).batch_first else ["steps", "n"]
    if dynamo:
        # Dim.AUTO finds out that the batches are one.
        of_states = tuple({1: Dim.AUTO} for _ in args[1:])
        sizes = ({0: Dim.AUTO, 1: Dim.AUTO}, *([of_states] if of_states else []))
        how = {"dynamic_shapes": sizes, "verbose": False}
    else:
        how = {"dynamic_axes": {"x": dict(enumerate(axes)), "h0": {1: "n"}, "c0": {1: "n"}}}
        how["dynamic_axes"] = {name: how["dynamic_axes"][name] for name in names}
    torch.onnx.export(model, args, file, input_names=names, dynamo=dynamo, **how)
    return onnx.load(file)


def run(file, args):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    given = {name: t.numpy() for name, t in zip(names, args, strict=True)}
    return [torch.from_numpy(t) for t in session.run(None, given)]


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("stateful", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize(("layer", "options", "expected"), STACKS)
def test_standard_nodes_for_any_length_and_batch(
    layer, options, expected, stateful, dynamo, tmp_path
):
    model = Model(layer, **options).eval()
    file = str(tmp_path / "model.onnx")
    program = exported(model, arguments(model, 5, 3, stateful), file, dynamo)
    onnx.checker.check_model(program)
    nodes = [node for node in program.graph.node if node.op_type in ("LSTM", "GRU", "RNN", "Loop")]
    assert [node.op_type for node in nodes] == expected
    assert {node.domain for node in nodes} == {""}
    with torch.no_grad():
        for steps, n in ((5, 3), (9, 2), (2, 7)):
            args = arguments(model, steps, n, stateful)
            torch.testing.assert_close(run(file, args), list(model(*args)))


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, dynamo, tmp_path):
    cell, file, x = getattr(fused_rnn, name)(3, 4).eval(), str(tmp_path / "m.onnx"), example(name)
    torch.onnx.export(cell, (x,), file, dynamo=dynamo, input_names=["x"])
    with torch.no_grad():
        torch.testing.assert_close(run(file, (x,)), leaves(cell(x)))


@pytest.mark.parametrize("dynamo", EXPORTERS[:1])
def test_a_projection_is_written_step_by_step(dynamo, tmp_path):
    model, file = fused_rnn.LSTM(3, 4, proj_size=2).eval(), str(tmp_path / "m.onnx")
    x = torch.randn(4, 2, 3)
    torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False, input_names=["x"])
    with torch.no_grad():
        torch.testing.assert_close(run(file, (x,)), leaves(model(x)))


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_the_model(layer, dynamo, tmp_path):
    model, x = getattr(fused_rnn, layer)(3, 4).eval(), example(layer)
    file = str(tmp_path / "m.onnx")
    torch.onnx.export(model, (x,), file, dynamo=dynamo, input_names=["x"])
    with torch.no_grad():
        torch.testing.assert_close(run(file, (x,)), leaves(model(x)))
    hx = states(model, 2)
    args, names = (x, *leaves(hx)), ["x", "h0", "c0"][: 3 if layer == "LSTM" else 2]
    torch.onnx.export(model, (x, hx), file, dynamo=dynamo, input_names=names)
    with torch.no_grad():
        torch.testing.assert_close(run(file, args), leaves(model(x, hx)))


class WithLengths(Model):
    """A layer over padded sequences, with a state or without."""

    def forward(self, x, lengths, *hx):
        state = (hx if len(hx) == 2 else hx[0]) if hx else None
        return tuple(leaves(self.rnn(torch.tanh(self.before(x)), state, lengths=lengths)))


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize("state", ["zeros", "given", "learned"])
@pytest.mark.parametrize(("layer", "options", "expected"), STACKS)
def test_lengths_are_the_nodes_own(layer, options, expected, state, dynamo, tmp_path):
    model = WithLengths(layer, learn_initial_state=state == "learned", **options).eval()
    for initial in model.rnn._initial():
        if initial is not None:
            nn.init.uniform_(initial)

    def inputs(steps, lengths):
        x, *hx = arguments(model, steps, len(lengths), state == "given")
        return x, torch.tensor(lengths), *hx

    args, file = inputs(5, [5, 2, 3]), str(tmp_path / "model.onnx")
    names = ["x", "lengths", "h0", "c0"][: len(args)]
    batch = 0 if model.rnn.batch_first else 1
    axes = [{batch: "n", 1 - batch: "steps"}, {0: "n"}, {1: "n"}, {1: "n"}][: len(args)]
    if dynamo:
        sizes = [dict.fromkeys(of, Dim.AUTO) for of in axes]
        sizes = *sizes[:2], tuple(sizes[2:])
        how = {"dynamic_shapes": sizes if state == "given" else sizes[:2], "verbose": False}
    else:
        how = {"dynamic_axes": dict(zip(names, axes, strict=True))}
    torch.onnx.export(model, args, file, input_names=names, dynamo=dynamo, **how)
    program = onnx.load(file)
    onnx.checker.check_model(program)
    nodes = [node for node in program.graph.node if node.op_type in ("LSTM", "GRU", "RNN", "Loop")]
    assert [node.op_type for node in nodes] == expected
    assert all(node.input[4] for node in nodes)
    with torch.no_grad():
        # Those of no step too, by themselves and among others.
        for steps, lengths in ((5, [5, 2, 3]), (7, [0, 7, 1, 4]), (3, [0, 0])):
            args = inputs(steps, lengths)
            torch.testing.assert_close(run(file, args), list(model(*args)))


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_lengths_of_a_layer_that_is_the_model(dynamo, tmp_path):
    model, file = fused_rnn.GRU(3, 4).eval(), str(tmp_path / "m.onnx")
    x, lengths = torch.randn(5, 3, 3), torch.tensor([5, 0, 3])
    how = {"dynamo": dynamo, "input_names": ["x", "lengths"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.onnx.export(model, (x,), file, kwargs={"lengths": lengths}, **how)
    assert not any(issubclass(w.category, torch.jit.TracerWarning) for w in caught)
    with torch.no_grad():
        expected = leaves(model(x, lengths=lengths))
    torch.testing.assert_close(run(file, (x, lengths)), expected)


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"resets": torch.zeros(5, 3, dtype=torch.bool)}),
        ({}, {"return_states": True}),
        ({"proj_size": 2}, {"lengths": torch.tensor([5, 0, 3])}),
    ],
    ids=["resets", "states", "projection"],
)
def test_what_onnx_has_not(options, asked, dynamo, tmp_path):
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.LSTM(3, 4, **options)

        def forward(self, x):
            return self.rnn(x, **asked)

    with pytest.raises(Exception, match="ONNX has lengths, but no resets"):
        torch.onnx.export(Asking(), (torch.randn(5, 3, 3),), tmp_path / "m.onnx", dynamo=dynamo)


VARIED = [
    ("GRU", {"reset_after": False, "bidirectional": True}),
    ("GRU", {"recurrent_activation": ("hard_sigmoid", 0.3, 0.4), "activation": "relu"}),
    ("LSTM", {"use_peepholes": True, "num_layers": 2}),
    ("LSTM", {"input_forget": True, "use_peepholes": True, "bidirectional": True}),
    ("LSTM", {"recurrent_activation": "hard_sigmoid", "recurrent_dropout": 0.5}),
]


@pytest.mark.parametrize("dynamo", EXPORTERS)
@pytest.mark.parametrize(("layer", "options"), VARIED)
def test_variants_that_onnx_has(layer, options, dynamo, tmp_path):
    model, file = getattr(fused_rnn, layer)(3, 4, **options).eval(), str(tmp_path / "m.onnx")
    x = torch.randn(5, 2, 3)
    program = exported(model, (x,), file, dynamo)
    assert [n.op_type for n in program.graph.node if n.op_type == layer]
    with torch.no_grad():
        torch.testing.assert_close(run(file, (x,)), leaves(model(x)))


@pytest.mark.parametrize("options", [{"recompute": True}, {"use_peepholes": True}], ids=str)
def test_a_trace_has_no_projection(options, tmp_path):
    model, x = fused_rnn.LSTM(3, 4, proj_size=2, **options).eval(), torch.randn(5, 2, 3)
    message = "no node with a projection" if "use_peepholes" in options else "LSTMs with projection"
    with pytest.raises(RuntimeError, match=message):
        torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False)


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_variants_that_onnx_has_not(dynamo, tmp_path):
    model, x = fused_rnn.LSTM(3, 4, layer_norm=True, use_peepholes=True), torch.randn(5, 2, 3)
    with pytest.raises(Exception, match="ONNX has no node with layer_norm"):
        exported(model.eval(), (x,), str(tmp_path / "m.onnx"), dynamo)

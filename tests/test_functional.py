"""The functions against torch.nn's modules, and what they say to operands that do not fit."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fused_rnn import functional, use_backend
from tests.twins import CELLS, CONFIGURED, LAYERS, assert_same, leaves, sequences, states

RELU = {"nonlinearity": "relu"}


def call(module, x, hx, **kwargs):
    """Call the function that does what a layer of torch.nn does."""
    run = {"LSTM": functional.lstm, "GRU": functional.gru}.get(module.mode, functional.rnn)
    more = (module.nonlinearity,) if run is functional.rnn else ()
    options = {
        k: getattr(module, k) for k in ("bidirectional", "dropout", "training", "batch_first")
    }
    return run(x, hx, module.all_weights, *more, **{**options, **kwargs})


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_layers(layer, options, given, device):
    module = getattr(nn, layer)(3, 4, device=device, **options)
    x = torch.randn(5, 2, 3, device=device)
    n = 5 if module.batch_first else 2
    hx = states(module, n) if given else None
    expected, found = module(x, hx), call(module, x, hx)
    assert_same(expected, found)
    weights = list(module.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(leaves(found)[0].pow(2).sum(), weights),
        torch.autograd.grad(leaves(expected)[0].pow(2).sum(), weights),
    )


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_packed_layers(layer, options, device):
    module = getattr(nn, layer)(3, 4, device=device, **options)
    packed = sequences((5, 3, 3, 1), 3, enforce_sorted=True, device=device)
    hx = states(module, 4)
    output, state = module(packed, hx)
    found = call(module, packed.data, hx, batch_sizes=packed.batch_sizes)
    assert_same((output.data, state), found)


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout(layer):
    module = getattr(nn, layer)(3, 8, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    assert_same(expected, call(module, x, None))
    assert_same(module.eval()(x), call(module, x, None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, bias, device):
    module = getattr(nn, name)(3, 4, bias, device=device)
    x = torch.randn(2, 3, device=device)
    h, c = torch.randn(2, 2, 4, device=device)
    run = {"LSTMCell": functional.lstm_cell, "GRUCell": functional.gru_cell}.get(
        name, functional.rnn_cell
    )
    hx = (h, c) if name == "LSTMCell" else h
    assert_same(module(x, hx), run(x, hx, *module.parameters()))


def test_relu(device):
    layer, cell = nn.RNN(3, 4, device=device, **RELU), nn.RNNCell(3, 4, device=device, **RELU)
    x, h = torch.randn(2, 3, device=device), torch.randn(2, 4, device=device)
    assert_same(
        layer(x[None], h[None]), functional.rnn(x[None], h[None], layer.all_weights, "relu")
    )
    assert_same(cell(x, h), functional.rnn_cell(x, h, *cell.parameters(), nonlinearity="relu"))
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'"):
        functional.rnn(x[None], None, layer.all_weights, "sigmoid")
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'"):
        functional.rnn_cell(x, h, *cell.parameters(), nonlinearity="sigmoid")


def z(*size, **kwargs):
    return torch.zeros(*size, **kwargs)


# For a bidirectional GRU of two layers with 3 inputs and 4 hidden units.
MISTAKES = {
    "rank of the input": ({"input": z(5, 3)}, "the input should be 3-D"),
    "rank of packed data": ({"batch_sizes": torch.tensor([2])}, "2-D with batch_sizes"),
    "features": ({"input": z(5, 2, 7)}, "7 features instead of 3"),
    "no steps": ({"input": z(0, 2, 3)}, "sequence is empty"),
    "dtype": ({"input": z(5, 2, 3, dtype=torch.float64)}, "float64 on cpu, the weights are"),
    "device": ({"input": z(5, 2, 3, device="meta")}, "on meta, the weights are"),
    "batch of the state": ({"hx": z(4, 3, 4)}, r"shape \(4, 3, 4\) instead of \(4, 2, 4\)"),
    "rank of the state": ({"hx": z(2, 4)}, r"shape \(2, 4\) instead of"),
    "dtype of the state": ({"hx": z(4, 2, 4).double()}, "initial h is torch.float64"),
    "weights of one direction": (
        {"bidirectional": False},
        r"weights\[1\]\[0\] should be \(12, 4\)",
    ),
    "no weights": (
        {"weights": []},
        "for each direction of each layer, got 0",
    ),
    "an odd number of rows": ({"weights": "odd"}, "a multiple of 2 rows.*, got 3"),
    "a projection": (
        {"weights": "projected"},
        r"weights\[0\] should be .*b_hh\]\), got 5",
    ),
    "rank of a weight": ({"weights": "flat"}, r"w_ih of weights\[0\] should be 2-D, got 1-D"),
    "batch_sizes that add up wrong": (
        {"input": z(5, 3), "batch_sizes": torch.tensor([2, 2])},
        "add up to 4, but the packed data has 5 rows",
    ),
    "batch_sizes that increase": (
        {"input": z(5, 3), "batch_sizes": torch.tensor([2, 3])},
        "never increase",
    ),
    "batch_sizes that end with none": (
        {"input": z(5, 3), "batch_sizes": torch.tensor([3, 2, 0])},
        "should be positive",
    ),
    "batch_sizes of too few rows": (
        {"input": z(5, 3), "batch_sizes": torch.tensor([2, 2, 2])},
        "add up to 6, but the packed data has 5 rows",
    ),
    "batch_sizes of another dtype": (
        {"input": z(5, 3), "batch_sizes": torch.tensor([3, 2], dtype=torch.int32)},
        "1-D int64 tensor on the CPU",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    rows = nn.GRU(3, 4, 2, bidirectional=True).all_weights
    changed, message = MISTAKES[mistake]
    broken = {
        "odd": rows[:3],
        "projected": [[*row, z(2, 4)] for row in rows],
        "flat": [[row[0][0], *row[1:]] for row in rows],
    }
    given = {"input": z(5, 2, 3), "hx": None, "weights": rows, "bidirectional": True, **changed}
    if isinstance(given["weights"], str):
        given["weights"] = broken[given["weights"]]
    with pytest.raises(RuntimeError, match=message):
        functional.gru(**given)


# Likewise, of arguments that are something else altogether.
OF_ANOTHER_TYPE = {
    "flat weights": (
        {"weights": [z(12, 3), z(12, 4), z(12), z(12)]},
        r"should be a sequence with \(w_ih, w_hh\[, b_ih, b_hh\]\) for each layer and direction, "
        r"got a flat sequence: weights\[0\] is a tensor",
    ),
    "a tensor for weights": ({"weights": z(12, 3)}, "weights should be .*, got: Tensor"),
    "a generator": ({"weights": iter([[]])}, "weights should be .*, got: list_iterator"),
    "a dictionary": ({"weights": nn.GRU(3, 4).state_dict()}, "weights should be .* OrderedDict"),
    "no weights": ({"weights": None}, "weights should be .*, got: NoneType"),
    "numbers for rows": ({"weights": [1.0]}, r"weights\[0\], a float"),
    "no bias": (
        {"weights": [(z(12, 3), z(12, 4), None, None)] * 4},
        r"weights\[0\]\[2\] should be a tensor, got: NoneType",
    ),
    "a list": ({"input": [1.0]}, "input should be a tensor, got: list$"),
    "a packed sequence": (
        {"input": pack_sequence([z(5, 3)])},
        "input should be a tensor, got: PackedSequence, whose data and batch_sizes serve",
    ),
    "a pair of states": ({"hx": (z(4, 2, 4), z(4, 2, 4))}, "hx should be a tensor, got: tuple"),
    **{
        name: ({name: "yes"}, f"^{name} should be of type bool, got: str$")
        for name in ("bidirectional", "training", "batch_first", "return_states", "recompute")
    },
}


@pytest.mark.parametrize("mistake", OF_ANOTHER_TYPE)
def test_arguments_of_another_type(mistake):
    changed, message = OF_ANOTHER_TYPE[mistake]
    rows = nn.GRU(3, 4, 2, bidirectional=True).all_weights
    given = {"input": z(5, 2, 3), "hx": None, "weights": rows, "bidirectional": True, **changed}
    with pytest.raises(TypeError, match=message):
        functional.gru(**given)


def test_rows_for_other_layers_than_the_states():
    rows = nn.LSTM(3, 4, 2).all_weights
    states = z(2, 2, 4), z(2, 2, 4)
    with pytest.raises(RuntimeError, match="hx has 2 states and weights has 1 rows"):
        functional.lstm(z(5, 2, 3), states, rows[:1])
    with pytest.raises(RuntimeError, match=r"weights\[0\] should be .*w_hr"):
        functional.lstm(z(5, 2, 3), states, [rows[0][:1], rows[1]])
    with pytest.raises(RuntimeError, match=r"weights\[1\] should have 4 tensors, got 2"):
        functional.lstm(z(5, 2, 3), states, [rows[0], rows[1][:2]])


@pytest.mark.parametrize("hx", [z(2, 2, 4), (z(1, 2, 4),), (z(1, 2, 4),) * 3, 1.0], ids=str)
def test_states_of_an_lstm_are_a_pair(hx):
    rows = nn.LSTM(3, 4).all_weights
    with pytest.raises(TypeError, match="lstm: hx should be two tensors"):
        functional.lstm(z(5, 2, 3), hx, rows)
    with pytest.raises(TypeError, match="lstm_cell: hx should be two tensors"):
        functional.lstm_cell(z(2, 3), hx, *rows[0])


def test_one_state_of_two():
    rows = nn.LSTM(3, 4).all_weights
    for hx in ((z(1, 2, 4), None), (None, z(1, 2, 4))):
        with pytest.raises(RuntimeError, match="two initial states or none"):
            functional.lstm(z(5, 2, 3), hx, rows)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_compiled_exported_and_traced(name):
    torch.compiler.reset()
    layer = getattr(nn, name)(3, 4, 2).requires_grad_(False)

    class Model(nn.Module):
        def forward(self, x):
            return call(layer, 2 * x, None)[0] + 1

    x = torch.randn(5, 2, 3)
    expected = layer(2 * x)[0] + 1
    torch.testing.assert_close(torch.compile(Model(), backend="eager")(x), expected)
    torch.testing.assert_close(torch.jit.trace(Model(), (x,))(x), expected)
    exported = torch.export.export(Model(), (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), expected)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_and_traced_cells(name):
    torch.compiler.reset()
    cell = getattr(nn, name)(3, 4).requires_grad_(False)
    run = {"LSTMCell": functional.lstm_cell, "GRUCell": functional.gru_cell}.get(
        name, functional.rnn_cell
    )
    x, h = torch.randn(2, 3), torch.randn(2, 4)

    def step(x, h):
        output = run(x, (h, h) if name == "LSTMCell" else h, *cell.parameters())
        return output[0] if name == "LSTMCell" else output

    expected = step(x, h)
    torch.testing.assert_close(torch.compile(step, backend="eager", fullgraph=True)(x, h), expected)
    torch.testing.assert_close(torch.jit.trace(step, (x, h))(x, h), expected)


def test_compiled_training():
    torch.compiler.reset()
    layer = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)

    def loss(x):
        return functional.lstm(x, None, layer.all_weights)[0].pow(2).sum()

    weights = list(layer.parameters())
    found = torch.autograd.grad(torch.compile(loss, backend="eager")(x), weights)
    torch.testing.assert_close(found, torch.autograd.grad(loss(x), weights))


def test_tensor_subclasses_run_in_torch():
    class Tagged(torch.Tensor):
        pass

    layer = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    found = functional.lstm(x.as_subclass(Tagged), None, layer.all_weights)
    assert all(isinstance(t, Tagged) for t in leaves(found))
    torch.testing.assert_close(
        [t.as_subclass(torch.Tensor) for t in leaves(found)], leaves(layer(x))
    )


def test_a_given_state_comes_before_the_one_to_begin_anew_with_where_torch_runs():
    class Own(torch.Tensor):
        """Not a plain tensor, so that torch's own operator runs."""

    rows = nn.GRU(3, 4).all_weights
    x, hx, anew = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 1, 4)
    own = x.as_subclass(Own)
    for given, begun in ((hx, hx), (None, anew.expand(1, 2, 4).contiguous())):
        found = functional.gru(own, given, rows, initial_state=anew)
        expected = functional.gru(x, begun, rows)
        torch.testing.assert_close([f.as_subclass(torch.Tensor) for f in found], list(expected))


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if "batch_sizes" in m])
def test_mistakes_are_found_before_any_backend(mistake):
    with use_backend("reference"):
        test_mistakes(mistake)

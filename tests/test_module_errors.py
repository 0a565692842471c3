"""Mistakes: the drop-ins answer with torch.nn's error, or with one where torch.nn has none."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn
from tests.conftest import EACH_BACKEND
from tests.twins import CELLS, LAYERS, outcome, sequences, twins

BAD_CONSTRUCTIONS = [
    (LAYERS, (), {}),
    (LAYERS, (3,), {}),
    (LAYERS, (3.0, 4), {}),
    (LAYERS, (0, 4), {}),
    (LAYERS, (3, 4.0), {}),
    (LAYERS, (3, 0), {}),
    (LAYERS, (3, 4, 0), {}),
    (LAYERS, (3, 4, 1.5), {}),
    (LAYERS, (3, 4, "2"), {}),
    (LAYERS, (3, 4), {"bias": 1}),
    (LAYERS, (3, 4), {"bias": None}),
    (LAYERS, (3, 4), {"batch_first": "yes"}),
    (LAYERS, (3, 4), {"dropout": 1.5}),
    (LAYERS, (3, 4), {"dropout": True}),
    (LAYERS, (3, 4), {"dropout": None}),
    (LAYERS, (3, 4), {"dropout": "a"}),
    (LAYERS, (3, 4), {"foo": 1}),
    (LAYERS, (3, 4), {"dtype": torch.int64}),
    (["LSTM"], (3, 4), {"proj_size": -1}),
    (["LSTM"], (3, 4), {"proj_size": 4}),
    (["GRU", "RNN"], (3, 4), {"proj_size": 0}),
    (["RNN"], (3, 4), {"nonlinearity": "sigmoid"}),
    (CELLS, (3,), {}),
    (CELLS, (3, -1), {}),
    (CELLS, (3.0, 4), {}),
    (CELLS, (3, 4), {"foo": 1}),
]


def assert_same_error(theirs, ours):
    """Compare two outcomes, both of them errors."""
    assert theirs[0] == "raised", theirs
    name = "fused_rnn.modules."
    assert (ours[0], ours[1], ours[2].replace(name, "")) == theirs[:3]


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [(n, a, k) for names, a, k in BAD_CONSTRUCTIONS for n in names]
)
def test_construction(name, args, kwargs):
    theirs, ours = (
        outcome(lambda source=source: getattr(source, name)(*args, **kwargs))
        for source in (nn, fused_rnn)
    )
    assert_same_error(theirs, ours)
    assert ours[3] == theirs[3]


@pytest.mark.parametrize("option", ["learn_initial_state", "recompute"])
@pytest.mark.parametrize("value", ["yes", 1, None, torch.tensor(True)], ids=repr)
@pytest.mark.parametrize("layer", LAYERS)
def test_options_are_true_or_false(layer, option, value):
    message = f"^{option} should be of type bool, got: {type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        getattr(fused_rnn, layer)(3, 4, **{option: value})


@pytest.mark.parametrize("value", ["x", 0, 1, None, ""], ids=repr)
@pytest.mark.parametrize("layer", LAYERS)
def test_options_of_a_call_are_true_or_false(layer, value):
    module = getattr(fused_rnn, layer)(3, 4)
    message = f"should be of type bool, got: {type(value).__name__}$"
    for x in (z(5, 2, 3), pack_sequence([z(5, 3)])):
        if value is None:  # the default, as a trace that gives every argument has it
            assert len(module(x, return_states=value)) == 2
            continue
        with pytest.raises(TypeError, match=f"^return_states {message}"):
            module(x, return_states=value)
    module.recompute = value
    with pytest.raises(TypeError, match=f"^recompute {message}"):
        module(z(5, 2, 3))


def z(*size, **kwargs):
    return torch.zeros(*size, **kwargs)


def pair(*size, **kwargs):
    return z(*size, **kwargs), z(*size, **kwargs)


# For layers made with (3, 4, num_layers=2): input, hidden state; a state is doubled for the LSTM.
BAD_CALLS = {
    "rank 1": (z(3), None),
    "rank 4": (z(1, 5, 2, 3), None),
    "state of rank 2 for rank 3": (z(5, 2, 3), z(2, 4)),
    "state of rank 3 for rank 2": (z(5, 3), z(2, 1, 4)),
    "state of rank 1 for rank 2": (z(5, 3), z(4)),
    "dtype": (z(5, 2, 3, dtype=torch.float64), None),
    "dtype and size": (z(5, 2, 7, dtype=torch.float64), None),
    "integers": (z(5, 2, 3, dtype=torch.int64), None),
    "features": (z(5, 2, 7), None),
    "features of one sequence": (z(5, 7), None),
    "layers of state": (z(5, 2, 3), z(1, 2, 4)),
    "batch of state": (z(5, 2, 3), z(2, 3, 4)),
    "batch of one in the state": (z(5, 2, 3), z(2, 1, 4)),
    "hidden size of state": (z(5, 2, 3), z(2, 2, 5)),
    "hidden size of state of one sequence": (z(5, 3), z(2, 5)),
    "device": (z(5, 2, 3, device="meta"), None),
    "device of state": (z(5, 2, 3), z(2, 2, 4, device="meta")),
    "no steps": (z(0, 2, 3), None),
    "no steps in one sequence": (z(0, 3), None),
    "not a tensor": ([[0.0, 0.0, 0.0]], None),
    "nothing": (None, None),
    "a number for a state": (z(5, 2, 3), 3),
    "empty tuple for a state": (z(5, 2, 3), ()),
}


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}])
@pytest.mark.parametrize("mistake", BAD_CALLS)
@pytest.mark.parametrize("layer", LAYERS)
def test_calls_of_layers(layer, mistake, options):
    theirs, ours = twins(layer, 3, 4, 2, **options)
    input, hx = BAD_CALLS[mistake]
    if mistake == "no steps" and options.get("batch_first"):
        input = input.transpose(0, 1)
    if layer == "LSTM" and isinstance(hx, torch.Tensor):
        hx = hx, hx
    assert_same_error(outcome(lambda: theirs(input, hx)), outcome(lambda: ours(input, hx)))


@pytest.mark.parametrize(
    "hx",
    [
        (z(1, 2, 4),),
        (z(1, 2, 4),) * 3,
        (None, None),
        (z(1, 2, 4), None),
        (z(1, 2, 4), z(1, 2, 5)),
        (z(1, 2, 5), z(1, 2, 4)),
        (z(1, 2, 4), z(2, 4)),
        z(2, 1, 2, 4),
        {"h": z(1, 2, 4)},
        z(1, 2, 4),
    ],
    ids=str,
)
def test_states_of_the_lstm(hx):
    theirs, ours = twins("LSTM", 3, 4)
    x = z(5, 2, 3)
    assert_same_error(outcome(lambda: theirs(x, hx)), outcome(lambda: ours(x, hx)))


@pytest.mark.parametrize("hx", [(z(1, 2, 4),), [z(1, 2, 4)], (None,)], ids=str)
@pytest.mark.parametrize("layer", ["GRU", "RNN"])
def test_states_of_the_others(layer, hx):
    theirs, ours = twins(layer, 3, 4)
    x = z(5, 2, 3)
    assert_same_error(outcome(lambda: theirs(x, hx)), outcome(lambda: ours(x, hx)))


@pytest.mark.parametrize("layer", LAYERS)
def test_states_of_another_dtype(layer):
    _, ours = twins(layer, 3, 4)
    hx = pair(1, 2, 4, dtype=torch.float64) if layer == "LSTM" else z(1, 2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        ours(z(5, 2, 3), hx)


# For packed sequences of 4 rows in batches of (2, 1, 1): torch.nn.LSTM leaves these to its kernels.
BAD_PACKED = {
    "dtype": (z(4, 3, dtype=torch.float64), None, ValueError, "does not match weight dtype"),
    "features": (z(4, 7), None, RuntimeError, "must be equal to input_size"),
    "hidden size": (z(4, 3), z(1, 2, 5), RuntimeError, "Expected hidden"),
    "batch of state": (z(4, 3), z(1, 3, 4), RuntimeError, "Expected hidden"),
}


@pytest.mark.parametrize("mistake", BAD_PACKED)
@pytest.mark.parametrize("layer", LAYERS)
def test_packed_input_is_checked(layer, mistake):
    theirs, ours = twins(layer, 3, 4)
    data, hx, error, message = BAD_PACKED[mistake]
    if layer == "LSTM" and hx is not None:
        hx = hx, hx
    packed = PackedSequence(data, torch.tensor([2, 1, 1]))
    with pytest.raises(error, match=message):
        ours(packed, hx)
    if layer != "LSTM":
        assert_same_error(outcome(lambda: theirs(packed, hx)), outcome(lambda: ours(packed, hx)))


@pytest.mark.parametrize("layer", LAYERS)
def test_packed_data_of_another_rank(layer):
    theirs, ours = twins(layer, 3, 4)
    packed = PackedSequence(z(4, 1, 3), torch.tensor([2, 1, 1]))
    assert_same_error(outcome(lambda: theirs(packed)), outcome(lambda: ours(packed)))


@pytest.mark.parametrize(
    "sizes",
    [[2, 1], [2, 1, 2], [1, 2, 1], [2, 2, 0], [3, 2, -1], []],
    ids=str,
)
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_sizes_must_be_those_of_the_data(layer, sizes):
    _, ours = twins(layer, 3, 4)
    packed = PackedSequence(z(4, 3), torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="batch_sizes"):
        ours(packed)


@pytest.mark.parametrize("layer", LAYERS)
def test_too_few_states_for_unsorted_sequences(layer):
    theirs, ours = twins(layer, 3, 4)
    packed = sequences((1, 3, 2), 3, enforce_sorted=False)
    hx = pair(1, 2, 4) if layer == "LSTM" else z(1, 2, 4)
    theirs, ours = outcome(lambda: theirs(packed, hx)), outcome(lambda: ours(packed, hx))
    assert_same_error(theirs, ours)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("wrong", ["h", "c"])
def test_too_many_states_for_packed_sequences(layer, wrong, enforce_sorted):
    ours = getattr(fused_rnn, layer)(3, 4)
    lengths = (3, 2, 1) if enforce_sorted else (1, 3, 2)
    packed = sequences(lengths, 3, enforce_sorted=enforce_sorted)
    hx = z(1, 5, 4)
    if layer == "LSTM":
        hx = (hx, z(1, 3, 4)) if wrong == "h" else (z(1, 3, 4), hx)
    elif wrong == "c":
        pytest.skip("it has no c")
    # The words of torch.nn, which leaves the last ones out where it permutes them.
    message = r"Expected hidden(\[[01]\])? size \(1, 3, 4\), got \[1, 5, 4\]"
    with pytest.raises(RuntimeError, match=message):
        ours(packed, hx)
    with pytest.raises(RuntimeError, match=message):
        ours(packed, hx, return_states=True)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0", "weight_ih_l1_reverse"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_weights_of_wrong_shapes_are_never_read(layer, name, packed):
    ours = getattr(fused_rnn, layer)(3, 4, 2, bidirectional=True)
    assert_never_read(ours, name, pack_sequence([z(5, 3), z(2, 3)]) if packed else z(5, 2, 3))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0"])
def test_weights_of_wrong_shapes_are_never_read_by_one_step(layer, name):
    assert_never_read(getattr(fused_rnn, layer)(3, 4, 2), name, z(1, 2, 3))


def assert_never_read(ours, name, x):
    weight = getattr(ours, name)
    given = weight.detach()
    for wrong in (given[1:], given[:1], given[..., 1:], given.unsqueeze(0)):
        weight.data = wrong.clone()
        with pytest.raises(RuntimeError, match=f"{name} should be"):
            ours(x)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_weights_of_several_dtypes(layer, steps):
    ours = getattr(fused_rnn, layer)(3, 4)
    ours.weight_hh_l0.data = ours.weight_hh_l0.data.double()
    with pytest.raises(RuntimeError, match="weight_hh_l0 should be"):
        ours(z(steps, 2, 3))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_that_is_none(layer):
    theirs, ours = twins(layer, 3, 4)
    theirs.weight_hh_l0 = ours.weight_hh_l0 = None
    x = z(5, 2, 3)
    assert_same_error(outcome(lambda: theirs(x)), outcome(lambda: ours(x)))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_that_was_deleted_is_still_used(layer):
    theirs, ours = twins(layer, 3, 4)
    del theirs.weight_hh_l0, ours.weight_hh_l0
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_gru_with_a_projection_is_of_no_use():
    # torch.nn's takes what stands where it documents the device.
    theirs = nn.GRU(3, 4, 1, True, False, 0.0, False, 2)
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    x = z(5, 2, 3)
    assert_same_error(outcome(lambda: theirs(x)), outcome(lambda: ours(x)))


# For cells made with (3, 4).
BAD_STEPS = {
    "rank 0": (z(()), None),
    "rank 3": (z(1, 2, 3), None),
    "state of rank 3": (z(2, 3), z(1, 2, 4)),
    "features": (z(2, 7), None),
    "features and state": (z(2, 7), z(2, 4)),
    "hidden size": (z(2, 3), z(2, 5)),
    "batch of state": (z(3, 3), z(5, 4)),
    "batch of one in the state": (z(3, 3), z(1, 4)),
    "batch of one in the input": (z(1, 3), z(3, 4)),
    "dtype": (z(2, 3, dtype=torch.float64), None),
    "dtype of state": (z(2, 3), z(2, 4, dtype=torch.float64)),
    "integers": (z(2, 3, dtype=torch.int64), None),
    "not a tensor": ([0.0, 0.0, 0.0], None),
    "nothing": (None, None),
    "a number for a state": (z(2, 3), 3),
}


@pytest.mark.parametrize("mistake", BAD_STEPS)
@pytest.mark.parametrize("name", CELLS)
def test_calls_of_cells(name, mistake):
    theirs, ours = twins(name, 3, 4)
    x, hx = BAD_STEPS[mistake]
    if name == "LSTMCell" and isinstance(hx, torch.Tensor):
        hx = hx, hx
    assert_same_error(outcome(lambda: theirs(x, hx)), outcome(lambda: ours(x, hx)))


@pytest.mark.parametrize(
    "hx",
    [
        (z(2, 4),),
        (z(2, 4),) * 3,
        (None, None),
        (z(2, 4), None),
        (z(2, 4), z(2, 5)),
        (z(2, 4), z(1, 4)),
    ],
    ids=str,
)
def test_states_of_the_lstm_cell(hx):
    theirs, ours = twins("LSTMCell", 3, 4)
    assert_same_error(outcome(lambda: theirs(z(2, 3), hx)), outcome(lambda: ours(z(2, 3), hx)))


@pytest.mark.parametrize("c", [z(()), z(4), z(1, 4, 4), z(1, 2, 4)], ids=lambda c: f"{c.dim()}-D")
def test_a_cell_state_of_another_rank_for_unbatched_input(c):
    theirs, ours = twins("LSTM", 3, 4)
    states = z(1, 4), c
    assert_same_error(
        outcome(lambda: theirs(z(5, 3), states)), outcome(lambda: ours(z(5, 3), states))
    )


def test_an_unknown_nonlinearity_of_a_cell():
    theirs, ours = twins("RNNCell", 3, 4, nonlinearity="sigmoid")
    assert_same_error(outcome(lambda: theirs(z(2, 3))), outcome(lambda: ours(z(2, 3))))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_without_its_weight(name):
    theirs, ours = twins(name, 3, 4)
    del theirs.weight_hh, ours.weight_hh
    theirs, ours = outcome(lambda: theirs(z(2, 3))), outcome(lambda: ours(z(2, 3)))
    assert_same_error(theirs, ours)


# What torch.nn's cells do not check before they read past an end, or repeat what is too short.
@pytest.mark.parametrize("backend", [None, *EACH_BACKEND, "torch"])
@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_a_state_of_another_rank_than_the_input(name, ranks, backend):
    cell = getattr(fused_rnn, name)(4, 4)  # so that a matrix of states could pass for a batch
    x, h = z(4, 4) if ranks[0] == 2 else z(4), z(4, 4) if ranks[1] == 2 else z(4)
    label = "hx[0]" if name == "LSTMCell" else "hidden"
    with nullcontext() if backend is None else fused_rnn.use_backend(backend):
        error = outcome(lambda: cell(x, (h, h) if name == "LSTMCell" else h))
    said = f"{name}: Expected {label} to be {ranks[0]}D as the input is, got {ranks[1]}D instead"
    assert error[:3] == ("raised", ValueError, said)


def test_one_tensor_for_a_pair_of_states():
    said = "LSTMCell: Expected hx to be a pair of tensors, got one tensor"
    for hx in (z(2, 2, 4), z(2, 3, 2, 4)):
        assert outcome(lambda hx=hx: fused_rnn.LSTMCell(3, 4)(z(2, 3), hx))[2] == said


@pytest.mark.parametrize("shape", [None, (1,), (2, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("parameter", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_with_a_parameter_of_another_size(name, parameter, shape):
    cell = getattr(fused_rnn, name)(3, 4)
    wrong = getattr(cell, parameter)[:-1].detach().clone() if shape is None else z(*shape)
    setattr(cell, parameter, torch.nn.Parameter(wrong))
    error = outcome(lambda: cell(z(2, 3)))
    assert error[:2] == ("raised", RuntimeError)
    assert error[2].startswith(f"{name}: {parameter} should be ")


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_whose_biases_are_both_of_another_size(name):
    cell = getattr(fused_rnn, name)(3, 4)
    cell.bias_ih, cell.bias_hh = (torch.nn.Parameter(z(1)) for _ in range(2))
    error = outcome(lambda: cell(z(2, 3)))
    assert error[:2] == ("raised", RuntimeError)
    assert error[2].startswith(f"{name}: bias_ih should be ")


@pytest.mark.parametrize("states", [1, 3])
def test_other_than_two_states_of_an_lstm(states):
    lstm = fused_rnn.LSTM(3, 4)
    for hx in ([z(1, 4)] * states, z(states, 1, 4)):
        assert outcome(lambda hx=hx: lstm(z(5, 3), hx))[0] == "raised"


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_errors_are_the_same_under_a_chosen_backend(backend, name):
    theirs, ours = twins(name, 3, 4)
    theirs = outcome(lambda: theirs(z(5, 7)))
    with fused_rnn.use_backend(backend):
        assert_same_error(theirs, outcome(lambda: ours(z(5, 7))))

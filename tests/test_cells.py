"""The specification against torch.nn, and its derivatives against finite differences."""

import inspect

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from fused_rnn import cells
from fused_rnn.backends import Inputs, reference
from fused_rnn.cells import CELLS, State, Weights
from tests.operands import Shape, make_inputs, needing, ragged

TORCH_CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda *args, **kwargs: nn.RNNCell(*args, **kwargs, nonlinearity="relu"),
}
TORCH_LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **kwargs: nn.RNN(*args, **kwargs, nonlinearity="relu"),
}


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def test_every_cell_has_an_oracle():
    assert set(TORCH_CELLS) == set(TORCH_LAYERS) == set(CELLS)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_step_is_that_of_torch(cell, bias, dtype):
    if dtype.is_complex and cell == "rnn_relu":
        pytest.skip("ReLU has no complex form")
    module = TORCH_CELLS[cell](3, 4, bias=bias, dtype=dtype)
    x, h, c = (torch.randn(2, size, dtype=dtype) for size in (3, 4, 4))
    weights = Weights(*module.parameters())
    state = State(h, c if CELLS[cell].has_cell_state else None)

    result = CELLS[cell].step(x, state, weights)

    expected = as_tuple(module(x, (h, c) if CELLS[cell].has_cell_state else h))
    torch.testing.assert_close(tuple(t for t in result if t is not None), expected)


def test_gates_are_blocks_of_rows(cell):
    module = TORCH_CELLS[cell](3, 4)
    assert len(module.weight_ih) == CELLS[cell].gates * 4


@pytest.mark.parametrize("batch_first", [False, True])
def test_scan_is_that_of_torch(variant, reverse, batch_first):
    cell, projected = variant
    layer = TORCH_LAYERS[cell](
        7, 6, bidirectional=True, dtype=torch.float64, **({"proj_size": 3} if projected else {})
    )
    inputs, _ = make_inputs(variant, Shape(5, 3, 7, 6))
    h0, c0 = (None if t is None else torch.stack([t, t]) for t in (inputs.h0, inputs.c0))
    inputs = replace_weights(inputs, layer.all_weights[reverse], projected)
    y, h_n, c_n, saved = reference.forward(cell, inputs, None, reverse, True)

    output, state = layer(inputs.x, h0 if c0 is None else (h0, c0))

    features = slice(y.shape[-1], None) if reverse else slice(y.shape[-1])
    torch.testing.assert_close(y, output[..., features])
    expected = [t[int(reverse)] for t in as_tuple(state)]
    torch.testing.assert_close([t for t in (h_n, c_n) if t is not None], expected)
    assert saved == ()


def replace_weights(inputs, row, projected):
    w_ih, w_hh, b_ih, b_hh, *w_hr = row
    return Inputs(*inputs[:3], w_ih, w_hh, b_ih, b_hh, w_hr[0] if projected else None)


def test_packed_scan_is_that_of_torch(variant, reverse):
    cell, projected = variant
    layer = TORCH_LAYERS[cell](
        7, 6, bidirectional=True, dtype=torch.float64, **({"proj_size": 3} if projected else {})
    )
    inputs, batch_sizes = make_inputs(variant, ragged((5, 1, 3, 3, 2), 7, 6))
    h0, c0 = (None if t is None else torch.stack([t, t]) for t in (inputs.h0, inputs.c0))
    inputs = replace_weights(inputs, layer.all_weights[reverse], projected)
    y, h_n, c_n, _ = reference.forward(cell, inputs, batch_sizes, reverse, True)

    packed = nn.utils.rnn.PackedSequence(inputs.x, batch_sizes)
    output, state = layer(packed, h0 if c0 is None else (h0, c0))

    features = slice(y.shape[-1], None) if reverse else slice(y.shape[-1])
    torch.testing.assert_close(y, output.data[..., features])
    expected = [t[int(reverse)] for t in as_tuple(state)]
    torch.testing.assert_close([t for t in (h_n, c_n) if t is not None], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_single_precision(variant, dtype):
    cell, _ = variant
    inputs, _ = make_inputs(variant, Shape(9, 2, 4, 16), dtype)
    results = reference.forward(cell, inputs, None, False, False)[:3]
    singles = Inputs(*(t if t is None else t.float() for t in inputs))
    for half, single in zip(
        results, reference.forward(cell, singles, None, False, False)[:3], strict=True
    ):
        assert (half is None) == (single is None)
        if half is not None:
            assert half.dtype == dtype
            torch.testing.assert_close(half, single.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    "shape", [Shape(3, 2, 3, 2), ragged((3, 1, 2), 2, 2)], ids=["dense", "ragged"]
)
def test_derivatives(variant, shape, reverse):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape)
    inputs = needing(inputs)
    present = [t for t in inputs if t is not None]

    def run(*given):
        rest = iter(given)
        operands = Inputs(*(t if t is None else next(rest) for t in inputs))
        results = reference.forward(cell, operands, batch_sizes, reverse, True)[:3]
        return tuple(r for r in results if r is not None)

    assert gradcheck(run, present, fast_mode=True)


def test_backward_is_autograds(variant, shape, reverse):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape)
    inputs = needing(inputs)
    *results, _ = reference.forward(cell, inputs, batch_sizes, reverse, True)
    gradients = [r if r is None else torch.randn_like(r) for r in results]
    used = [(r, g) for r, g in zip(results, gradients, strict=True) if r is not None]
    present = [t for t in inputs if t is not None]
    expected = torch.autograd.grad([r for r, _ in used], present, [g for _, g in used])

    needs = tuple(t is not None for t in inputs)
    found = reference.backward(
        cell, inputs, batch_sizes, reverse, results[0], (), *gradients, needs
    )

    assert tuple(d is not None for d in found) == needs
    torch.testing.assert_close([d for d in found if d is not None], list(expected))


def test_every_step_says_what_it_is():
    for cell in CELLS.values():
        assert inspect.getdoc(cell.step)
        assert getattr(cells, cell.name) is cell.step

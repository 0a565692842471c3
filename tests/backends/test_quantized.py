"""int8 and bfloat16 weights: the specification against sums of Python's integers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from fused_rnn.backends import Inputs
from fused_rnn.backends.quantized import Scales, is_narrow, quantize_rows, scan_reference
from fused_rnn.cells import CELLS, State, Weights

N, I, H, P = 3, 5, 7, 2  # noqa: E741
TINY = torch.finfo(torch.float32).tiny


def operands(
    cell, dtype=torch.int8, projected=False, bias=True, steps=1, n=N, i=I, h=H, narrow=False
):
    """Return float32 x, h0 and c0 with weights in ``dtype``, and the weights' scales.

    narrow: whether w_ih is bfloat16 beside int8
    """
    g, r = CELLS[cell].gates, P if projected else h
    c0 = torch.randn(n, h) if CELLS[cell].has_cell_state else None
    shapes = [(g * h, i), (g * h, r), *([(P, h)] if projected else [])]
    weights, scales = [], []
    for shape in shapes:
        w = torch.randn(shape) / shape[1] ** 0.5
        of = torch.bfloat16 if narrow and not weights else dtype
        if of == torch.int8:
            w, scale = quantize_rows(w)
            scales.append(scale.squeeze(1))
        elif narrow:
            scales.append(None)
        weights.append(w.to(of))
    biases = [torch.randn(g * h) for _ in range(2)] if bias else [None, None]
    w_hr = weights[2] if projected else None
    inputs = Inputs(
        torch.randn(steps, n, i), torch.rand(n, r) * 2 - 1, c0, *weights[:2], *biases, w_hr
    )
    return inputs, Scales(*scales) if scales else Scales(None, None)


def integers(row):
    """Return one row's integers and scale by the definition, an element at a time."""
    scale = torch.tensor(max(map(abs, row.tolist()))) / 127
    scale = max(scale, torch.tensor(TINY))
    return [round(Fraction((v / scale).item())) for v in row], scale.item()


def product(x, w, scales):
    """Return x times the transpose of an int8 matrix, from exact sums of integers."""
    out = torch.empty(len(x), len(w), dtype=torch.float64)
    for n, row in enumerate(x):
        q, scale = integers(row)
        for m, of in enumerate(w.tolist()):
            total = sum(a * b for a, b in zip(q, of, strict=True))
            out[n, m] = total * scale * scales[m].item()
    return out


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_the_cell_with_exact_sums(cell, bias):
    inputs, scales = operands(cell, bias=bias)
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, _ = inputs
    # The products as inputs of a cell whose weights are one: its equations are those of cells.py.
    eye = torch.eye(len(w_ih), dtype=torch.float64)
    biases = (b if b is None else b.double() for b in (b_ih, b_hh))
    products = product(x[0], w_ih, scales.w_ih), product(h0, w_hh, scales.w_hh)
    gates = CELLS[cell].gates_of(*products, Weights(eye, eye, *biases))
    before = State(h0.double(), c0 if c0 is None else c0.double())
    expected = CELLS[cell].after(gates, before)
    y, h_n, c_n, c = scan_reference(cell, inputs, scales, None, False)
    torch.testing.assert_close(y[0], expected.h.float())
    torch.testing.assert_close(h_n, y[0], rtol=0, atol=0)
    if c is not None:
        torch.testing.assert_close(c[0], expected.c.float())
        torch.testing.assert_close(c_n, c[0], rtol=0, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_a_narrow_input_is_not_rounded(cell):
    inputs, scales = operands(cell, narrow=True)  # of I = 1 a row is itself, rounded or not
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, _ = inputs
    eye = torch.eye(len(w_ih), dtype=torch.float64)
    products = x[0].double() @ w_ih.double().t(), product(h0, w_hh, scales.w_hh)
    gates = CELLS[cell].gates_of(*products, Weights(eye, eye, b_ih.double(), b_hh.double()))
    expected = CELLS[cell].after(gates, State(h0.double(), c0 if c0 is None else c0.double()))
    y, *_ = scan_reference(cell, inputs, scales, None, False)
    torch.testing.assert_close(y[0], expected.h.float())


def test_narrow_is_at_most_a_quarter():
    assert is_narrow(64, 256)
    assert not is_narrow(65, 256)


def test_a_projection_multiplies_integers_too():
    inputs, scales = operands("lstm", projected=True)
    h, _, _, _ = scan_reference("lstm", inputs, scales, None, False)
    whole = inputs._replace(w_hr=None)
    # One step from the same h0, whose width is the projection's: unprojected.
    unprojected, _, _, _ = scan_reference("lstm", whole, Scales(*scales[:2]), None, False)
    expected = product(unprojected[0], inputs.w_hr, scales.w_hr)
    torch.testing.assert_close(h[0], expected.float())


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_weights_are_the_cell_in_float32(cell):
    inputs, scales = operands(cell, torch.bfloat16, steps=3)
    wide = [t if t is None else t.double() for t in inputs]
    state = State(*wide[1:3])
    for x in wide[0]:
        state = CELLS[cell].step(x, state, Weights(*wide[3:]))
    y, _, _, _ = scan_reference(cell, inputs, scales, None, False)
    torch.testing.assert_close(y[-1], state.h.float(), rtol=1e-6, atol=1e-6)


def test_rounding_is_half_to_even_and_symmetric():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 126.5]])
    q, scale = quantize_rows(x)
    assert scale.item() == 1
    assert q[0].tolist() == [127, 0, 2, 2, 0, -2, -127, 126]


@pytest.mark.parametrize("largest", [3e38, 1.0, 1e-30, 1e-37, 1e-40, 1e-45, 0.0])
def test_no_size_is_out_of_range(largest):
    x = torch.tensor([[largest, -largest, largest / 3, 0.0]])
    q, scale = quantize_rows(x)
    assert q.abs().max() <= 127
    assert scale.item() >= TINY
    error = (q.double() * scale.double() - x.double()).abs().max().item()
    assert error <= max(largest / 127, TINY) * 0.5001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h0"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_makes_its_row_nan_and_no_other(cell, where, bad):
    inputs, scales = operands(cell, steps=2)
    clean, *_ = scan_reference(cell, inputs, scales, None, False)
    spoilt = getattr(inputs, where).clone()
    spoilt[..., 1, 2] = bad
    y, h_n, c_n, _ = scan_reference(cell, inputs._replace(**{where: spoilt}), scales, None, False)
    assert y[:, 1].isnan().all()
    assert h_n[1].isnan().all()
    assert c_n is None or c_n[1].isnan().all()
    torch.testing.assert_close(y[:, [0, 2]], clean[:, [0, 2]], rtol=0, atol=0)

"""Kernels for int8 and bfloat16 weights, on every SIMD level, against their specification."""

from __future__ import annotations

import pytest
import torch

import fused_rnn
from fused_rnn.backends.quantized import Scales, quantize_rows, scan_reference
from fused_rnn.cells import CELLS
from tests.backends.test_quantized import operands
from tests.native.quantized import MODELS, SHIPPED, is_built, lacks, run

LEVELS = [
    pytest.param(
        level, marks=pytest.mark.skipif(lacks(level) is not None, reason=f"{level}: {lacks(level)}")
    )
    for level in (*SHIPPED, *MODELS)
]
# Rows of x and h (N, I, H) about the sizes of steps, vectors and blocks of rows.
SIZES = [(1, 1, 1), (2, 3, 5), (3, 16, 8), (5, 33, 17), (7, 64, 40), (1, 130, 66), (20, 7, 9)]
each_level = pytest.mark.parametrize("level", LEVELS)
stored_types = pytest.mark.parametrize("stored", [torch.int8, torch.bfloat16], ids=str)


def skip_unbuilt(level, stored):
    if stored == torch.bfloat16 and (level in MODELS or "vnni" in level):
        pytest.skip("bfloat16 runs on the level without the instruction for int8")
    if not is_built(level, stored):
        pytest.skip("the module was built without this level")


@each_level
@pytest.mark.parametrize(("n", "i", "h"), SIZES)
def test_sums_are_exact_and_the_same_to_the_bit(level, n, i, h):
    # From h = 0 without biases a ReLU shows a sum times its scales, each rounded once.
    skip_unbuilt(level, torch.int8)
    torch.manual_seed(i)
    inputs, _ = operands("rnn_relu", bias=False, n=n, i=i, h=h)
    x = torch.randn(1, n, i) * torch.logspace(-20, 20, n).unsqueeze(1)
    for sign in (1, -1):
        w_ih = torch.randint(-127, 128, (h, i), dtype=torch.int8) * sign
        s_ih = torch.rand(h) + 0.1
        given = inputs._replace(x=x, h0=torch.zeros(n, h), w_ih=w_ih)
        found = run(level, "rnn_relu", given, Scales(s_ih, torch.ones(h)))
        q, scale = quantize_rows(x[0])
        sums = q.to(torch.int64) @ w_ih.t().to(torch.int64)
        expected = (sums.float() * (s_ih * scale)).relu()
        torch.testing.assert_close(found.y[0], expected, rtol=0, atol=0)
        torch.testing.assert_close(found.h_n, expected, rtol=0, atol=0)


@each_level
@pytest.mark.parametrize("weight", [-128, -127, 127])
@pytest.mark.parametrize("columns", [64, 4097])
def test_no_sum_saturates(level, weight, columns):
    skip_unbuilt(level, torch.int8)
    inputs, _ = operands("rnn_relu", bias=False, n=2, i=columns, h=9)
    sign = -1 if weight < 0 else 1
    given = inputs._replace(
        x=torch.tensor([3e38, 1e-3]).view(1, 2, 1).expand(1, 2, columns).contiguous() * sign,
        h0=torch.zeros(2, 9),
        w_ih=torch.full((9, columns), weight, dtype=torch.int8),
    )
    tiny = torch.full((9,), 1e-20)
    found = run(level, "rnn_relu", given, Scales(tiny, tiny))
    _, scale = quantize_rows(given.x[0])
    exact = torch.tensor(float(127 * abs(weight) * columns))
    torch.testing.assert_close(found.y[0], (exact * (tiny * scale)), rtol=0, atol=0)


@each_level
def test_as_many_columns_as_are_taken(level):
    skip_unbuilt(level, torch.int8)
    most = 1 << 17
    inputs, _ = operands("rnn_relu", bias=False, n=1, i=most, h=1)
    given = inputs._replace(
        x=torch.full((1, 1, most), -127.0),
        h0=torch.zeros(1, 1),
        w_ih=torch.full((1, most), -128, dtype=torch.int8),
    )
    found = run(level, "rnn_relu", given, Scales(torch.ones(1), torch.ones(1)))
    assert found.y.item() == 127 * 128 * most


def steps_of(level, cell, inputs, scales, found, batch_sizes, reverse):
    """Return what the specification makes of each step, from the state that the kernel left."""
    sizes = [inputs.x.shape[1]] * len(inputs.x) if batch_sizes is None else batch_sizes.tolist()
    flat = [t if t is None else t.flatten(0, -2) for t in (inputs.x, found.y, found.c)]
    xs, ys, cs = (t if t is None else t.split(sizes) for t in flat)
    expected_y, expected_c = [], []
    for t, size in enumerate(sizes):
        before = t + 1 if reverse else t - 1
        h, c = inputs.h0[:size], None if inputs.c0 is None else inputs.c0[:size]
        if 0 <= before < len(sizes):
            kept = min(size, sizes[before])
            h = torch.cat([ys[before][:kept], h[kept:]])
            c = c if c is None else torch.cat([cs[before][:kept], c[kept:]])
        one = inputs._replace(x=xs[t].unsqueeze(0), h0=h, c0=c)
        y, _, _, every_c = scan_reference(cell, one, scales, None, False)
        expected_y.append(y[0])
        expected_c += [] if every_c is None else [every_c[0]]
    expected = torch.cat(expected_y).view_as(found.y)
    return expected, torch.cat(expected_c).view_as(found.c) if expected_c else None


@each_level
@stored_types
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("variant", [*CELLS, "lstm-projected"])
@pytest.mark.parametrize(("n", "i", "h"), [(1, 5, 40), (6, 33, 19)])
def test_each_step_is_the_specification(level, variant, stored, n, i, h, ragged, reverse):
    skip_unbuilt(level, stored)
    torch.manual_seed(0)
    cell, _, projected = variant.partition("-")
    inputs, scales = operands(cell, stored, bool(projected), steps=4, n=n, i=i, h=h)
    batch_sizes = None
    if ragged:
        batch_sizes = torch.tensor([n, n, max(n // 2, 1), 1])
        inputs = inputs._replace(x=torch.randn(int(batch_sizes.sum()), i))
    found = run(level, cell, inputs, scales, batch_sizes, reverse)
    y, c = steps_of(level, cell, inputs, scales, found, batch_sizes, reverse)
    # A projection multiplies what was rounded to float32 before: an integer may be the next one.
    atol = 5e-3 if projected and stored == torch.int8 else 2e-6
    torch.testing.assert_close(found.y, y, rtol=2e-6, atol=atol)
    if c is not None:
        torch.testing.assert_close(found.c, c, rtol=2e-6, atol=2e-6)
    ends = 0 if reverse else -1
    if not ragged:
        torch.testing.assert_close(found.h_n, found.y[ends], rtol=0, atol=0)
    _, h_n, c_n, _ = scan_reference(cell, inputs, scales, batch_sizes, reverse)
    torch.testing.assert_close(found.h_n, h_n, rtol=0, atol=0.02)
    if c_n is not None:
        torch.testing.assert_close(found.c_n, c_n, rtol=0, atol=0.02)


@each_level
@pytest.mark.parametrize("variant", [*CELLS, "lstm-projected"])
@pytest.mark.parametrize(("n", "i", "h"), [(1, 5, 40), (6, 33, 19)])
def test_a_narrow_input_meets_bfloat16_and_the_states_int8(level, variant, n, i, h):
    skip_unbuilt(level, torch.int8)
    torch.manual_seed(0)
    cell, _, projected = variant.partition("-")
    inputs, scales = operands(cell, projected=bool(projected), steps=4, n=n, i=i, h=h, narrow=True)
    found = run(level, cell, inputs, scales)
    y, c = steps_of(level, cell, inputs, scales, found, None, False)
    # As above: an integer may be the next one.
    torch.testing.assert_close(found.y, y, rtol=2e-6, atol=5e-3 if projected else 2e-6)
    if c is not None:
        torch.testing.assert_close(found.c, c, rtol=2e-6, atol=2e-6)


@each_level
@stored_types
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_has_the_same_bits_in_any_batch_and_team(level, cell, stored):
    skip_unbuilt(level, stored)
    inputs, scales = operands(cell, stored, steps=3, n=7, i=40, h=70)
    whole = run(level, cell, inputs, scales, threads=3)
    for n in (0, 6):
        c0 = None if inputs.c0 is None else inputs.c0[n : n + 1]
        alone = inputs._replace(
            x=inputs.x[:, n : n + 1].contiguous(), h0=inputs.h0[n : n + 1], c0=c0
        )
        found = run(level, cell, alone, scales)
        torch.testing.assert_close(found.y[:, 0], whole.y[:, n], rtol=0, atol=0)


@each_level
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "h0"])
@pytest.mark.parametrize("variant", [*CELLS, "lstm-projected"])
def test_what_is_not_finite_makes_its_row_nan_and_no_other(level, variant, where, bad):
    skip_unbuilt(level, torch.int8)
    cell, _, projected = variant.partition("-")
    inputs, scales = operands(cell, projected=bool(projected), steps=3, n=6)
    clean = run(level, cell, inputs, scales)
    spoilt = getattr(inputs, where).clone()
    spoilt[..., 4, 1] = bad
    found = run(level, cell, inputs._replace(**{where: spoilt}), scales)
    assert found.y[:, 4].isnan().all()
    assert found.h_n[4].isnan().all()
    others = [0, 1, 2, 3, 5]
    torch.testing.assert_close(found.y[:, others], clean.y[:, others], rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 100, 250], ids=["one", "a chunk", "chunks"])
def test_the_op_takes_many_sequences_and_steps(steps):
    torch.manual_seed(1)
    layer = fused_rnn.quantize(fused_rnn.LSTM(6, 20))
    x = torch.randn(steps, 300 if steps == 1 else 3, 6)
    y, _ = layer(x)
    for n in (0, x.shape[1] - 1):
        alone, _ = layer(x[:, n])
        torch.testing.assert_close(alone, y[:, n], rtol=0, atol=0)

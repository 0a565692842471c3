"""The kernels on tile registers: AMX's, and a model of them in plain C++ with the very same bits.

Both take every problem that tiles can, and throw where they cannot; which calls the level ``amx``
gives to tiles is a matter of time alone.
"""

import pytest
import torch

from tests.backends.native.test_native import assert_is_expected, row_of_batch
from tests.native.core import EACH_LEVEL, EACH_TILES, GRADIENTS, assert_same_bits, bench_for, run
from tests.native.scans import ALL_SHAPES, VARIANTS, expected_of, make_scan
from tests.operands import Shape, ragged
from tests.test_import import run_python

each_tiles = pytest.mark.parametrize("level", EACH_TILES)
on_amx = pytest.mark.parametrize("level", EACH_TILES[:1])
amx_level = pytest.mark.parametrize("level", EACH_LEVEL[-1:])
# The cheapest first: of several, the core tier takes the first, and the model is slow.
CELLS_OF_TILES = [v for v in reversed(VARIANTS) if v != "lstm-projected"]
variants = pytest.mark.parametrize("variant", CELLS_OF_TILES)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)

# What is cut or padded in another way; the model takes a millisecond for some tens of products.
SHAPES = {
    "one": Shape(1, 1, 1, 1),
    "narrow": Shape(3, 5, 7, 17),
    "whole-tiles": Shape(2, 16, 32, 32),
    "wide": Shape(3, 20, 35, 50),
    "ragged": ragged([(5 * n) % 9 + 1 for n in range(35)], 5, 20),
    "ragged-narrow": ragged([4, 4, 2, 1], 3, 33),
    "fold": Shape(2, 3, 1030, 20),
}
# Beside those of every level: too much for the model.
LARGE = {
    "parts": Shape(3, 300, 5, 20),
    "ragged-parts": ragged([n % 4 + 1 for n in range(290)], 3, 17, bias=False),
    "chunks": Shape(40, 20, 9, 34),
    "hidden-fold": Shape(2, 18, 20, 600),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
# The registers themselves, and the model with what takes it no minutes.
SOME_OF_EACH = pytest.mark.parametrize(
    ("level", "shape"),
    [
        pytest.param(*each.values, SHAPES[name], marks=each.marks, id=f"{name}-{each.values[0]}")
        for each in (e if hasattr(e, "marks") else pytest.param(e) for e in EACH_TILES)
        for name in ("narrow", "wide", "ragged")
        if name == "narrow" or each.values[0] != "amx_model"
    ],
)
SOME = pytest.mark.parametrize(
    "shape",
    [SHAPES[name] for name in ("narrow", "wide", "ragged")],
    ids=["narrow", "wide", "ragged"],
)


@each_tiles
@variants
@directions
@shapes
@dtypes
def test_tiles_are_the_reference(level, variant, shape, reverse, dtype, tolerance):
    assert_is_expected(level, make_scan(variant, shape, reverse, dtype), tolerance)


@on_amx
@variants
@directions
@pytest.mark.parametrize("shape", (ALL_SHAPES | LARGE).values(), ids=(ALL_SHAPES | LARGE).keys())
@dtypes
def test_registers_are_the_reference(level, variant, shape, reverse, dtype, tolerance):
    assert_is_expected(level, make_scan(variant, shape, reverse, dtype), tolerance)


@on_amx
@variants
@directions
@shapes
@dtypes
def test_the_model_has_the_bits_of_the_registers(level, variant, shape, reverse, dtype):
    scan = make_scan(variant, shape, reverse, dtype)
    assert_same_bits(run("amx_model", scan), run(level, scan))


@variants
@SOME_OF_EACH
def test_results_do_not_depend_on_the_team(level, variant, shape):
    # Of one product each, where it is the model: six would take it a quarter of a minute.
    dtype = torch.bfloat16 if level == "amx_model" else torch.float32
    scan = make_scan(variant, shape._replace(H=140), dtype=dtype)
    alone = run(level, scan)
    for threads, parallel in ((2, "threads"), (3, "late"), (3, "only_last"), (2, "in_turn")):
        assert_same_bits(run(level, scan, threads=threads, parallel=parallel), alone)
        assert bench_for(level).last_members() > 1


@variants
@SOME_OF_EACH
def test_inference_is_training(level, variant, shape):
    scan = make_scan(variant, shape)
    inference, training = run(level, scan, training=False), run(level, scan, wanted=())
    assert_same_bits(inference, training)


@variants
@SOME_OF_EACH
def test_each_gradient_can_be_had_alone(level, variant, shape):
    scan = make_scan(variant, shape)
    everything = run(level, scan)
    for name in everything.keys() & set(GRADIENTS):
        alone = run(level, scan, wanted=(name,))
        assert_same_bits({name: alone[name]}, {name: everything[name]})


@each_tiles
@variants
@directions
@SOME
@dtypes
@pytest.mark.parametrize("where", ["x", "h0", "dy"])
def test_nan_stays_in_its_sequence(level, variant, shape, reverse, dtype, where):
    scan = make_scan(variant, shape, reverse, dtype)
    clean = run(level, scan)
    row, spoilt_row = row_of_batch(scan), 1
    operand = (scan.gradients[0] if where == "dy" else getattr(scan.inputs, where)).clone()
    rows = torch.arange(shape.N) if where == "h0" else row
    operand.view(len(rows), -1)[rows == spoilt_row] = torch.nan
    if where == "dy":
        spoilt = scan._replace(gradients=(operand, *scan.gradients[1:]))
    else:
        spoilt = scan._replace(inputs=scan.inputs._replace(**{where: operand}))
    found = run(level, spoilt)
    hit = found["dx" if where == "dy" else "y"].view(len(row), -1)
    assert hit[row == spoilt_row].isnan().any()
    for name in {"y", "h_n", "c_n", "dx", "dh0", "dc0"} & found.keys():
        rows = row if name in ("y", "dx") else torch.arange(shape.N)
        a, b = (r[name].view(len(rows), -1)[rows != spoilt_row] for r in (found, clean))
        assert_same_bits({name: a}, {name: b})


UNCARRIED = {
    "inf-x": ("x", lambda t: t.index_fill(-1, torch.tensor([2]), torch.inf)),
    "inf-h0": ("h0", lambda t: t.index_fill(-1, torch.tensor([2]), -torch.inf)),
    "inf-w_ih": ("w_ih", lambda t: t.index_fill(-1, torch.tensor([2]), torch.inf)),
    "inf-w_hh": ("w_hh", lambda t: t.index_fill(-1, torch.tensor([2]), torch.inf)),
    "tiny-x": ("x", lambda t: t * 1e-20),
    "tiny-w": ("w_hh", lambda t: t * 1e-30),
}


@each_tiles
@variants
@pytest.mark.parametrize("case", UNCARRIED.values(), ids=UNCARRIED.keys())
def test_what_pieces_cannot_carry_is_refused(level, variant, case):
    name, spoil = case
    scan = make_scan(variant, SHAPES["narrow"])
    spoilt = scan.inputs._replace(**{name: spoil(getattr(scan.inputs, name))})
    with pytest.raises(RuntimeError, match="tiles cannot take this"):
        run(level, scan._replace(inputs=spoilt), training=False)


@each_tiles
@variants
@pytest.mark.parametrize("scale", [torch.inf, 1e-32], ids=["inf", "tiny"])
def test_gradients_that_pieces_cannot_carry_are_refused(level, variant, scale):
    scan = make_scan(variant, SHAPES["narrow"])
    gradients = tuple(g if g is None else g * scale for g in scan.gradients)
    with pytest.raises(RuntimeError, match="tiles cannot take this"):
        run(level, scan._replace(gradients=gradients))


@each_tiles
def test_a_state_that_overflows_is_refused(level):
    scan = make_scan("rnn_relu", Shape(9, 5, 7, 17))
    grown = scan.inputs._replace(w_hh=scan.inputs.w_hh.abs() * 1e9, x=scan.inputs.x.abs())
    with pytest.raises(RuntimeError, match="tiles cannot take this"):
        run(level, scan._replace(inputs=grown), training=False)


@each_tiles
@pytest.mark.parametrize("scale", [1e-8, 1e8, 3e34], ids=str)
def test_numbers_of_every_size_are_exact(level, scale, tolerance):
    scan = make_scan("rnn_relu", SHAPES["narrow"])
    inputs, zero = scan.inputs, torch.zeros(len(scan.inputs.w_hh))
    sized = inputs._replace(x=inputs.x * scale, h0=inputs.h0 * scale, b_ih=zero, b_hh=zero)
    found, expected = (
        what(scan._replace(inputs=sized))["y"] / scale
        for what in (lambda s: run(level, s, training=False), expected_of)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def every_bfloat16() -> torch.Tensor:
    """All finite ones that tiles take, as rows of 16."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    return torch.where(x.isfinite() & (x.abs() > 2**-40), x, 0).view(-1, 16)


def gate_of(cell: str, level: str, x: torch.Tensor, name: str) -> torch.Tensor:
    """What a cell's first gate makes of x: tanh, or sigmoid as the LSTM's c where g = 1, f = 0."""
    scan = make_scan(cell, Shape(1, len(x), 16, 16), dtype=torch.bfloat16)
    given = scan.inputs._asdict().items()
    zeros = {name: None if t is None else torch.zeros_like(t) for name, t in given}
    zeros["x"] = x[None]
    zeros["w_ih"][:16] = torch.eye(16)
    if cell == "lstm":
        zeros["b_ih"][16:32], zeros["b_ih"][32:48] = -100, 20
    found = run(level, scan._replace(inputs=scan.inputs._replace(**zeros)), training=False)
    return found[name].view(-1, 16).double()


@each_tiles
@pytest.mark.parametrize(
    ("cell", "name", "function"),
    [("rnn_tanh", "y", torch.tanh), ("lstm", "c_n", torch.sigmoid)],
    ids=["tanh", "sigmoid"],
)
def test_bfloat16_gates_are_rounded_but_once(level, cell, name, function):
    x = every_bfloat16()
    found, expected = gate_of(cell, level, x, name), function(x.double())
    kept = expected.abs() > 1e-37  # smaller ones are denormal numbers somewhere on the way
    half_a_unit = 2.0 ** (expected.frexp().exponent.double() - 9)
    assert ((found - expected).abs() <= half_a_unit + 1e-4 * expected.abs())[kept].all()
    assert found.abs().max() <= 1


@amx_level
@variants
@pytest.mark.parametrize("case", UNCARRIED.values(), ids=UNCARRIED.keys())
def test_the_level_below_takes_what_is_refused(level, variant, case):
    name, spoil = case
    scan = make_scan(variant, Shape(4, 32, 40, 260))
    spoilt = scan.inputs._replace(**{name: spoil(getattr(scan.inputs, name))})
    scan = scan._replace(inputs=spoilt)
    assert_same_bits(run(level, scan), run("avx512", scan))


@amx_level
@variants
def test_the_level_below_takes_gradients_that_are_refused(level, variant):
    scan = make_scan(variant, Shape(4, 32, 40, 260))
    for scale in (torch.inf, 1e-32):
        # What forward has saved is the same: backward alone is what differs.
        gradients = tuple(g if g is None else g * scale for g in scan.gradients)
        found = run(level, scan._replace(gradients=gradients))
        expected = run("avx512", scan._replace(gradients=gradients))
        for gradient in GRADIENTS:
            if gradient in found:
                a, b = (r[gradient] for r in (found, expected))
                torch.testing.assert_close(
                    a / (scale if scale < 1 else 1),
                    b / (scale if scale < 1 else 1),
                    rtol=1e-4,
                    atol=1e-5,
                    equal_nan=True,
                )


@amx_level
@variants
def test_large_scans_go_to_tiles(level, variant):
    scan = make_scan(variant, Shape(5, 32, 130, 260))
    found, below = (run(name, scan) for name in (level, "avx512"))
    # Sums in another order: near, and not the same everywhere.
    for name, tensor in found.items():
        assert not torch.equal(tensor, below[name]), name
        torch.testing.assert_close(tensor, below[name], rtol=1e-4, atol=1e-4)


@on_amx
def test_registers_are_released(level):
    run(level, make_scan("lstm", SHAPES["wide"]))
    assert not bench_for(level).tiles_in_use()


@on_amx
def test_a_small_signal_stack_refuses_the_registers(level):
    # Linux grants no tile registers where a thread has no room to save them on a signal.
    code = (
        "import ctypes\n"
        "class Stack(ctypes.Structure):\n"
        "    _fields_ = [('sp', ctypes.c_void_p), ('flags', ctypes.c_int),\n"
        "                ('size', ctypes.c_size_t)]\n"
        "memory = ctypes.create_string_buffer(4096)\n"
        "stack = Stack(ctypes.addressof(memory), 0, 4096)\n"
        "assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0\n"
        "import fused_rnn\n"
        "print(fused_rnn.backends.native.simd_level())\n"
    )
    out, err = run_python(code, FUSED_RNN_SIMD="amx")
    assert out == "avx512", err

"""The kernels of every SIMD level, called without PyTorch: what they compute, read and write."""

import threading

import pytest
import torch

from tests.native.core import EACH_LEVEL, GRADIENTS, assert_same_bits, bench_for, run
from tests.native.scans import ALL_SHAPES, FEW_SHAPES, VARIANTS, expected_of, make_scan
from tests.operands import Shape, assert_near

pytestmark = pytest.mark.parametrize("level", EACH_LEVEL)
variants = pytest.mark.parametrize("variant", VARIANTS)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
few_shapes = pytest.mark.parametrize("shape", FEW_SHAPES.values(), ids=FEW_SHAPES.keys())


def assert_is_expected(level, scan, tolerance):
    found, expected = run(level, scan), expected_of(scan)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        gradient = name in GRADIENTS
        assert_near(found[name], wanted, tolerance.gradient if gradient else tolerance.forward)


@variants
@directions
@pytest.mark.parametrize("shape", ALL_SHAPES.values(), ids=ALL_SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
def test_level_is_the_reference(level, variant, shape, reverse, dtype, tolerance):
    assert_is_expected(level, make_scan(variant, shape, reverse, dtype), tolerance)


@variants
@few_shapes
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["float64", "float16", "bfloat16"]
)
def test_level_is_the_reference_in_other_types(level, variant, shape, dtype, tolerance):
    assert_is_expected(level, make_scan(variant, shape, True, dtype), tolerance)


@variants
@few_shapes
def test_absent_gradients_are_zero(level, variant, shape):
    scan = make_scan(variant, shape)
    for present in (None, *range(3)):
        given = [g if i == present else None for i, g in enumerate(scan.gradients)]
        zeros = [
            g if i == present or g is None else torch.zeros_like(g)
            for i, g in enumerate(scan.gradients)
        ]
        found = run(level, scan._replace(gradients=tuple(given)))
        expected = run(level, scan._replace(gradients=tuple(zeros)))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@variants
@few_shapes
def test_absent_biases_are_zero(level, variant, shape):
    scan = make_scan(variant, shape._replace(bias=False))
    zeros = torch.zeros(len(scan.inputs.w_hh))
    for ih, hh in ((zeros, zeros), (zeros, None), (None, zeros)):
        expected = run(level, scan._replace(inputs=scan.inputs._replace(b_ih=ih, b_hh=hh)))
        found = run(level, scan)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@variants
@few_shapes
def test_each_gradient_can_be_had_alone(level, variant, shape):
    scan = make_scan(variant, shape)
    everything = run(level, scan)
    for name in everything.keys() & set(GRADIENTS):
        alone = run(level, scan, wanted=(name,))
        assert_same_bits({name: alone[name]}, {name: everything[name]})
    without = run(level, scan, wanted=())
    assert not without.keys() & set(GRADIENTS)


@variants
@few_shapes
def test_inference_needs_no_room_for_training(level, variant, shape):
    scan = make_scan(variant, shape)
    inference, training = run(level, scan, training=False), run(level, scan, wanted=())
    torch.testing.assert_close(inference, training, rtol=1e-6, atol=1e-7)


def row_of_batch(scan):
    """Return which sequence each row of x belongs to."""
    T, N = scan.inputs.x.shape[0], len(scan.inputs.h0)
    sizes = [N] * T if scan.batch_sizes is None else scan.batch_sizes.tolist()
    return torch.tensor([n for size in sizes for n in range(size)])


@variants
@directions
@few_shapes
@pytest.mark.parametrize("where", ["x", "h0", "dy"])
def test_nan_stays_in_its_sequence(level, variant, shape, reverse, where):
    scan = make_scan(variant, shape, reverse)
    clean = run(level, scan)
    row, spoilt_row = row_of_batch(scan), 1
    if where == "dy":
        dy = scan.gradients[0].clone()
        dy.view(len(row), -1)[row == spoilt_row] = torch.nan
        spoilt = scan._replace(gradients=(dy, *scan.gradients[1:]))
    else:
        operand = getattr(scan.inputs, where).clone()
        rows = row if where == "x" else torch.arange(shape.N)
        operand.view(len(rows), -1)[rows == spoilt_row] = torch.nan
        spoilt = scan._replace(inputs=scan.inputs._replace(**{where: operand}))
    found = run(level, spoilt)
    hit = found["dx" if where == "dy" else "y"].view(len(row), -1)
    assert hit[row == spoilt_row].isnan().any()
    for name in ("y", "h_n", "c_n", "dx", "dh0", "dc0"):
        if name in found:
            rows = row if name in ("y", "dx") else torch.arange(shape.N)
            others = rows != spoilt_row
            a, b = (r[name].view(len(rows), -1)[others] for r in (found, clean))
            assert_same_bits({name: a}, {name: b})


@pytest.mark.parametrize("variant", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize(
    "H",
    [
        16,
        5,  # the lanes past H hold 0 * inf
    ],
)
def test_gradients_of_saturated_units_are_finite(level, variant, H):
    scan = make_scan(variant, Shape(5, 9, 3, H))
    scan.inputs.x[0, 1, 0] = torch.inf
    found, expected = run(level, scan), expected_of(scan)
    for name in ("dx", "dh0", "dw_hh", "db_ih", "db_hh"):
        assert expected[name].isfinite().all()
        assert found[name].isfinite().all(), name


def test_relu_of_nan_passes_the_gradient(level):
    scan = make_scan("rnn_relu", Shape(2, 3, 3, 5))
    scan.inputs.x[0, 1, 0] = torch.nan
    found, expected = run(level, scan), expected_of(scan)
    for name in ("dx", "dh0"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)


@variants
def test_scratch_of_another_call_is_not_read(level, variant):
    # Large enough that blocks are kept for the next call.
    scan = make_scan(variant, Shape(12, 24, 40, 70))
    first = run(level, scan)
    nan = type(scan.inputs)(*(t if t is None else t * torch.nan for t in scan.inputs))
    run(level, scan._replace(inputs=nan))
    assert_same_bits(run(level, scan), first)


@variants
def test_calls_at_the_same_time(level, variant):
    bench_for(level)
    scans = [make_scan(variant, Shape(6, 20 + i, 30, 50)) for i in range(4)]
    expected = [run(level, scan) for scan in scans]
    found = [[] for _ in scans]

    def work(i):
        found[i] += [run(level, scans[i], threads=2) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(scans))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 3
        for result in results:
            assert_same_bits(result, wanted)

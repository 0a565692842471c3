"""The kernels' own threads: any number of them computes the same bits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fused_rnn.backends import reference
from fused_rnn.cells import CELLS
from fused_rnn.scans import autograd
from tests.operands import cotangents, make_inputs, needing, present, ragged

# Enough work per step for several threads, and columns that do not divide evenly among them.
SHAPES = {"dense": (6, 9, 40, 130, True, None), "ragged": ragged((7, 6, 6, 3, 1), 33, 260)}


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(kernel, cell, inputs, batch_sizes, reverse, gradients):
    """Return outputs and gradients of one scan."""
    operands = needing(inputs)
    outputs = autograd.scan(kernel, cell, operands, batch_sizes, reverse)
    wanted = present(operands)
    found = torch.autograd.grad(present(outputs), wanted, present(gradients))
    return [t.detach() for t in (*present(outputs), *found)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_do_not_change_a_bit(kernel, cell, shape, device):
    reverse = True
    inputs, batch_sizes = make_inputs((cell, False), shape, torch.float32, device)
    gradients = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])
    torch.set_num_threads(1)
    expected = run(kernel, cell, inputs, batch_sizes, reverse, gradients)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for _ in range(3):
            for a, b in zip(
                run(kernel, cell, inputs, batch_sizes, reverse, gradients), expected, strict=True
            ):
                assert torch.equal(a, b), threads


def test_callers_side_by_side(kernel, device):
    inputs, batch_sizes = make_inputs(("lstm", False), SHAPES["dense"], torch.float32, device)
    gradients = cotangents(reference.forward("lstm", inputs, batch_sizes, False, False)[:3])
    torch.set_num_threads(3)
    expected = run(kernel, "lstm", inputs, batch_sizes, False, gradients)

    def again(_):
        torch.set_num_threads(3)
        return run(kernel, "lstm", inputs, batch_sizes, False, gradients)

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(again, range(12)):
            for a, b in zip(result, expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_every_thread_has_the_callers_float_mode(kernel, cell):
    torch.set_num_threads(2)
    many = torch.full((1 << 22,), 1e-39)
    assert (many + many).all()  # from here on torch's threads are there, each with its own mode
    shape = (8, 512, 64, 64, False, None)
    inputs, _ = make_inputs((cell, False), shape, torch.float32)
    gates = len(inputs.w_hh) // 64
    inputs = inputs._replace(
        x=torch.full_like(inputs.x, 1e-39),
        h0=torch.zeros_like(inputs.h0),
        c0=None if inputs.c0 is None else torch.zeros_like(inputs.c0),
        w_ih=torch.eye(64).repeat(gates, 1),
        w_hh=torch.zeros_like(inputs.w_hh),
    )
    assert kernel.forward(cell, inputs, None, False, False)[0].all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        for _ in range(12):
            assert not kernel.forward(cell, inputs, None, False, False)[0].any()
    finally:
        torch.set_flush_denormal(False)
    assert (many * 1.0).all()  # they have their own back


@pytest.mark.parametrize("cell", CELLS)
def test_nan_reaches_every_gradient_it_should(kernel, cell, device):
    inputs, _ = make_inputs((cell, False), (3, 4, 5, 6, True, None), torch.float64, device)
    inputs.x[1, 2] = torch.nan
    nan = []
    for backend in (reference, kernel):
        operands = needing(inputs)
        y = autograd.scan(backend, cell, operands, None, False)[0]
        wanted = present(operands)
        nan.append([t.isnan() for t in torch.autograd.grad((y * y).sum(), wanted)])
    assert nan[0][0].any()
    for expected, found in zip(*nan, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("cell", CELLS)
def test_rounding_does_not_grow_with_the_batch(kernel, cell, device):
    inputs, _ = make_inputs((cell, False), (1, 20000, 3, 4, True, None), torch.float32, device)
    exact = type(inputs)(*(t if t is None else t.double() for t in inputs))
    gradients = cotangents(reference.forward(cell, inputs, None, False, False)[:3])
    doubles = [g if g is None else g.double() for g in gradients]
    expected = run(reference, cell, exact, None, False, doubles)
    found = run(kernel, cell, inputs, None, False, gradients)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 2e-6 * b.abs().max()

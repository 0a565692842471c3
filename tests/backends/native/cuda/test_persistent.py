"""Persistent kernels on a GPU: numbers, graphs, other work beside them, and no waiting for it."""

import pytest
import torch

import fused_rnn
from fused_rnn.backends import Problem, native, reference
from fused_rnn.scans import autograd
from tests.conftest import NO_CUDA, TOLERANCES, needs_cuda
from tests.operands import (
    Shape,
    as_double,
    assert_near,
    cotangents,
    differentiate,
    make_inputs,
    needing,
    present,
    ragged,
)

CAPABILITY = (0, 0) if NO_CUDA else torch.cuda.get_device_capability()
pytestmark = [
    needs_cuda,
    pytest.mark.skipif(CAPABILITY < (8, 0), reason=f"they need sm_80, here is {CAPABILITY}"),
]

GPU = "cuda"
# One block, one cluster, the whole device; one chunk and several, full and not.
SHAPES = {
    "one-block": Shape(40, 5, 3, 30),
    "cluster": Shape(30, 40, 8, 200),
    "device": Shape(20, 20, 16, 650),
    "one-sequence": Shape(60, 1, 8, 512, bias=False),
    "ragged": ragged([1 + (7 * n) % 33 for n in range(37)], 5, 130),
    "ragged-device": ragged([1 + (5 * n) % 18 for n in range(20)], 5, 768),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def _persistent(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request):
    """Each way a plan may go."""
    return request.param


@pytest.fixture(params=["lstm", "gru", "rnn_tanh"])
def cell(request):
    """Cells; a ReLU's is one branch in the same kernel."""
    return request.param


def is_persistent(cell, shape, dtype):
    """Return whether both passes have a plan on this GPU, which may be a small one."""
    like = torch.empty(0, device=GPU, dtype=dtype)
    sizes = (shape.T, shape.N, shape.H, 0)
    words = [torch.ops.fused_rnn.persistent_plan(like, cell, *sizes, b) for b in (False, True)]
    return all(w.startswith("persistent") for w in words)


def gradients_of(cell, inputs, batch_sizes, reverse):
    given = cotangents(reference.forward(cell, inputs, batch_sizes, reverse, False)[:3])
    return [g if g is None else g.to(inputs.x.dtype) for g in given]


def draw_both(cell, shape, dtype):
    """Return the operands of both directions, which need gradients, and the batch sizes."""
    forward, batch_sizes = make_inputs((cell, False), shape, dtype, GPU)
    reverse, _ = make_inputs((cell, False), shape, dtype, GPU)
    forward = needing(forward)
    inputs = forward, needing(reverse)._replace(x=forward.x)
    problem = Problem(
        cell, forward.x.device, dtype, *shape[:4], 0, batch_sizes is not None, True, None
    )
    if not native.takes_both(problem):
        pytest.skip("this GPU has no plan for both directions")
    return inputs, batch_sizes


def back(results, inputs, gradients):
    """Return the gradients of both directions' operands, x once."""
    operands = present([*inputs[0], *inputs[1][1:]])
    return torch.autograd.grad(results, operands, gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers(cell, shape, dtype, reverse):
    if not is_persistent(cell, shape, dtype):
        pytest.skip("this GPU has no plan for it")
    inputs, batch_sizes = make_inputs((cell, False), shape, dtype, GPU)
    oracle = needing(as_double(inputs))
    gradients = gradients_of(cell, inputs, batch_sizes, reverse)
    wide = [g if g is None else g.double() for g in gradients]
    expected = differentiate(reference, cell, oracle, batch_sizes, reverse, wide)
    for _ in range(3):
        found = differentiate(native, cell, needing(inputs), batch_sizes, reverse, gradients)
        for actual, wanted in zip(present(found[0]), present(expected[0]), strict=True):
            assert_near(actual, wanted, TOLERANCES[dtype].forward)
        for actual, wanted in zip(present(found[1]), present(expected[1]), strict=True):
            assert_near(actual, wanted, TOLERANCES[dtype].gradient)


def test_two_runs_are_bit_equal_whatever_else_runs(cell, shape, reverse):
    dtype = torch.bfloat16
    inputs, batch_sizes = make_inputs((cell, False), shape, dtype, GPU)
    gradients = gradients_of(cell, inputs, batch_sizes, reverse)

    def run():
        return differentiate(native, cell, needing(inputs), batch_sizes, reverse, gradients)

    alone = run()
    other, busy = torch.cuda.Stream(), torch.randn(2048, 2048, device=GPU)
    for _ in range(5):
        with torch.cuda.stream(other):
            for _ in range(10):
                busy = torch.mm(busy, busy).clamp_(-1, 1)
        torch.testing.assert_close(run(), alone, rtol=0, atol=0)
    torch.cuda.synchronize()


def test_two_streams_at_once(cell):
    shape = SHAPES["device"]
    inputs, _ = make_inputs((cell, False), shape, torch.float16, GPU)
    expected = native.forward(cell, inputs, None, False, False)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(native.forward(cell, inputs, None, False, False)[0])
    torch.cuda.synchronize()
    for y in found:
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_a_graph_replays(cell, shape):
    inputs, batch_sizes = make_inputs((cell, False), shape, torch.float16, GPU)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        native.forward(cell, inputs, batch_sizes, False, False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = native.forward(cell, inputs, batch_sizes, False, False)[0]
    for _ in range(3):
        inputs.x.copy_(torch.randn_like(inputs.x))
        graph.replay()
        expected = native.forward(cell, inputs, batch_sizes, False, False)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_it_never_waits_for_the_gpu(cell, shape):
    inputs, batch_sizes = make_inputs((cell, False), shape, torch.float16, GPU)
    gradients = gradients_of(cell, inputs, batch_sizes, False)

    def run():
        differentiate(native, cell, needing(inputs), batch_sizes, False, gradients)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_floor_runs(cell):
    shape = SHAPES["device"]
    like = torch.empty(0, device=GPU, dtype=torch.float16)
    for exchange in (False, True):
        for products in (False, True):
            torch.ops.fused_rnn.persistent_floor(
                like, cell, shape.T, shape.N, shape.H, exchange, products
            )
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_directions_are_two_scans(cell, shape, dtype):
    inputs, batch_sizes = draw_both(cell, shape, dtype)
    scans = [autograd.scan(native, cell, inputs[k], batch_sizes, k == 1) for k in (0, 1)]
    expected = present([*scans[0], *scans[1]])
    gradients = [torch.randn_like(r) for r in expected]
    wanted = back(expected, inputs, gradients)
    # Each of the two may be off the truth that far, and on either side of it.
    forward, gradient = (2 * tolerance for tolerance in TOLERANCES[dtype])
    for _ in range(3):
        both = autograd.scan_both(native, cell, inputs, batch_sizes)
        results = present([*both[0], *both[1]])
        for actual, other in zip(results, expected, strict=True):
            assert_near(actual, other, forward)
        for actual, other in zip(back(results, inputs, gradients), wanted, strict=True):
            assert_near(actual, other, gradient)
    with torch.no_grad():
        both = autograd.scan_both(native, cell, inputs, batch_sizes)
    for actual, other in zip(present([*both[0], *both[1]]), expected, strict=True):
        assert_near(actual, other, forward)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_bidirectional_module_takes_them(name, monkeypatch):
    ways = []
    for way in ("forward_both", "backward_both"):
        real = getattr(native, way)
        monkeypatch.setattr(native, way, lambda *a, w=way, f=real: ways.append(w) or f(*a))
    rnn = getattr(fused_rnn, name)(8, 30, 2, bidirectional=True, device=GPU)
    x = torch.randn(40, 5, 8, device=GPU, requires_grad=True)
    if "both directions" not in fused_rnn.explain(rnn, x)[0].how:
        pytest.skip("this GPU has no plan for both directions")
    found = []
    for backend in ("native", "reference"):
        ways.clear()
        with fused_rnn.use_backend(backend):
            y, _ = rnn(x)
            found.append((y, *torch.autograd.grad(y.square().sum(), [x, *rnn.parameters()])))
        expected = ["forward_both"] * 2 + ["backward_both"] * 2
        assert ways == (expected if backend == "native" else [])
    for actual, wanted in zip(*found, strict=True):
        assert_near(actual, wanted, 1e-5)


def test_a_graph_of_both_directions_replays(cell, shape):
    inputs, batch_sizes = draw_both(cell, shape, torch.float16)

    def run():
        both = autograd.scan_both(native, cell, inputs, batch_sizes)
        results = present([*both[0], *both[1]])
        return *results, *back(results, inputs, [torch.ones_like(r) for r in results])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for _ in range(3):
        with torch.no_grad():
            inputs[0].x.copy_(torch.randn_like(inputs[0].x))
        graph.replay()
        for actual, expected in zip(found, run(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_both_directions_never_wait_for_the_gpu(cell, shape):
    inputs, batch_sizes = draw_both(cell, shape, torch.float16)

    def run():
        both = autograd.scan_both(native, cell, inputs, batch_sizes)
        results = present([*both[0], *both[1]])
        back(results, inputs, [torch.ones_like(r) for r in results])

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")

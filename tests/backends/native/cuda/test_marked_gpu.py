"""Scans with marks, as only a GPU shows them: no waiting, graphs, wide accesses, devices."""

import pytest
import torch

import fused_rnn
from fused_rnn.backends.base import Marked
from fused_rnn.backends.native import marked as native_marked
from tests.conftest import needs_cuda
from tests.marked import (
    CASES,
    Case,
    draw_in,
    expected_gradients,
    fed_for,
    make_marked,
    marks_of,
    run,
)
from tests.operands import Shape, assert_near, present

pytestmark = needs_cuda

BOTH = CASES["both"]


def on_gpu(cell, case, reverse):
    inputs, marked = make_marked(cell, case, reverse, True, torch.float32, "cuda")
    return inputs._replace(x=inputs.x.nan_to_num(1, 1)), marked


def test_wide_accesses_on_a_gpu(cell, dtype, tolerance):
    reverse = True
    shape = Shape(3, 600, 16, 1024)
    lengths = tuple(n % 4 for n in range(600))
    case = Case(shape, lengths, tuple((n % 3, n) for n in range(0, 600, 5)))
    inputs, marked = make_marked(cell, case, reverse, True, dtype, "cuda")
    expected, fed, gradients = expected_gradients(
        cell, inputs, marked, case, reverse, draw_in(dtype)
    )
    found, actual, _ = run(cell, inputs, marked, reverse, fed_for(fed, marked, dtype, "cuda"))
    for a, wanted in zip(found, expected, strict=True):
        assert_near(a, wanted, tolerance.forward)
    for name, wanted in gradients.items():
        if wanted is not None:
            assert_near(actual[name], wanted, tolerance.gradient)


@pytest.fixture
def no_waiting():
    """Make every wait for the GPU an error."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def test_the_host_does_not_wait(cell, reverse, request):
    inputs, marked = on_gpu(cell, BOTH, reverse)
    ones = torch.ones(*BOTH.shape[:2], BOTH.shape.H, device="cuda")
    request.getfixturevalue("no_waiting")
    run(cell, inputs, marked, reverse, [ones])


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_the_host_does_not_wait_in_a_call(layer, request):
    module = getattr(fused_rnn, layer)(5, 8, 2, bidirectional=True, device="cuda")
    x = torch.randn(6, 3, 5, device="cuda", requires_grad=True)
    given = {
        "lengths": torch.tensor([6, 0, 4], device="cuda"),
        "resets": torch.rand(6, 3, device="cuda") < 0.3,
        "return_states": True,
    }
    request.getfixturevalue("no_waiting")
    y, _, states = module(x, **given)
    (y.sum() + sum(s.sum() for s in (states if layer == "LSTM" else [states]))).backward()


def test_a_graph_replays_with_other_marks(cell, reverse):
    inputs, marked = on_gpu(cell, BOTH, reverse)
    dy = torch.ones(*BOTH.shape[:2], BOTH.shape.H, device="cuda")

    def scan():
        results, gradients, _ = run(cell, inputs, marked, reverse, [dy])
        return results + present(gradients.values())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        scan()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = scan()
    for lengths, resets in ((BOTH.lengths, BOTH.resets), ((6, 1, 2, 0), ()), (None, ((3, 2),))):
        case = BOTH._replace(lengths=lengths, resets=resets)
        marked.marks.copy_(marks_of(case, reverse))
        graph.replay()
        torch.testing.assert_close([t.clone() for t in found], scan())


def test_marks_of_another_device_are_an_error(cell):
    inputs, marked = on_gpu(cell, BOTH, False)
    moved = Marked(marked.marks.cpu(), marked.h, marked.c)
    with pytest.raises(RuntimeError, match="marks should be on the device of x"):
        native_marked.marked_forward(cell, inputs, moved, False, False, False)

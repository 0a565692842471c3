"""CUDA graphs: inference and training captured once, replayed on other inputs."""

import pytest
import torch
from torch import nn

import fused_rnn
from tests.conftest import needs_cuda
from tests.twins import LAYERS, MODULES, example, first, leaves, sequences

pytestmark = needs_cuda

GPU = "cuda"


def warmed_up(run):
    """Run a few times on a side stream, as capture asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def captured(run):
    """Return a graph of ``run`` and what it returned in capture, which each replay overwrites."""
    warmed_up(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


def replays(graph, x, results, run):
    """Assert that each replay on new numbers computes what ``run`` does with them."""
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        found = [t.clone() for t in results]
        torch.testing.assert_close(found, list(run()))
    assert not torch.equal(found[0], torch.zeros_like(found[0]))


@pytest.mark.parametrize("name", MODULES)
def test_inference(name):
    module, x = getattr(fused_rnn, name)(3, 4, device=GPU), example(name, GPU)

    @torch.no_grad()
    def run():
        return leaves(module(x))

    graph, results = captured(run)
    replays(graph, x, results, run)


@pytest.mark.parametrize("name", LAYERS)
def test_ragged_inference(name):
    module = getattr(fused_rnn, name)(3, 4, 2, bidirectional=True, device=GPU)
    packed = sequences((5, 2, 4, 1), 3, False, GPU)

    @torch.no_grad()
    def run():
        return leaves(module(packed))

    graph, results = captured(run)
    replays(graph, packed.data, results, run)


@pytest.mark.parametrize("name", MODULES)
def test_a_training_step(name):
    module, x = getattr(fused_rnn, name)(3, 4, device=GPU), example(name, GPU).requires_grad_()

    def run():
        output = first(module(x))
        wanted = [x, *module.parameters()]
        return output.detach(), *torch.autograd.grad(output.pow(2).sum(), wanted)

    graph, results = captured(run)
    replays(graph, x, results, run)


@pytest.mark.parametrize("name", LAYERS)
def test_a_ragged_training_step(name):
    module = getattr(fused_rnn, name)(3, 4, 2, bidirectional=True, device=GPU)
    packed = sequences((5, 2, 4, 1), 3, False, GPU)

    def run():
        output = first(module(packed))
        return torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))

    graph, results = captured(run)
    replays(graph, packed.data, results, run)


class Output(nn.Module):
    """A layer's or cell's output alone, which is all that the loss is made of."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return first(self.module(x))


@pytest.mark.parametrize("name", MODULES)
def test_graphed_callables(name):
    plain = Output(getattr(fused_rnn, name)(3, 4, device=GPU))
    x = example(name, GPU).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(plain, (x,))
    weights = list(plain.parameters())
    for _ in range(3):
        new = torch.randn_like(x).requires_grad_()
        found = torch.autograd.grad(graphed(new).pow(2).sum(), [new, *weights])
        found = [t.clone() for t in found]
        with fused_rnn.use_backend("native"):
            output = first(plain.module(new))
        expected = torch.autograd.grad(output.pow(2).sum(), [new, *weights])
        torch.testing.assert_close(found, list(expected))

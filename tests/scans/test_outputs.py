"""Outputs changed in place before backward: what trained with torch.nn trains with our layers."""

import gc

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn.backends import BACKENDS, Inputs, Marked
from fused_rnn.cells import CELLS
from fused_rnn.graph import node
from fused_rnn.scans import autograd
from tests.conftest import KERNELS
from tests.operands import SMALL, Stub, make_inputs, needing, present

DOUBLE = {"dtype": torch.float64}
LAYERS = ["LSTM", "GRU", "RNN"]


class Counting(Stub):
    """Counts the forwards of the kernel that it stands for."""

    def __init__(self, kernel):
        self.kernel, self.name, self.forwards = kernel, kernel.name, 0

    def forward(self, *scan):
        self.forwards += 1
        return self.kernel.forward(*scan)

    def scan_states(self, *scan):
        self.forwards += 1
        return self.kernel.scan_states(*scan)

    def backward(self, *scan):
        return self.kernel.backward(*scan)


@pytest.fixture(params=[*KERNELS, Stub()], ids=lambda kernel: kernel.name)
def backend(request):
    """Each kernel and one that cannot be wrong, which count their forwards."""
    reason = request.param.available()
    if reason is not None:
        pytest.skip(reason)
    return Counting(request.param)


def gradients(results, inputs, change, **options):
    """Return the operands' gradients, of results whose first is tripled in place or not."""
    y, *states = present(results)
    if change == "in place":
        y.mul_(3)
    else:
        y = 3 * y
    total = y.sin().sum() + sum(s.cos().sum() for s in states)
    return torch.autograd.grad(total, present(inputs), **options)


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_gradients_are_those_of_a_copy(backend, variant, small, reverse, recompute, device):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, small, device=device)
    inputs = needing(inputs)
    found = []
    for change in ("copied", "in place"):
        results = autograd.scan(backend, cell, inputs, batch_sizes, reverse, recompute)
        found.append(gradients(results, inputs, change))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert backend.forwards == (4 if recompute else 3)


def test_with_every_state(kernel, device):
    inputs, batch_sizes = make_inputs(("lstm", False), SMALL, device=device)
    inputs = needing(inputs)
    if kernel.name != "native":
        pytest.skip("it keeps the cell states to itself")
    found = []
    for change in ("copied", "in place"):
        results = autograd.scan_states(kernel, "lstm", inputs, batch_sizes, False)
        found.append(gradients(results, inputs, change))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_gradient_of_a_gradient(backend, variant, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    inputs = needing(inputs)
    found = []
    for change in ("copied", "in place"):
        results = autograd.scan(backend, cell, inputs, None, False)
        first = gradients(results, inputs, change, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), present(inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_backward_twice(backend, variant, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    inputs = needing(inputs)
    y, h_n, _ = autograd.scan(backend, cell, inputs, None, False)
    before = torch.autograd.grad(h_n.sum(), inputs.x, retain_graph=True)
    y.zero_()
    after = torch.autograd.grad(h_n.sum(), inputs.x, retain_graph=True)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["x", "w_hh"])
def test_operands_must_not_change_along_with_it(backend, variant, name, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    inputs = Inputs(*(t if t is None else t.clone() for t in needing(inputs)))
    y, *_ = autograd.scan(backend, cell, inputs, None, False)
    with torch.no_grad():
        y.add_(1)
        getattr(inputs, name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("ended", ["unused", "backward", "changed"])
def test_nothing_keeps_it_alive(backend, variant, ended, device):
    cell, _ = variant
    inputs, _ = make_inputs(variant, SMALL, device=device)
    inputs = needing(inputs)
    gc.disable()  # which would break a cycle
    try:
        y, *_ = autograd.scan(backend, cell, inputs, None, False)
        memory, of = StorageWeakRef(y.untyped_storage()), y.grad_fn
        if ended == "changed":
            y.mul_(2)
        if ended != "unused":
            torch.autograd.backward(y, torch.ones_like(y))
            del y
            assert of is not None
            assert memory.expired()  # while the node is still there
        else:
            del y, of, _
            assert memory.expired()
    finally:
        gc.enable()


def identity():
    """Hooks on saved tensors, with which autograd does not see a change."""
    return saved_tensors_hooks(lambda t: t, lambda t: t)


def plainly(run, x):
    return run(x)


def hooked(run, x):
    with identity():
        return run(x)


def offloaded(run, x):
    with save_on_cpu():
        return run(x)


def checkpointed(run, x):
    return checkpoint(run, x, use_reentrant=False)


def checkpointed_reentrant(run, x):
    return checkpoint(run, x, use_reentrant=True)


HOW = [plainly, hooked, offloaded, checkpointed, checkpointed_reentrant]


def changed_in_every_way(y):
    """Change an output as models do: a residual, a mask, an activation."""
    y += torch.linspace(-1, 1, y.shape[-1], **DOUBLE)
    y[y.detach().abs() < 0.1] = 0
    return nn.ReLU(inplace=True)(y)


def trained(layer, run, how=plainly):
    """Return the gradients of a layer's weights and of its input."""
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), **DOUBLE).requires_grad_()
    layer.zero_grad()
    how(run, x).square().sum().backward()  # and not grad(), which one kind of checkpoint refuses
    return [t.grad for t in (x, *layer.parameters())]


def twins(name, **options):
    """Return a layer of torch.nn and ours, with the same weights."""
    theirs = getattr(nn, name)(3, 4, **options, **DOUBLE)
    ours = getattr(fused_rnn, name)(3, 4, **options, **DOUBLE)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_train_as_torch_nn_does(name, how):
    found = []
    for layer in twins(name, num_layers=2):
        found.append(trained(layer, lambda x, of=layer: changed_in_every_way(of(x)[0]), how))
    torch.testing.assert_close(*found)


def packed(layer, x):
    y, _ = layer(pack_padded_sequence(x, torch.tensor([5, 3])))
    changed_in_every_way(y.data)
    return y.data


def unsorted(layer, x):
    y, _ = layer(pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False))
    assert isinstance(y, PackedSequence)
    return changed_in_every_way(y.data)


CALLS = {
    "unbatched": lambda layer, x: changed_in_every_way(layer(x[:, 0])[0]),
    "a view of it": lambda layer, x: changed_in_every_way(layer(x)[0][1:]),
    "packed": packed,
    "unsorted": unsorted,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bidirectional": True}],
    ids=["", "batch-first", "bidirectional"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_of_every_kind(name, options, call):
    found = []
    for layer in twins(name, **options):
        if options.get("batch_first") and "pack" in call:
            layer.batch_first = False
        found.append(trained(layer, lambda x, of=layer: CALLS[call](of, x)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_final_states_train_as_torch_nn_does(name, backend):
    def run(layer, x):
        y, state = layer(x)
        states = state if isinstance(state, tuple) else (state,)
        for s in states:
            s.mul_(3)
        return torch.cat([t.flatten() for t in (y, *states)])

    theirs, ours = twins(name)
    expected = trained(theirs, lambda x: run(theirs, x))
    reason = BACKENDS[backend].available()
    if reason is not None:
        pytest.skip(reason)
    with fused_rnn.use_backend(backend):
        torch.testing.assert_close(trained(ours, lambda x: run(ours, x)), expected)


def test_states_of_every_step_are_none_of_the_output():
    layer, x = fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)
    y, _, states = layer(x, return_states=True)
    y.zero_()
    assert states.abs().min() > 0


@pytest.mark.parametrize("marked", [False, True], ids=["all steps", "marks"])
@pytest.mark.parametrize("name", ["native", node.WHEN_RUN, "reference"])
def test_nodes_out_of_a_graph(variant, name, marked):
    """As an exported program runs, and lengths on a GPU."""
    cell, _ = variant
    reason = BACKENDS[name or "native"].available()
    if reason is not None:
        pytest.skip(reason)
    inputs, _ = make_inputs(variant, SMALL)
    inputs = needing(inputs)
    marks = torch.ones(SMALL.T, SMALL.N, dtype=torch.uint8)
    marks[0], marks[-1, -1] = 2, 0
    of = Marked(marks, None, None) if marked else None
    found = []
    for change in ("copied", "in place"):
        results = node.scan(name, cell, inputs, of, False, True)
        assert (results[2] is not None) == CELLS[cell].has_cell_state
        found.append(gradients(results, inputs, change))
    torch.testing.assert_close(*found, rtol=0, atol=0)

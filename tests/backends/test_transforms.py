"""The modules under what transforms, traces and compiles them."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.fx.proxy import TraceError
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn.backends import record
from tests.twins import (
    CELLS,
    MODULES,
    assert_same,
    example,
    first,
    gradients,
    leaves,
    models,
    sequences,
    states,
    twins,
)


@pytest.mark.parametrize("name", MODULES)
def test_fx_takes_a_module_as_a_leaf(name):
    _, model = models(name)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["before", "rnn", "after"]
    assert traced.rnn is model.rnn
    x = example(name)
    torch.testing.assert_close(traced(x), model(x))


def test_fx_with_a_state():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.LSTM(3, 4)

        def forward(self, x, h, c):
            y, (h, c) = self.rnn(x, (h, c))
            return y, h, c

    model = Stateful()
    x, (h, c) = example("LSTM"), states(model.rnn, 2)
    assert_same(model(x, h, c), torch.fx.symbolic_trace(model)(x, h, c))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("converted", [True, False])
def test_fx_refuses_a_bare_module_as_torch_does(name, converted):
    theirs, ours = twins(name, 3, 4)
    if converted:
        ours = fused_rnn.convert(copy.deepcopy(theirs))
    for module in (theirs, ours):
        with pytest.raises(TraceError, match="cannot be used as inputs to control flow"):
            torch.fx.symbolic_trace(module)


def test_fx_with_options():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.GRU(3, 4)

        def forward(self, x, lengths, resets):
            y, h = self.rnn(x, lengths=lengths)
            return y, h, self.rnn(x, resets=resets, return_states=True)[2]

    model = Padded()
    traced = torch.fx.symbolic_trace(model)
    calls = [node.kwargs.keys() for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == [{"lengths"}, {"resets", "return_states"}]
    x, lengths, resets = torch.randn(5, 2, 3), torch.tensor([5, 2]), torch.rand(5, 2) < 0.5
    torch.testing.assert_close(traced(x, lengths, resets), model(x, lengths, resets))


@pytest.mark.parametrize("name", MODULES)
def test_compile(name):
    torch.compiler.reset()
    _, model = models(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = example(name)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    found = gradients(compiled, x)
    torch.testing.assert_close(found, gradients(model, x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # torch.nn's own too
def test_export(name, strict):
    _, model = models(name)
    x = example(name)
    exported = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript(name):
    _, model = models(name)
    x = example(name)
    expected = model(x)
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), expected)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_leaves_a_subclass_to_its_own_forward():
    class Doubled(fused_rnn.GRU):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    module = Doubled(3, 4)
    assert module.__prepare_scriptable__() is module


@pytest.mark.parametrize("name", MODULES)
def test_an_ensemble_by_vmap(name):
    members = [getattr(fused_rnn, name)(3, 4) for _ in range(3)]
    weights, buffers = stack_module_state(members)
    x = example(name)

    def run(w, b, x):
        return functional_call(members[0], (w, b), (x,))

    found = vmap(run, (0, 0, None))(weights, buffers, x)
    for k, member in enumerate(members):
        torch.testing.assert_close([t[k] for t in leaves(found)], leaves(member(x)))


@pytest.mark.parametrize("name", MODULES)
def test_gradients_per_sample(name):
    _, ours = twins(name, 3, 4)
    x = torch.randn(4, *example(name).shape)
    weights = {n: p.detach() for n, p in ours.named_parameters()}

    def loss(weights, x):
        return first(functional_call(ours, weights, (x,))).pow(2).sum()

    found = vmap(grad(loss), (None, 0))(weights, x)
    for k in range(len(x)):
        expected = torch.autograd.grad(first(ours(x[k])).pow(2).sum(), list(ours.parameters()))
        torch.testing.assert_close([found[n][k] for n in weights], list(expected))


@pytest.mark.parametrize("name", MODULES)
def test_forward_mode_and_jacobians(name):
    _, ours = twins(name, 3, 4)
    x = example(name)
    tangent = torch.randn_like(x)

    def run(x):
        return first(ours(x))

    jacobian = jacrev(run)(x)
    _, found = jvp(run, (x,), (tangent,))
    torch.testing.assert_close(found, torch.tensordot(jacobian, tangent, dims=x.dim()))


def test_forward_mode_of_packed_sequences():
    _, ours = twins("LSTM", 3, 4, bidirectional=True)
    packed = sequences((2, 4, 1), 3, enforce_sorted=False)
    tangent = torch.randn_like(packed.data)

    def run(data):
        return ours(packed._replace(data=data))[0].data

    _, found = jvp(run, (packed.data,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(run, packed.data)
    torch.testing.assert_close(found, torch.tensordot(jacobian, tangent, dims=2))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_of_a_cell_is_torchs(name, dtype):
    theirs, ours = twins(name, 3, 4)
    x = example(name).to(dtype)
    results = []
    for module in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)
        first(output).float().sum().backward()
        results.append((output, [p.grad for p in module.parameters()]))
    assert_same(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("name", MODULES)
def test_flops_are_counted_as_torchs(name):
    counts = []
    for model in models(name):
        # In float32 torch.nn's LSTM runs an operator that torch has no formula for.
        with FlopCounterMode(display=False) as counter, record() as ran:
            model.double()(example(name).double())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    # One step of a plain RNN is torch's own.
    assert {r.backend for r in ran} == {"torch" if name == "RNNCell" else "native"}


@pytest.mark.parametrize("name", MODULES)
def test_fake_tensors(name):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        _, model = models(name)
        output = model(example(name))
        output.sum().backward()
    assert isinstance(output, FakeTensor)

"""torch.compile over the layers: one graph, one node for each layer and direction."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations

import fused_rnn
from fused_rnn.cells import CELLS as EQUATIONS
from tests.operands import SMALL, SMALL_RAGGED, Shape, make_inputs
from tests.twins import (
    CELLS,
    CONFIGURATIONS,
    LAYERS,
    MODULES,
    example,
    first,
    leaves,
    sequences,
    states,
)

NODE = torch.ops.fused_rnn.layer_forward
# Each way to set up a layer, once: which cell it is makes no difference to a graph.
SET_UP = {
    name: (layers[k % len(layers)], options)
    for k, (name, (options, layers)) in enumerate(CONFIGURATIONS.items())
}


@pytest.fixture(autouse=True)
def _afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    """A layer among others, with a state or without."""

    def __init__(self, layer, options):
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(fused_rnn, layer)(3, 4, **options)
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.after = nn.Linear(width, 2)

    def forward(self, x, hx=None):
        y, state = self.rnn(self.before(x), hx)
        return self.after(y), state


class Counting:
    """A compiler's backend that keeps the graphs it is given."""

    def __init__(self, name="aot_eager"):
        self.compile = torch._dynamo.lookup_backend(name)
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return self.compile(graph, inputs)

    def scans(self):
        return [n for n in self.graphs[-1].graph.nodes if n.target in (NODE, NODE.default)]


def both_ways(model, *args):
    """Return all that a model returns, and the gradients of its parameters and inputs."""
    args = [t.detach().clone().requires_grad_() if torch.is_tensor(t) else t for t in args]
    results = leaves(model(*args))
    wanted = [*args[:1], *model.parameters()]
    return results, torch.autograd.grad([r.pow(2).sum() for r in results], wanted)


@pytest.mark.parametrize("name", SET_UP)
def test_one_graph_with_a_node_for_each_layer_and_direction(name, device):
    layer, options = SET_UP[name]
    model = Model(layer, options).to(device).eval()  # backward works in eval mode too
    compiler = Counting()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    hx = states(model.rnn, 2 if not options.get("batch_first") else 5)
    if device != "cpu":
        hx = tuple(t.to(device) for t in hx) if isinstance(hx, tuple) else hx.to(device)
    x = torch.randn(5, 2, 3, device=device)
    torch.testing.assert_close(both_ways(compiled, x, hx), both_ways(model, x, hx))
    assert len(compiler.graphs) == 1
    assert len(compiler.scans()) == model.rnn.num_layers * (1 + model.rnn.bidirectional)
    with torch.no_grad():
        torch.testing.assert_close(leaves(compiled(x)), leaves(model(x)))
    assert all(node.args[-1] is False for node in compiler.scans())  # nothing is saved


class EachLayer(nn.ModuleList):
    """All cells in one graph, as it takes a quarter of a minute to compile."""

    def __init__(self, options):
        super().__init__(Model(layer, options) for layer in LAYERS)

    def forward(self, x):
        return tuple(model(x) for model in self)


def test_inductor(device, monkeypatch):
    # No processes beside this one, which import torch each: there is little to compile.
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    model = EachLayer({"num_layers": 2, "bidirectional": True}).to(device)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 2, 3, device=device)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))


@pytest.mark.parametrize("layer", LAYERS)
def test_other_lengths_and_batches_need_no_other_graph(layer):
    model, compiler = Model(layer, {"bidirectional": True}), Counting()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for steps, n in ((5, 2), (7, 3), (2, 9), (11, 4), (30, 2)):
        x = torch.randn(steps, n, 3)
        torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))
    # The first pair of sizes is taken for fixed, as always; the second makes a graph for all.
    assert len(compiler.graphs) == 2


@pytest.mark.parametrize("layer", LAYERS)
def test_dynamic_from_the_beginning(layer):
    model, compiler = Model(layer, {"batch_first": True}), Counting()
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=True)
    for n, steps in ((2, 5), (3, 7), (9, 2)):
        x = torch.randn(n, steps, 3)
        torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))
    assert len(compiler.graphs) == 1


def test_what_is_saved_has_the_size_that_was_told(kernel, variant, dtype, device):
    cell, _ = variant
    if device != "cpu" and kernel.name != "native":
        pytest.skip("every kernel but native saves the same on each device")
    for shape in (SMALL, SMALL_RAGGED, Shape(3, 0, 3, 4), Shape(2, 3, 5, 33)):
        inputs, batch_sizes = make_inputs(variant, shape, dtype, device)
        found = kernel.forward(cell, inputs, batch_sizes, False, True)[3]
        told = kernel.saved(cell, inputs)
        assert [(t.shape, t.dtype) for t in told] == [(t.shape, t.dtype) for t in found]


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    cell = getattr(fused_rnn, name)(3, 4)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    x = example(name)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(cell, x))


@pytest.mark.parametrize("name", EQUATIONS)
def test_functions(name):
    function = getattr(fused_rnn.functional, name.partition("_")[0])
    inputs, _ = make_inputs((name, False), SMALL)
    x, h0, c0, *weights = (t for t in inputs[:7])
    state = h0[None] if c0 is None else (h0[None], c0[None])
    options = ("relu",) if name == "rnn_relu" else ()

    def run(x, *weights):
        return function(x.transpose(0, 1), state, [weights], *options, batch_first=True)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    operands = [t.requires_grad_() for t in (x, *weights)]
    results = [leaves(f(*operands)) for f in (compiled, run)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad([t.sum() for t in r], operands) for r in results]
    torch.testing.assert_close(*gradients)


def test_dropout_between_the_layers():
    model = Model("GRU", {"num_layers": 3, "dropout": 0.5})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, found = torch.randn(5, 2, 3), []
    for run in (model, compiled):
        torch.manual_seed(3)
        found.append(both_ways(run, x))
    torch.testing.assert_close(*found)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


def test_a_parametrized_layer_and_one_of_another_dtype():
    model = Model("LSTM", {})
    parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))
    model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))


def test_a_backend_asked_for_by_name_is_in_the_graph():
    model, compiler = Model("LSTM", {}), Counting()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    x = torch.randn(5, 2, 3)
    with fused_rnn.use_backend("reference"):
        found = both_ways(compiled, x)
    assert compiler.scans()[0].args[0] == "reference"
    torch.testing.assert_close(found, both_ways(model, x))


@pytest.mark.parametrize("case", ["packed", "complex", "torch", "mistaken"])
def test_what_no_graph_takes_breaks_it_and_runs_as_ever(case):
    layer = fused_rnn.LSTM(3, 4, dtype=torch.complex64 if case == "complex" else None)
    compiled = torch.compile(lambda x: first(layer(2 * x)) + 1, backend="aot_eager")
    x = torch.randn(5, 2, 3, dtype=layer.weight_hh_l0.dtype)
    if case == "packed":
        packed = sequences((4, 2), 3, True)
        compiled = torch.compile(layer, backend="aot_eager")
        torch.testing.assert_close(leaves(compiled(packed)), leaves(layer(packed)))
    elif case == "mistaken":
        with pytest.raises(RuntimeError, match=r"input.size.-1. must be equal to input_size"):
            compiled(x[..., :2])
    else:
        with fused_rnn.use_backend("torch" if case == "torch" else None):
            torch.testing.assert_close(compiled(x), first(layer(2 * x)) + 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_an_ensemble_by_vmap_in_a_graph(layer):
    members = [getattr(fused_rnn, layer)(3, 4) for _ in range(3)]
    weights, _ = stack_module_state(members)

    def run(weights, x):
        return vmap(lambda w: first(functional_call(members[0], w, (x,))))(weights)

    x = torch.randn(3, 2, 3)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weights, x), run(weights, x))


@pytest.mark.parametrize("layer", LAYERS)
def test_recomputing_saves_nothing_in_a_graph(layer):
    model, compiler = Model(layer, {"recompute": True}), Counting()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x), rtol=0, atol=0)
    assert all(node.args[-1] is False for node in compiler.scans())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_learned_initial_state_and_single_steps(layer):
    model = Model(layer, {"learn_initial_state": True, "num_layers": 2})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))

    def generate(x):
        state, outputs = None, []
        for t in range(3):
            y, state = model.rnn.step(x[t], state)
            outputs.append(y)
        return torch.stack(outputs), state

    compiled = torch.compile(generate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(leaves(compiled(x)), leaves(generate(x)))


FUNCTIONS = [
    ("gru", {"recompute": True}),
    ("gru", {"initial_state": torch.ones(1, 1, 4)}),
    ("lstm", {"initial_state": (torch.ones(1, 1, 4), torch.zeros(1, 1, 4)), "recompute": True}),
]


@pytest.mark.parametrize(("name", "options"), FUNCTIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_functions_take_what_graphs_can_have(name, options, autocast):
    weights = list(getattr(nn, name.upper())(3, 4).parameters())
    x, compiler = torch.randn(5, 2, 3), Counting()

    def run(x):
        return getattr(fused_rnn.functional, name)(x, None, [weights], **options)

    compiled = torch.compile(run, backend=compiler, fullgraph=True)
    found = []
    for function in (compiled, run):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = leaves(function(x))
        gradients = torch.autograd.grad([r.float().sum() for r in results], weights)
        found.append((results, gradients))
    torch.testing.assert_close(*found)
    assert len(compiler.scans()) == 1
    if "recompute" in options:
        assert all(node.args[-1] is False for node in compiler.scans())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_graph_where_others_carry_tangents(layer):
    module = getattr(fused_rnn, layer)(3, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2, 3)
    expected = leaves(compiled(x))
    with forward_ad.dual_level():
        torch.testing.assert_close(leaves(compiled(x)), expected)
        with pytest.raises(NotImplementedError, match="jvp"):  # torch's own word
            compiled(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("layer", LAYERS)
def test_batched_backward(layer):
    module = getattr(fused_rnn, layer)(3, 4, bidirectional=True)

    def run(x):
        return first(module(x))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    x, jacobian = torch.randn(3, 2, 3), torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(compiled, x, vectorize=True), jacobian(run, x))


@pytest.mark.parametrize("name", MODULES)
def test_compiled_by_its_own_method(name):
    module = getattr(fused_rnn, name)(3, 4)
    x = example(name)
    expected = leaves(module(x))
    module.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(leaves(module(x)), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_an_output_changed_in_place_in_the_graph(layer):
    module = getattr(fused_rnn, layer)(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def run(x):
        y = first(module(x))
        y += 1
        return y.relu_().square().sum()

    expected = torch.autograd.grad(run(x), list(module.parameters()))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x), list(module.parameters()))
    torch.testing.assert_close(found, expected)

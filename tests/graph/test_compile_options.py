"""torch.compile and torch.export over calls with lengths, resets and the states of every step."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.export import Dim, export, load, save
from torch.func import grad, vmap

import fused_rnn
from tests.graph.test_compile import Counting, _afresh  # noqa: F401 (a fixture)
from tests.twins import CONFIGURED, LAYERS, leaves

T, N = 6, 4
LENGTHS = torch.tensor([3, 6, 0, 1])
RESETS = torch.rand(T, N, generator=torch.Generator().manual_seed(3)) < 0.3
ASKED = {
    "lengths": lambda x: {"lengths": LENGTHS},
    "resets": lambda x: {"resets": x[..., 0] > 0.5},
    "states": lambda x: {"return_states": True},
    "all": lambda x: {"lengths": LENGTHS, "resets": x[..., 0] > 0.5, "return_states": True},
}


class Model(nn.Module):
    """A layer that is called with options, in a network."""

    def __init__(self, layer, ask, **options):
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(fused_rnn, layer)(3, 5, **options)
        self.ask = ask

    def forward(self, x):
        return self.rnn(self.before(x), **self.ask(x))


def example(model):
    x = torch.randn(N, T, 3) if model.rnn.batch_first else torch.randn(T, N, 3)
    return x.requires_grad_()


def both_ways(model, module, x):
    """Return the results and the gradients of the input and the parameters."""
    results = leaves(model(x))
    total = sum(r.pow(2).sum() for r in results)
    return results, torch.autograd.grad(total, [x, *module.parameters()])


@pytest.mark.parametrize("which", ASKED)
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_options_of_a_call_stay_in_the_graph(layer, options, which):
    model, compiler = Model(layer, ASKED[which], learn_initial_state=True, **options), Counting()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    x = example(model)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    found, expected = both_ways(compiled, model, x), both_ways(model, model, x)
    torch.testing.assert_close(found, expected)
    assert len(compiler.graphs) == 1
    assert len(compiler.scans()) == model.rnn.num_layers * (1 + model.rnn.bidirectional)
    with torch.no_grad():
        torch.testing.assert_close(leaves(compiled(x)), leaves(model(x)))


@pytest.mark.parametrize("layer", LAYERS)
def test_inductor(layer):
    model = Model(layer, ASKED["all"], num_layers=2, bidirectional=True)
    x = example(model)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(both_ways(compiled, model, x), both_ways(model, model, x))


@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=["keep", "recompute"])
@pytest.mark.parametrize("layer", LAYERS)
def test_other_lengths_and_batches_need_no_other_graph(layer, options):
    module, compiler = getattr(fused_rnn, layer)(3, 5, bidirectional=True, **options), Counting()

    def call(x, lengths, resets):
        y, state, steps = module(x, lengths=lengths, resets=resets, return_states=True)
        return 2 * y, state, steps

    compiled = torch.compile(call, backend=compiler, fullgraph=True, dynamic=True)
    for steps, n in ((7, 4), (9, 6), (2, 7), (30, 3)):
        x = torch.randn(steps, n, 3, requires_grad=True)
        given = torch.randint(0, steps + 1, (n,)), torch.rand(steps, n) < 0.2
        found = []
        for run in (compiled, call):
            results = leaves(run(x, *given))
            total = sum(r.pow(2).sum() for r in results)
            found.append((results, torch.autograd.grad(total, [x, *module.parameters()])))
        torch.testing.assert_close(*found)
    assert len(compiler.graphs) == 1


def test_unbatched():
    module, x = fused_rnn.GRU(3, 5), torch.randn(T, 3)
    given = {"lengths": torch.tensor(4), "resets": x[:, 0] > 0, "return_states": True}
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(leaves(compiled(x, **given)), leaves(module(x, **given)))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_functions(name, batch_first):
    weights = list(getattr(nn, name.upper())(3, 5).parameters())
    resets = RESETS.t() if batch_first else RESETS
    x = torch.randn(*resets.shape, 3)
    state = torch.ones(1, 1, 5)
    initial = (state, -state) if name == "lstm" else state

    def run(x):
        return getattr(fused_rnn.functional, name)(
            x, None, [weights], lengths=LENGTHS, resets=resets, return_states=True,
            initial_state=initial, batch_first=batch_first,
        )  # fmt: skip

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(leaves(compiled(x)), leaves(run(x)))


@pytest.mark.parametrize("which", ASKED)
def test_under_autocast(which):
    model = Model("LSTM", ASKED[which])
    x = example(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = both_ways(compiled, model, x), both_ways(model, model, x)
    torch.testing.assert_close(found, expected)


def test_per_sample_gradients():
    model = Model("GRU", lambda x: {"return_states": True})

    def loss(x):
        return sum(r.pow(2).sum() for r in leaves(model(x)))

    compiled = torch.compile(vmap(grad(loss)), backend="aot_eager", fullgraph=True)
    xs = torch.randn(3, T, N, 3)
    torch.testing.assert_close(compiled(xs), torch.stack([grad(loss)(x) for x in xs]))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("which", ASKED)
@pytest.mark.parametrize("layer", LAYERS)
def test_any_length_and_batch_after_reload(layer, which, strict):
    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(fused_rnn, layer)(3, 5, num_layers=2, bidirectional=True)

        def forward(self, x, lengths, resets):
            given = {"lengths": lengths, "resets": resets, "return_states": True}
            keys = {"all": given, "states": ["return_states"]}.get(which, [which])
            return self.rnn(x, **{key: given[key] for key in keys})

    def inputs(steps, n):
        lengths = torch.randint(0, steps + 1, (n,))
        return torch.randn(steps, n, 3), lengths, torch.rand(steps, n) < 0.2

    model, steps, n = Call(), Dim("steps", min=2), Dim("n", min=2)
    sizes = {0: steps, 1: n}, {0: n}, {0: steps, 1: n}
    program = export(model, inputs(7, 5), dynamic_shapes=sizes, strict=strict)
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    module = load(file).module()
    for given in (inputs(7, 5), inputs(9, 4), inputs(2, 11)):
        found, expected = leaves(module(*given)), leaves(model(*given))
        torch.testing.assert_close(found, expected)
        # Trained again after it was read: what backward needs is made when it comes to that.
        gradients = [
            torch.autograd.grad(sum(r.pow(2).sum() for r in results), list(of.parameters()))
            for results, of in ((found, module), (expected, model))
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("wrong", [[7, 1, 1, 1], [-1, 1, 1, 1]], ids=["long", "negative"])
def test_lengths_that_are_wrong_when_the_graph_runs(wrong, backend):
    module, x = fused_rnn.GRU(3, 5), torch.randn(T, N, 3)
    compiled = torch.compile(lambda x, lengths: module(x, lengths=lengths)[0], backend=backend)
    compiled(x, LENGTHS)
    with pytest.raises(RuntimeError, match="lengths should be from 0 to the number of steps"):
        compiled(x, torch.tensor(wrong))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": torch.tensor([1, 2])}, "lengths should have shape"),
        ({"lengths": torch.ones(N)}, "lengths should be a tensor of integers"),
        ({"resets": torch.zeros(T, N)}, "resets should be a tensor of booleans"),
        ({"resets": torch.zeros(N, T, dtype=torch.bool)}, "resets should have shape"),
    ],
)
def test_what_is_wrong_already_when_the_graph_is_made(given, message):
    module = fused_rnn.GRU(3, 5)
    compiled = torch.compile(module, backend="aot_eager")
    with pytest.raises((ValueError, TypeError), match=message):
        compiled(torch.randn(T, N, 3), **given)
    with pytest.raises(Exception, match=message):
        export(module, (torch.randn(T, N, 3),), given)


def test_torch_that_is_asked_for_knows_no_options():
    model = Model("GRU", ASKED["all"])
    with fused_rnn.use_backend("torch"), pytest.raises(Exception, match=r"torch\.nn was asked for"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(example(model))


def test_lengths_of_its_own_for_each_of_a_batch():
    module = fused_rnn.GRU(3, 5)

    def run(x, lengths):
        return module(x, lengths=lengths)[0]

    xs, lengths = torch.randn(3, T, N, 3), torch.randint(0, T + 1, (3, N))
    found = torch.compile(vmap(run), backend="aot_eager", fullgraph=True)(xs, lengths)
    torch.testing.assert_close(found, torch.stack(list(map(run, xs, lengths))))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_inside_autocast_are_those_outside(backend):
    with fused_rnn.use_backend(backend):
        module, x = fused_rnn.GRU(3, 5), torch.randn(T, N, 3, requires_grad=True)
        compiled = torch.compile(module, backend="eager")
        found = []
        for inside in (False, True):
            y, _ = compiled(x, lengths=LENGTHS)
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
            found.append([dx, *torch.autograd.grad(dx.pow(2).sum(), module.weight_hh_l0)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)

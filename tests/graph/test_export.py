"""torch.export over the layers: any length and batch, saved, read again and run."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.export import Dim, export, load, save
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import fused_rnn
from tests.twins import LAYERS, leaves, states

CASES = [
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "batch_first": True}),
    ("GRU", {"bias": False}),
    ("RNN", {"nonlinearity": "relu"}),
]
SIZES = ((5, 2), (9, 4), (2, 11), (30, 3))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),  # torch.nn's own too
]


class Model(nn.Module):
    """A layer among others, with a state or without."""

    def __init__(self, layer, **options):
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(fused_rnn, layer)(3, 4, **options)

    def forward(self, x, hx=None):
        return self.rnn(torch.tanh(self.before(x)), hx)


def inputs(model, steps, n):
    x = torch.randn(*((n, steps) if model.rnn.batch_first else (steps, n)), 3)
    return x, states(model.rnn, n)


def exported(model, strict=False):
    """Return a program for every length and batch."""
    # One length each for what is given first; Dim.AUTO finds out that the batches are one.
    sizes = (Dim.AUTO, Dim.AUTO, None), (None, Dim.AUTO, None)
    args = inputs(model, 7, 5)
    hx = (sizes[1], sizes[1]) if isinstance(args[1], tuple) else sizes[1]
    return export(model, args, dynamic_shapes=(sizes[0], hx), strict=strict)


def through_a_file(program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


@pytest.mark.parametrize(("layer", "options"), CASES)
@pytest.mark.parametrize("strict", [True, False])
def test_any_length_and_batch_after_reload(layer, options, strict):
    model = Model(layer, **options).eval()
    program = through_a_file(exported(model, strict))
    run = program.module()
    for steps, n in SIZES:
        args = inputs(model, steps, n)
        torch.testing.assert_close(leaves(run(*args)), leaves(model(*args)))
        with torch.no_grad():
            torch.testing.assert_close(leaves(run(*args)), leaves(model(*args)))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_node_for_each_layer_and_direction(layer):
    model = Model(layer, num_layers=2, bidirectional=True)
    nodes = [n for n in exported(model).graph.nodes if "layer_forward" in str(n.target)]
    assert len(nodes) == 4
    # What runs it is chosen where it runs, and a size that only a kernel knows is nowhere.
    assert {node.args[0] for node in nodes} == {""}
    assert not exported(model).range_constraints.keys() - free_sizes(model)


def free_sizes(model):
    program = exported(model)
    found = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta["val"], torch.Tensor):
            found |= {s.node.expr for s in node.meta["val"].shape if isinstance(s, torch.SymInt)}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_an_exported_program_trains(layer):
    model = Model(layer, num_layers=2)
    run = through_a_file(exported(model)).module()
    args = inputs(model, 6, 4)
    found, expected = (
        torch.autograd.grad(leaves(m(*args))[0].pow(2).sum(), list(m.parameters()))
        for m in (run, model)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_decomposed_to_core_operators(layer):
    model = Model(layer).eval()
    program = exported(model).run_decompositions()
    args = inputs(model, 6, 4)
    torch.testing.assert_close(leaves(program.module()(*args)), leaves(model(*args)))


def test_the_backend_is_chosen_when_a_program_runs():
    model = Model("LSTM").eval()
    run, args = exported(model).module(), inputs(model, 6, 4)
    with fused_rnn.use_backend("reference"):
        torch.testing.assert_close(leaves(run(*args)), leaves(model(*args)))
    with (
        fused_rnn.use_backend("triton"),
        pytest.raises(RuntimeError, match="'triton' was asked for and cannot run this"),
    ):
        run(*args)


def test_what_no_kernel_takes_runs_on_the_reference():
    layer = fused_rnn.GRU(3, 4, dtype=torch.complex64)
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    torch.testing.assert_close(export(layer, (x,)).module()(x), layer(x))


def test_torchs_own_forward_is_exported_where_it_is_asked_for():
    model = Model("GRU")
    with fused_rnn.use_backend("torch"):
        program = export(model, inputs(model, 4, 2))
    assert not any("layer_forward" in str(n.target) for n in program.graph.nodes)


def test_functions_are_exported_alike():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_ih, self.w_hh = (
                nn.Parameter(torch.randn(16, 3)),
                nn.Parameter(torch.randn(16, 4)),
            )

        def forward(self, x):
            return fused_rnn.functional.lstm(x, None, [[self.w_ih, self.w_hh]])

    model = Bare()
    sizes = (Dim("steps", min=2), Dim("n", min=2), None)
    run = export(model, (torch.randn(5, 3, 3),), dynamic_shapes=(sizes,)).module()
    for steps, n in SIZES:
        x = torch.randn(steps, n, 3)
        torch.testing.assert_close(leaves(run(x)), leaves(model(x)))


def test_a_program_runs_in_another_process(tmp_path):
    model = Model("GRU").eval()
    args = inputs(model, 6, 4)
    save(exported(model), tmp_path / "model.pt2")
    torch.save((args, model(*args)), tmp_path / "expected.pt")
    script = (
        "import sys, torch, fused_rnn\n"
        "run = torch.export.load(sys.argv[1]).module()\n"
        "args, expected = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(run(*args), expected)\n"
    )
    files = [str(tmp_path / name) for name in ("model.pt2", "expected.pt")]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script, *files], check=True, timeout=120, env=env)


class Outputs(nn.Module):
    """The outputs of a layer alone: one tensor to one tensor."""

    def __init__(self, layer, **options):
        super().__init__()
        self.rnn = getattr(fused_rnn, layer)(3, 4, **options)

    def forward(self, x):
        return self.rnn(x)[0]


def forward_mode(run, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, v))).tangent


def backward_with_tangents(run, x, v):
    x = x.clone().requires_grad_()
    y = run(x)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y).cumsum(0))
        return forward_ad.unpack_dual(torch.autograd.grad(y, x, dy)[0]).tangent


def batched_backward(run, x, v):
    x = x.clone().requires_grad_()
    y = run(x).sum((1, 2))
    return vmap(lambda d: torch.autograd.grad(y, x, d, retain_graph=True)[0])(torch.eye(len(y)))


def squares(run):
    return lambda x: run(x).pow(2).sum()


TRANSFORMS = {
    "jvp": lambda run, x, v: jvp(run, (x,), (v,)),
    "forward-mode AD": forward_mode,
    "grad": lambda run, x, v: grad(squares(run))(x),
    "vmap": lambda run, x, v: vmap(run)(torch.stack([x, v])),
    "vmap of vmap": lambda run, x, v: vmap(vmap(run))(torch.stack([x, v]).expand(3, 2, *x.shape)),
    "vmap of grad": lambda run, x, v: vmap(grad(squares(run)))(torch.stack([x, v])),
    "grad of vmap": lambda run, x, v: grad(squares(vmap(run)))(torch.stack([x, v])),
    "jvp of vmap": lambda run, x, v: jvp(vmap(run), (x[None],), (v[None],)),
    "jacrev": lambda run, x, v: jacrev(run)(x),
    "jacfwd": lambda run, x, v: jacfwd(run)(x),
    "hessian": lambda run, x, v: hessian(squares(run))(x),
    "backward with tangents": backward_with_tangents,
    "batched backward": batched_backward,
    "jacobian": lambda run, x, v: torch.autograd.functional.jacobian(run, x, vectorize=True),
    "jacobian, forwards": lambda run, x, v: torch.autograd.functional.jacobian(
        run, x, vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_program_is_differentiated_and_batched_like_the_layer(layer, transform):
    model = Outputs(layer, bidirectional=True, num_layers=2)
    x, v = torch.randn(3, 2, 3), torch.randn(3, 2, 3)
    program = export(model, (x,)).module()
    with torch.enable_grad():
        found, expected = (TRANSFORMS[transform](run, x, v) for run in (program, model))
    torch.testing.assert_close(found, expected)
    assert all(t.count_nonzero() for t in leaves(found))


def test_transforms_without_grad_mode():
    model = Outputs("GRU")
    x, v = torch.randn(3, 2, 3), torch.randn(3, 2, 3)
    program = export(model, (x,)).module()
    with torch.no_grad():
        found, expected = (jvp(run, (x,), (v,))[1] for run in (program, model))
        torch.testing.assert_close(found, expected)
    assert found.count_nonzero()


class Function(nn.Module):
    """A function of the library as a module."""

    def __init__(self, **options):
        super().__init__()
        self.weights, self.options = nn.GRU(3, 4), options

    def forward(self, x):
        weights = [list(self.weights._parameters.values())]
        return fused_rnn.functional.gru(x, None, weights, **self.options)[0]


@pytest.mark.parametrize(
    "options",
    [{"recompute": True}, {"initial_state": torch.ones(1, 1, 4)}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_functions_that_graphs_can_have(options):
    model, x = Function(**options), torch.randn(5, 2, 3)
    program = export(model, (x,))
    assert sum("layer_forward" in str(n.target) for n in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(x), model(x))

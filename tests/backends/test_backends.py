"""Which backend runs: by name, by environment, by itself; and what happens where it cannot."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import backends
from fused_rnn.backends import BACKENDS, TORCH, Problem, record, reference, select, transforms
from fused_rnn.graph import node
from fused_rnn.graph.compiled import choose_in_graph
from fused_rnn.scans.checks import Stack
from tests.operands import SMALL, Stub, make_inputs
from tests.twins import CELLS, LAYERS, MODULES, assert_same, example, leaves, sequences, twins

PROBLEM = Problem("lstm", torch.device("cpu"), torch.float32, 5, 2, 3, 4, 0, False, False, None)
NATIVE = BACKENDS["native"].available()
needs_native = pytest.mark.skipif(NATIVE is not None, reason=str(NATIVE))


class Kernel(Stub):
    """A kernel that counts what it is asked, and refuses what it is told to."""

    def __init__(self, name, refuses=lambda problem: None, missing=None):
        self.name, self.refuses, self.missing, self.asked = name, refuses, missing, []

    def available(self):
        return self.missing

    def supports(self, problem):
        self.asked.append(problem)
        return self.refuses(problem) or super().supports(problem)


@pytest.fixture
def table(monkeypatch):
    """Return a function that puts kernels into the table, before the reference."""

    def put(*kernels):
        monkeypatch.setattr(backends, "BACKENDS", {b.name: b for b in (*kernels, reference)})
        forget()

    def forget():
        backends._automatic.cache_clear()
        backends._automatic_step.cache_clear()
        backends._by_name.cache_clear()

    yield put
    forget()


def ran(module, *args):
    """Return the names of the backends that ran, one for each layer and direction."""
    with record() as records:
        module(*args)
    return [entry.backend for entry in records]


def test_every_backend_says_whether_it_is_available():
    found = fused_rnn.available_backends()
    assert list(found) == list(BACKENDS)
    assert list(found)[-1] == "reference"
    assert found["reference"] is None
    assert all(reason is None or len(reason) > 5 for reason in found.values())


def test_first_that_does_not_refuse(table):
    missing = Kernel("missing", missing="it was not built")
    picky = Kernel("picky", refuses=lambda p: "more than 4 steps" if p.T > 4 else None)
    able = Kernel("able")
    table(missing, picky, able)
    assert select(PROBLEM) == (able, {"missing": "it was not built", "picky": "more than 4 steps"})
    assert select(PROBLEM._replace(T=4)) == (picky, {"missing": "it was not built"})
    assert missing.asked == []


def test_a_choice_is_made_once_for_each_problem(table):
    kernel = Kernel("kernel")
    table(kernel)
    for _ in range(3):
        select(PROBLEM)
        with fused_rnn.use_backend("kernel"):
            select(PROBLEM)
    assert kernel.asked == [PROBLEM, PROBLEM]


def test_torch_runs_what_no_kernel_takes(table):
    table(Kernel("picky", refuses=lambda p: "never"))
    backend, refusals = select(PROBLEM)
    assert backend is None
    assert refusals == {"picky": "never", "reference": "torch.nn's own forward is faster"}


@pytest.mark.parametrize("transform", sorted(transforms.ONLY_REFERENCE))
def test_the_reference_runs_what_torch_cannot(table, transform):
    table(Kernel("kernel"))
    assert select(PROBLEM._replace(transform=transform)).backend is reference


@pytest.mark.parametrize("transform", ["autocast", "torch.jit.trace", "a torch.func transform"])
def test_torch_runs_under_other_transforms(table, transform):
    table(Kernel("kernel"))
    assert select(PROBLEM._replace(transform=transform)).backend is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_have_names():
    seen = {}

    def look(name):
        seen[name] = transforms.active()

    look("nothing")
    with torch.autocast("cpu", torch.bfloat16):
        look("autocast")
    with torch.autograd.forward_ad.dual_level():
        look("dual level")
    x = torch.ones(2)
    torch.func.vmap(lambda t: (look("vmap"), t)[1])(x)
    torch.func.grad(lambda t: (look("grad"), t.sum())[1])(x)
    torch.func.jvp(lambda t: (look("jvp"), t)[1], (x,), (x,))
    torch.func.vmap(torch.func.grad(lambda t: (look("per sample"), t.sum())[1]))(x)
    torch.func.jacfwd(lambda t: (look("jacfwd"), t)[1])(x)
    torch.jit.trace(lambda t: (look("trace"), t + 1)[1], (x,), check_trace=False)
    with FlopCounterMode(display=False):
        look("counted")
    with TorchDispatchMode():
        look("mode")
    with TorchDispatchMode(), FlopCounterMode(display=False):
        look("two modes")
    assert seen == {
        "nothing": None,
        "autocast": "autocast",
        "dual level": "forward-mode AD",
        "vmap": "vmap",
        "grad": "a torch.func transform",
        "jvp": "forward-mode AD",
        "per sample": "vmap",
        "jacfwd": "vmap",
        "trace": "torch.jit.trace",
        "counted": "a FlopCounterMode",
        "mode": "a TorchDispatchMode",
        "two modes": "a TorchDispatchMode",
    }


def test_use_backend_as_a_call_and_as_a_context(table):
    a, b = Kernel("a"), Kernel("b")
    table(a, b)

    def now():
        return getattr(select(PROBLEM).backend, "name", TORCH)

    assert now() == "a"
    with fused_rnn.use_backend("b"):
        assert now() == "b"
        with fused_rnn.use_backend("torch"):
            assert now() == TORCH
            fused_rnn.use_backend("reference")
            assert now() == "reference"
        assert now() == "b"
        with fused_rnn.use_backend(None):
            assert now() == "a"
    assert now() == "a"
    with pytest.raises(KeyError), fused_rnn.use_backend("b"):
        raise KeyError
    assert now() == "a"
    again = fused_rnn.use_backend("b")
    assert now() == "b"
    for _ in range(2):
        with again:
            assert now() == "b"
        assert now() == "a"


def test_a_choice_is_this_threads_own(table):
    table(Kernel("a"), Kernel("b"))
    seen = []

    def look():
        seen.append(select(PROBLEM).backend.name)
        fused_rnn.use_backend("reference")

    with fused_rnn.use_backend("b"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        seen.append(select(PROBLEM).backend.name)
    assert seen == ["a", "b"]


def test_unknown_names():
    known = ", ".join(map(repr, [*BACKENDS, "torch"]))
    with pytest.raises(ValueError, match=f"unknown backend 'cudnn'. Choose one of {known}"):
        fused_rnn.use_backend("cudnn")
    assert select(PROBLEM).backend is not None or NATIVE


def test_a_backend_chosen_by_name_fails_with_its_reason(table):
    missing = Kernel("missing", missing="it was not built")
    picky = Kernel("picky", refuses=lambda p: "H is odd" if p.H % 2 else None)
    table(missing, picky)
    layer, cell = fused_rnn.GRU(3, 5), fused_rnn.GRUCell(3, 5)
    for name, reason in (("missing", "it was not built"), ("picky", "H is odd")):
        with fused_rnn.use_backend(name):
            for run in (lambda: layer(torch.ones(2, 3)), lambda: cell(torch.ones(2, 3))):
                with pytest.raises(RuntimeError, match=f"'{name}' was asked for.*{reason}"):
                    run()


@pytest.mark.parametrize("name", MODULES)
def test_a_backend_chosen_by_name_is_never_passed_over(table, name):
    class Tagged(torch.Tensor):
        pass

    table(Kernel("kernel"))
    module, x = getattr(fused_rnn, name)(3, 4), example(name)
    meta = getattr(fused_rnn, name)(3, 4, device="meta")
    with fused_rnn.use_backend("kernel"):
        if name in CELLS:  # layers run in autocast's dtype
            with torch.autocast("cpu", torch.bfloat16):
                with pytest.raises(RuntimeError, match="asked for"):
                    module(x)
                with pytest.raises(RuntimeError, match="asked for"):
                    module(x.bfloat16())
        with pytest.raises(RuntimeError, match="asked for"):
            module(x.as_subclass(Tagged))
        with pytest.raises(RuntimeError, match="asked for"):
            torch.func.vmap(lambda t: torch.as_tensor(module(t)[0]))(x.unsqueeze(0))
        assert ran(meta, x.to("meta")) == ["kernel"]


@pytest.mark.parametrize("name", MODULES)
def test_torch_by_name_is_torch(name):
    theirs, ours = twins(name, 3, 4)
    x = example(name)
    with fused_rnn.use_backend("torch"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        assert ran(ours, x) == ["torch"]


@needs_native
@pytest.mark.parametrize("name", MODULES)
def test_native_runs_by_itself(name):
    module, x = getattr(fused_rnn, name)(3, 4), example(name)
    with torch.set_grad_enabled(name != "RNNCell"):  # of which torch runs a step with gradients
        assert ran(module, x) == ["native"]
        assert ran(module.double(), x.double()) == ["native"]
        with torch.no_grad():
            assert ran(module, x.double()) == ["native"]
        if name in LAYERS:
            assert ran(
                module, sequences((3, 1), 3, False)._replace(data=torch.randn(4, 3).double())
            ) == ["native"]
            assert ran(module, torch.randn(4, 3).double()) == ["native"]


@needs_native
def test_torch_runs_what_it_is_faster_at():
    """One step of a plain RNN that records its graph, unless another is asked for by name."""
    cell, layer = fused_rnn.RNNCell(3, 4), fused_rnn.RNN(3, 4)
    one, two = torch.randn(1, 2, 3), torch.randn(2, 2, 3)
    assert ran(cell, one[0]) == ran(layer, one) == ["torch"]
    assert ran(layer, two) == ran(fused_rnn.GRUCell(3, 4), one[0]) == ["native"]
    (row,) = fused_rnn.explain(cell, one[0])
    assert "torch's own operators are faster at one step of a plain RNN" in row.refusals["native"]
    with fused_rnn.use_backend("native"):
        assert ran(cell, one[0]) == ran(layer, one) == ["native"]
    every_state = layer(one, return_states=True)[2]
    torch.testing.assert_close(every_state[:, 0], layer(one)[1])


@pytest.mark.parametrize("name", MODULES)
def test_kernels_see_contiguous_operands(table, name):
    table(Kernel("kernel"))
    theirs, ours = twins(name, 3, 4, **({} if name in CELLS else {"batch_first": True}))
    for module in (theirs, ours):
        for key, p in list(module._parameters.items()):
            del module._parameters[key]
            setattr(module, key, torch.stack([p, p], -1).detach()[..., 0].requires_grad_())
    x = torch.randn(2, 6, 3)[:, ::2] if name in LAYERS else torch.randn(3, 2).t()
    h = torch.randn(1, 1, 4).expand(1, 2, 4)
    hx = h if name in LAYERS else h[0]
    hx = (hx, hx) if "LSTM" in name else hx
    assert ran(ours, x, hx) == ["kernel"]
    assert_same(theirs(x, hx), ours(x, hx))
    leaves(ours(x, hx))[0].sum().backward()


def test_records_name_layers_and_directions(table):
    kernel = Kernel("kernel")
    table(kernel)
    with record() as records:
        fused_rnn.LSTM(3, 4, 2, bidirectional=True)(torch.randn(5, 2, 3))
    assert [(r.layer, r.direction, r.backend, r.problem.I) for r in records] == [
        (0, 0, "kernel", 3),
        (0, 1, "kernel", 3),
        (1, 0, "kernel", 8),
        (1, 1, "kernel", 8),
    ]
    with record() as records:
        pass
    assert records == []


def test_torch_runs_all_layers_or_none(table):
    table(Kernel("picky", refuses=lambda p: "I is 3" if p.I == 3 else None))
    theirs, ours = twins("GRU", 3, 4, 2)
    x = torch.randn(5, 2, 3)
    with record() as records:
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert [r.backend for r in records] == [TORCH, TORCH]
    assert records[0].refusals["picky"] == "I is 3"
    assert "all layers or none" in records[1].refusals["picky"]


@pytest.mark.parametrize("name", MODULES)
def test_records_of_calls_that_torch_has_to_judge(name):
    class Tagged(torch.Tensor):
        pass

    if name in CELLS:
        module, x = getattr(fused_rnn, name)(0, 4), torch.randn(2, 0)
    else:
        module, x = getattr(fused_rnn, name)(3, 4), example(name).as_subclass(Tagged)
    with record() as records:
        module(x)
    assert [(r.problem, r.backend, list(r.refusals)) for r in records] == [
        (None, TORCH, list(BACKENDS))
    ]


def test_problems_say_what_is_being_run(table):
    kernel = Kernel("kernel")
    table(kernel)
    device = torch.device("cpu")
    layer = fused_rnn.LSTM(3, 4, 2, proj_size=2, dtype=torch.float64)
    layer.requires_grad_(False)
    layer.weight_hh_l1.requires_grad_()
    packed = sequences((5, 2, 2), 3, True)
    layer(packed._replace(data=packed.data.double()))
    cell = fused_rnn.GRUCell(3, 4)
    with torch.no_grad():
        cell(torch.randn(7, 3))
    double = torch.float64
    stack = {"layers": 2, "directions": 1, "width": 3}
    assert kernel.asked == [
        Problem("lstm", device, double, 5, 3, 3, 4, 2, True, False, None, **stack),
        Problem("lstm", device, double, 5, 3, 2, 4, 2, True, True, None, **stack),
        Problem("gru", device, torch.float32, 1, 7, 3, 4, 0, False, False, None),
    ]


def test_a_frozen_layer_above_a_trained_one_is_asked_to_go_back(table):
    kernel = Kernel("kernel")
    table(kernel)
    layer = fused_rnn.GRU(3, 4, 2)
    layer.requires_grad_(False)
    layer.weight_hh_l0.requires_grad_()
    layer(torch.randn(5, 2, 3))
    assert [problem.training for problem in kernel.asked] == [True, True]


def test_states_of_every_step_are_not_torchs_to_give(table):
    table(Kernel("picky", refuses=lambda problem: "never"))
    assert select(PROBLEM).backend is None
    assert select(PROBLEM._replace(states=True)).backend is reference


def test_a_graph_asks_with_the_width_of_each_layer(table):
    kernel = Kernel("kernel")
    table(kernel)
    layer = fused_rnn.GRU(3, 4, 3, bidirectional=True)
    stack = Stack.of("gru", layer.all_weights, bidirectional=True)
    choose_in_graph(stack, torch.randn(5, 2, 3), None, None, layer.all_weights)
    assert [problem.I for problem in kernel.asked] == [3, 8]  # the third layer is as the second


def test_a_node_that_is_to_keep_every_c_asks_for_that(table):
    picky = Kernel("picky", lambda problem: "no" if problem.states else None)
    table(picky)
    inputs, _ = make_inputs(("lstm", False), SMALL, torch.float32)
    *_, c = node.scan(node.WHEN_RUN, "lstm", inputs, None, False, False, every_c=True)
    assert picky.asked[-1].states
    assert_same(c, reference.scan_states("lstm", inputs, None, False)[3])

"""What runs on a GPU of which nothing was measured: torch.nn where it can, ours where it cannot."""

import pytest
import torch

import fused_rnn
from fused_rnn import backends
from fused_rnn.backends import (
    BACKENDS,
    UNMEASURED,
    Problem,
    native,
    record,
    reference,
    select,
    select_kernels,
    select_step,
    transforms,
    triton,
    tuned,
)
from fused_rnn.backends.measured import Entry, Here, Table, kind_of
from fused_rnn.graph.compiled import choose_in_graph
from fused_rnn.scans.checks import Stack

GPU = torch.device("cuda", 0)
HERE = Here("a GPU", (("torch", "2"),))
PLAIN = Problem("lstm", GPU, torch.bfloat16, 9, 4, 3, 5, 0, False, True, None, width=3)


def refusal(problem):
    return problem.transform and f"{problem.transform} needs torch's own operators"


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch):
    """A GPU that both backends with kernels take, and the rule as it is shipped."""
    monkeypatch.setattr(backends, "UNMEASURED", UNMEASURED)
    for backend in (native, triton):
        monkeypatch.setattr(backend, "available", lambda: None)
        monkeypatch.setattr(backend, "supports", refusal)
    monkeypatch.setattr(tuned, "_measured", Table())
    monkeypatch.setattr(tuned, "here", lambda device: HERE)
    backends._forget()
    backends._by_name.cache_clear()
    yield
    monkeypatch.undo()
    backends._forget()
    backends._by_name.cache_clear()


def test_torch_runs_what_it_can():
    backend, refusals = select(PLAIN)
    assert backend is None
    assert refusals == {
        "native": UNMEASURED,
        "triton": UNMEASURED,
        "reference": "torch.nn's own forward is faster",
    }
    assert "fused_rnn.tune" in UNMEASURED


@pytest.mark.parametrize(
    "kind", [{"ragged": True}, {"training": False}, {"P": 2}, {"dtype": torch.float64}]
)
def test_whatever_the_call(kind):
    assert select(PLAIN._replace(**kind)).backend is None


def test_a_single_step_too():
    assert select_step(PLAIN[:11]).backend is None


def test_a_sequence_of_one_step_is_a_layers_business():
    layer = fused_rnn.LSTM(3, 5, 2, device="meta")  # no CPU either
    with record() as records:
        layer(torch.empty(1, 4, 3, device="meta"))
    assert [(r.backend, r.problem.width) for r in records] == [("torch", 3)] * 2


def test_a_kernel_that_refuses_says_why():
    assert select(PLAIN._replace(transform="autocast"))[1]["native"].startswith("autocast needs")


@pytest.mark.parametrize("option", ["states", "marked", "cut", "recompute"])
def test_ours_runs_what_torch_has_not(option):
    assert select(PLAIN._replace(**{option: True})) == (native, {})


@pytest.mark.parametrize("transform", sorted(transforms.ONLY_REFERENCE))
def test_the_reference_runs_under_transforms(transform):
    assert select(PLAIN._replace(transform=transform)).backend is reference


def test_the_reference_runs_packed_sequences_under_torch_func():
    problem = PLAIN._replace(transform=transforms.TORCH_FUNC, ragged=True)
    assert select(problem).backend is reference


@pytest.mark.parametrize("name", ["native", "triton", "reference"])
def test_ours_runs_by_name(name):
    with fused_rnn.use_backend(name):
        assert select(PLAIN).backend is BACKENDS[name]


def test_on_a_cpu_nothing_has_to_be_measured():
    assert select(PLAIN._replace(device=torch.device("cpu"))).backend is native


def test_a_node_of_a_graph_has_a_kernel():
    assert select_kernels(PLAIN) is native
    with fused_rnn.use_backend("torch"):
        assert select_kernels(PLAIN) is None


@pytest.mark.parametrize(("way", "backend"), [("native", native), ("torch", None)])
def test_what_was_measured_comes_before_the_default(way, backend):
    seconds = dict.fromkeys(("torch", "native"), 2.0) | {way: 1.0}
    backends.keep([Entry(HERE, kind_of(PLAIN), PLAIN.T, PLAIN.N, seconds)])
    assert select(PLAIN).backend is backend
    assert select(PLAIN._replace(N=PLAIN.N + 1)).backend is backend
    assert UNMEASURED not in select(PLAIN)[1].values()
    assert UNMEASURED in select(PLAIN._replace(N=100))[1].values()
    with fused_rnn.use_backend("triton"):
        assert select(PLAIN).backend is triton


def test_what_was_measured_of_another_machine_does_not():
    other = HERE._replace(device="another GPU")
    entry = Entry(other, kind_of(PLAIN), PLAIN.T, PLAIN.N, {"native": 1.0})
    backends.keep([entry])
    assert select(PLAIN).backend is None


def test_a_graph_is_left_for_torch_where_it_may_be(monkeypatch):
    weights = [torch.empty(1)]

    class Like:
        device, dtype, requires_grad = GPU, torch.bfloat16, False

    def chosen(**options):
        return choose_in_graph(
            Stack("lstm", 3, 5, 0, 2, 1, True), Like, None, None, [weights], **options
        )

    monkeypatch.setattr(transforms, "may_break", lambda: True)
    assert chosen() == [None, None]
    assert chosen(recompute=True) == ["native", "native"]
    assert chosen(ragged=True, cut=True) == ["native", "native"]
    monkeypatch.setattr(transforms, "may_break", lambda: False)
    assert chosen() == ["native", "native"]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_dynamo_says_whether_a_graph_may_be_left(fullgraph):
    torch._dynamo.reset()  # what was compiled for the other one would do
    said = []

    @transforms.constant_in_graphs
    def ask():
        said.append(transforms.may_break())
        return 1.0

    def run(x):
        return x + ask()

    torch.compile(run, backend="eager", fullgraph=fullgraph)(torch.ones(2))
    assert said == [not fullgraph]
    assert transforms.may_break() is False

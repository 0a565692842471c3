"""Every compiled persistent kernel, by problems whose plans have it: on a GPU, or planned."""

import functools

import pytest
import torch

from fused_rnn.backends import native, reference
from fused_rnn.scans import autograd
from tests.conftest import NO_CUDA, TOLERANCES, needs_cuda
from tests.native import every_kernel, plans
from tests.native.build import UnbuildableError
from tests.native.every_kernel import CELLS, MEETINGS, PRODUCTS, Kernel
from tests.native.plans import A100, H100, SLICE, Problem
from tests.operands import Shape, as_double, assert_near, make_inputs, needing, present

GPU = "cuda"


# The table, of devices made up


def ask_for(device):
    def ask(problem):
        found = plans.plan(problem, device)
        return (found.meeting, found.shape) if found.found else None

    return ask


@functools.cache
def table_of(device):
    try:
        return every_kernel.table(ask_for(device))
    except UnbuildableError as reason:
        pytest.skip(str(reason))


def test_an_h100_runs_every_kernel():
    found = table_of(H100)
    every = every_kernel.compiled(plans.compiled)
    assert len(every) == 3 * (13 + 12)
    assert {kernel for kernel, _ in found} == every
    assert len(every_kernel.for_backward_any_cell(found)) > 3 * (2 * 13 + 12)


@pytest.mark.parametrize("device", [H100, A100, SLICE], ids=["h100", "a100", "slice"])
def test_a_problem_gets_the_kernel_it_stands_for(device):
    every, ask = every_kernel.compiled(plans.compiled), ask_for(device)
    for (kernel, cell), problem in table_of(device).items():
        assert kernel in every
        meeting, shape = ask(problem)
        dtype, tf32 = PRODUCTS[kernel.product]
        assert kernel == (problem.backward, MEETINGS[meeting], shape, kernel.product)
        assert (problem.cell, problem.dtype, problem.tf32) == (cell, dtype, tf32)


def test_without_clusters_there_are_kernels_of_one_block():
    found = {kernel for kernel, _ in table_of(A100)}
    assert {kernel.meeting for kernel in found} == {"memory", "cluster"}
    for kernel, cell in table_of(A100):
        problem = table_of(A100)[kernel, cell]
        assert kernel.meeting == "memory" or plans.plan(problem, A100).blocks == 1


def test_the_least_problem_is_taken():
    asked = []

    def ask(problem):
        asked.append(problem)
        return (0, 2) if problem.N > 1 else None

    found = every_kernel.table(ask)
    assert {kernel for kernel, _ in found} == {
        Kernel(backward, "memory", 2, kind) for backward in (False, True) for kind in PRODUCTS
    }
    assert {cell for _, cell in found} == set(CELLS)
    assert {(p.N, p.H, p.directions) for p in found.values()} == {(2, 7, 1)}
    costs = [p.N * p.H**2 * p.directions for p in asked]
    assert costs == sorted(costs)


def test_one_cell_will_do_backward():
    forward, backward = (Kernel(b, "memory", 1, "half") for b in (False, True))
    found = {
        (kernel, cell): Problem(cell, backward=kernel.backward)
        for kernel in (forward, backward)
        for cell in ("lstm", "gru")
    }
    chosen = every_kernel.for_backward_any_cell(found)
    assert list(chosen) == [f"{forward}, lstm", f"{forward}, gru", str(backward)]
    assert chosen[str(backward)].cell == "lstm"
    (line, *_) = every_kernel.lines(chosen)
    assert line.startswith("backward, memory, shape 1, half")
    assert line.endswith("lstm     bfloat16 N 16   H 768  directions 1")


@pytest.mark.skipif(NO_CUDA is None, reason="there is a GPU")
def test_without_a_gpu_there_is_no_table_to_print(capsys):
    assert every_kernel.main() == 1
    assert capsys.readouterr().out.startswith("The table is a GPU's: ")


# The kernels, on the GPU that is there


@functools.cache
def here():
    return every_kernel.of_this_gpu()


def differentiated(backend, cell, operands, gradients):
    """Return the results of one or both directions, and the gradients of what they are made of."""
    leaves = [needing(inputs) for inputs in operands]
    leaves[1:] = [inputs._replace(x=leaves[0].x) for inputs in leaves[1:]]
    if len(leaves) == 2 and backend is native:
        scans = autograd.scan_both(native, cell, tuple(leaves), None)
    else:
        scans = [autograd.scan(backend, cell, of, None, k == 1) for k, of in enumerate(leaves)]
    results = present([t for scan in scans for t in scan])
    wanted = present([*leaves[0], *(t for of in leaves[1:] for t in of[1:])])
    given = [g.to(r.dtype) for g, r in zip(gradients(results), results, strict=True)]
    return results, torch.autograd.grad(results, wanted, given)


def check(problem, dtype):
    """Run a problem, and hold it against the reference in float64."""
    shape = Shape(problem.T, problem.N, 3, problem.H)
    operands = [
        make_inputs((problem.cell, False), shape, dtype, GPU)[0] for _ in range(problem.directions)
    ]
    drawn = []

    def gradients(results):
        drawn.extend(torch.randn_like(r.float()) for r in results[len(drawn) :])
        return [g.to(dtype) for g in drawn]

    found = differentiated(native, problem.cell, operands, gradients)
    truth = [as_double(inputs) for inputs in operands]
    expected = differentiated(reference, problem.cell, truth, gradients)
    tolerances = TOLERANCES[torch.float16 if problem.tf32 else dtype]
    for actual, wanted, tolerance in zip(found, expected, tolerances, strict=True):
        for one, other in zip(actual, wanted, strict=True):
            assert_near(one, other, tolerance)


@needs_cuda
@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_every_kernel(way, kind, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_PERSISTENT", "1")
    _, tf32 = PRODUCTS[kind]
    torch.backends.cuda.matmul.allow_tf32 = tf32  # put back by a fixture
    mine = {
        name: problem
        for name, problem in here().items()
        if name.startswith(way) and f", {kind}" in name
    }
    if not mine:
        pytest.skip("this GPU has no plan that takes one")
    halves = (torch.float16, torch.bfloat16)
    for name, problem in mine.items():
        print(name, problem, flush=True)  # before the launch: a hang still says where
        for dtype in halves if kind == "half" else (torch.float32,):
            check(problem, dtype)

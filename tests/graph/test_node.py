"""The node's ops, called past the layers: what they tell torch, and what they compute."""

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn.backends import BEGINS, DEAD, GOES_ON, Inputs, reference
from fused_rnn.cells import CELLS
from tests.operands import OF_OPERANDS, SMALL, Shape, make_inputs, needing, present

FORWARD = torch.ops.fused_rnn.layer_forward.default
BACKWARD = torch.ops.fused_rnn.layer_backward.default
BACKENDS = ["native", "reference", ""]
# Longer ones and shorter ones, and one without a step.
MARKS = torch.tensor([[BEGINS, BEGINS, DEAD], [GOES_ON, DEAD, DEAD], [GOES_ON, DEAD, DEAD]]).byte()


class Mode(TorchDispatchMode):
    """Hands on every op as it is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def op_arguments(variant, shape, name="native", device="cpu"):
    inputs, _ = make_inputs(variant, shape, torch.float32, device)
    return name, variant[0], *inputs, None, None, None, False, False


def check_both_ways(name, cell, inputs, *others, every_c=False):
    inputs = needing(inputs)
    args = name, cell, *inputs, *others, False, every_c
    # What is chosen when it runs saves nothing.
    opcheck(FORWARD, (*args, bool(name)))
    opcheck(FORWARD, (*args, False), test_utils=OF_OPERANDS)
    with torch.no_grad():
        y, h_n, c_n, c, *saved = FORWARD(*args, bool(name))
        nothing = [torch.empty(0), torch.empty(0)]
        of_anew = [isinstance(t, torch.Tensor) for t in others[1:]]
        needs = [*(t is not None for t in inputs), *of_anew]
        for kept, given in (
            (saved, (torch.ones_like(y), None, c_n, c)),
            (nothing, (torch.ones_like(y), h_n, None, c)),
            (saved, (None, None, c_n, None)),
        ):
            wholly = {} if kept is nothing else {"test_utils": OF_OPERANDS}
            opcheck(BACKWARD, (*args, y, *kept, *given, needs), **wholly)


def test_no_op_returns_a_list():
    """Inductor's wrapper in C++ cannot take one; those of earlier programs are gone when traced."""
    found = {name for name in torch._C._dispatch_get_all_op_names() if "fused_rnn::" in name}
    assert {FORWARD.name(), BACKWARD.name(), "fused_rnn::lstm_forward"} <= found
    schemas = [torch._C._get_schema(name, "") for name in found]
    lists = {s.name for s in schemas if any("List" in str(r.type) for r in s.returns)}
    assert lists == {"fused_rnn::scan"}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [SMALL, Shape(1, 1, 1, 1), Shape(3, 0, 3, 4, bias=False)])
def test_opcheck(variant, shape, name, device):
    _, cell, *inputs = op_arguments(variant, shape, device=device)
    has_c = CELLS[cell].has_cell_state
    check_both_ways(name, cell, Inputs(*inputs[:8]), None, None, None, every_c=has_c)
    check_both_ways(name, cell, Inputs(*inputs[:8]), None, None, None)


@pytest.mark.parametrize("name", BACKENDS)
def test_opcheck_of_marks(variant, name):
    _, cell, *inputs = op_arguments(variant, Shape(3, 3, 2, 4))
    inputs = Inputs(*inputs[:8])
    h = torch.ones(inputs.h0.shape[1])
    c = torch.ones(4) if CELLS[cell].has_cell_state else None
    check_both_ways(name, cell, inputs, MARKS, h, c, every_c=c is not None)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_gradient_of_what_the_cell_has_not(variant, name):
    cell, inputs = variant[0], needing(make_inputs(variant, SMALL)[0])
    found = []
    for also in (False, True):
        y, h_n, c_n, c, *_ = FORWARD(name, cell, *inputs, None, None, None, False, False, False)
        used = [y.sum(), h_n.sum()]
        if also:  # of a tensor without elements
            used += [t.sum() for t in (c_n, c) if not t.numel()]
        found.append(torch.autograd.grad(sum(used), present(inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    if not CELLS[cell].has_cell_state:
        c_n = FORWARD(name, cell, *inputs, None, None, None, False, False, False)[2]
        nothing = torch.autograd.grad(c_n.sum(), present(inputs), allow_unused=True)
        assert all(d is None or not d.count_nonzero() for d in nothing)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kept", [False, True], ids=["afresh", "kept"])
def test_gradients_in_a_mode_are_those_without(variant, name, kept):
    inputs = needing(make_inputs(variant, SMALL)[0])

    def gradients():
        training = kept and bool(name)
        args = name, variant[0], *inputs, None, None, None, False, False, training
        y, h_n, *_ = FORWARD(*args)
        found = torch.autograd.grad(y.pow(2).sum() + h_n.sum(), present(inputs))
        assert not any(d.requires_grad for d in found)
        return found

    with Mode():
        found = gradients()
    torch.testing.assert_close(found, gradients(), rtol=0, atol=0)


def test_gradients_of_a_node_that_saved_nothing(variant, device):
    found = []
    name, cell, *inputs = op_arguments(variant, SMALL, device=device)
    for name, training in (("native", True), ("native", False), ("reference", True), ("", False)):
        operands = needing(Inputs(*inputs[:8]))
        y, h_n, *_ = FORWARD(name, cell, *operands, *inputs[8:], training)
        found.append(torch.autograd.grad((y.pow(2).sum(), h_n.sum()), present(operands)))
    for others in found[1:]:
        torch.testing.assert_close(others, found[0])


def test_gradients_of_a_node_have_gradients(variant):
    name, cell, *inputs = op_arguments(variant, SMALL)
    penalties = []
    for backend in (name, "reference"):
        operands = needing(Inputs(*inputs[:8]))
        if backend == name:
            y, *_ = FORWARD(backend, cell, *operands, *inputs[8:], True)
        else:
            y, *_ = reference.forward(cell, operands, None, False, True)
        (dx,) = torch.autograd.grad(y.pow(2).sum(), operands.x, create_graph=True)
        penalties.append(torch.autograd.grad(dx.pow(2).sum(), operands.w_hh)[0])
    torch.testing.assert_close(*penalties)


def test_a_node_under_activation_checkpointing():
    program = torch.export.export(fused_rnn.GRU(3, 4), (torch.randn(5, 2, 3),)).module()
    x = torch.randn(5, 2, 3, requires_grad=True)
    found = []
    for run in (program, lambda x: checkpoint(program, x, use_reentrant=False)):
        found.append(torch.autograd.grad(run(x)[0].pow(2).sum(), x))
    torch.testing.assert_close(found[0], found[1])

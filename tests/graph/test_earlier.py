"""Programs that were exported with the ops of earlier days, and these ops themselves."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.library import opcheck

import fused_rnn
from fused_rnn.backends import Inputs
from tests.graph.test_node import BACKENDS, FORWARD, op_arguments
from tests.operands import OF_OPERANDS, SMALL, needing, present
from tests.twins import leaves

DATA = Path(__file__).parent / "data"
SCAN = torch.ops.fused_rnn.scan.default


class Model(nn.Module):
    """What was exported then: two layers of two directions, a projection, resets and lengths."""

    def __init__(self):
        super().__init__()
        self.gru = fused_rnn.GRU(3, 4, num_layers=2, bidirectional=True)
        self.lstm = fused_rnn.LSTM(8, 4, proj_size=2)

    def forward(self, x, lengths):
        y, h_n = self.gru(x)
        return self.lstm(y, lengths=lengths), h_n


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_of_then_runs_and_trains(decomposed):
    program = torch.export.load(DATA / "scan.pt2")
    ops = {str(node.target) for node in program.graph.nodes}
    assert "fused_rnn.scan.default" in ops
    assert "fused_rnn.layer_forward.default" not in ops
    if decomposed:
        program = program.run_decompositions()
    run, model = program.module(), Model()
    model.load_state_dict(program.state_dict)
    for steps, n in ((7, 5), (2, 9)):
        x, lengths = torch.randn(steps, n, 3), torch.arange(n) % (steps + 1)
        found, expected = (leaves(m(x, lengths)) for m in (run, model))
        torch.testing.assert_close(found, expected)
        gradients = [
            torch.autograd.grad(sum(t.pow(2).sum() for t in results), list(of.parameters()))
            for results, of in ((found, run), (expected, model))
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", BACKENDS)
def test_opcheck(variant, name):
    _, cell, *inputs = op_arguments(variant, SMALL)
    inputs, others = needing(Inputs(*inputs[:8])), inputs[8:]
    args = name, cell, *inputs, *others
    opcheck(SCAN, (*args, bool(name)))
    opcheck(SCAN, (*args, False), test_utils=OF_OPERANDS)
    with torch.no_grad():
        y, _, _, _, saved = SCAN(*args, bool(name))
        assert bool(saved) == bool(name)
        needs = [*(t is not None for t in inputs), False, False]
        for kept in (saved, []):
            given = y, kept, torch.ones_like(y), None, None, None, needs
            wholly = {"test_utils": OF_OPERANDS} if kept else {}
            opcheck(torch.ops.fused_rnn.scan_backward.default, (*args, *given), **wholly)


def test_it_is_the_op_of_today(variant):
    name, cell, *inputs = op_arguments(variant, SMALL)
    found = []
    for op in (SCAN, FORWARD):
        operands = needing(Inputs(*inputs[:8]))
        y, h_n, *_ = op(name, cell, *operands, *inputs[8:], True)
        found.append((y, h_n, torch.autograd.grad(y.sum() + h_n.sum(), present(operands))))
    torch.testing.assert_close(*found, rtol=0, atol=0)

"""torch's counter of operations over the layers, against products counted by hand."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fused_rnn
from fused_rnn.backends import record
from fused_rnn.graph import flops
from tests.graph.test_node import MARKS
from tests.twins import LAYERS, leaves

T, N, I, H, P = 5, 3, 7, 4, 2  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def products(*sizes):
    """Return what products of these sizes, M x K x N, count for."""
    return sum(2 * m * k * n for m, k, n in sizes)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def there_and_back(module, x, **options):
    """Return what the forward counts for, and what forward and backward do."""

    def both():
        results = leaves(module(x, **options))
        sum(t.sum() for t in results).backward()

    with torch.no_grad():
        forward = counted(lambda: module(x, **options))
    return forward, counted(both)


def of_layer(gates, rows, n, width=I, dx=False):
    """Return what forward and backward of one direction count for, from zeros, by hand."""
    g = gates * H
    forward = [(rows, width, g), (rows, H, g)]
    # Weights; from each step to the one before it; x.
    backward = [(g, rows, width), (g, rows, H), (rows - n, g, H)] + dx * [(rows, g, width)]
    return products(*forward), products(*forward, *backward)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs", [True, False], ids=["dx", "weights"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer(layer, needs, bias):
    module, x = getattr(fused_rnn, layer)(I, H, bias=bias), torch.randn(T, N, I)
    with record() as ran:
        found = there_and_back(module, x.requires_grad_(needs))
    assert {r.backend for r in ran} == {"native"}
    assert found == of_layer(GATES[layer], T * N, N, dx=needs)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_both_directions(layer):
    module = getattr(fused_rnn, layer)(I, H, num_layers=2, bidirectional=True)
    first = of_layer(GATES[layer], T * N, N)
    second = of_layer(GATES[layer], T * N, N, 2 * H, dx=True)
    expected = tuple(2 * (a + b) for a, b in zip(first, second, strict=True))
    assert there_and_back(module, torch.randn(T, N, I)) == expected


def test_a_projection():
    module, rows, g = fused_rnn.LSTM(I, H, proj_size=P), T * N, 4 * H
    forward = [(rows, I, g), (rows, P, g), (rows, H, P)]
    backward = [(g, rows, I), (g, rows, P), (rows - N, g, P), (rows, P, H), (P, rows, H)]
    expected = products(*forward), products(*forward, *backward)
    assert there_and_back(module, torch.randn(T, N, I)) == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_no_step_past_an_end(layer):
    module, x, lengths = getattr(fused_rnn, layer)(I, H), torch.randn(T, N, I), [5, 3, 1]
    expected = of_layer(GATES[layer], sum(lengths), N)
    assert there_and_back(module, pack_padded_sequence(x, lengths)) == expected
    assert there_and_back(module, x, lengths=torch.tensor(lengths)) == expected


@pytest.mark.parametrize("layer", LAYERS)
def test_an_initial_state_that_needs_a_gradient(layer):
    module = getattr(fused_rnn, layer)(I, H, learn_initial_state=True)
    forward, both = of_layer(GATES[layer], T * N, N)
    both += products((N, GATES[layer] * H, H))
    assert there_and_back(module, torch.randn(T, N, I)) == (forward, both)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell(name):
    found = there_and_back(getattr(fused_rnn, name)(I, H), torch.randn(N, I))
    assert found == of_layer(GATES[name], N, N)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_exported_program(layer, backend):
    module, x = getattr(fused_rnn, layer)(I, H), torch.randn(T, N, I)
    run = torch.export.export(module, (x,)).module()
    forward, both = of_layer(GATES[layer], T * N, N)
    with fused_rnn.use_backend(backend):
        # It saves nothing, so that its backward begins with another forward.
        assert there_and_back(run, x) == (forward, both + forward)


@pytest.mark.parametrize("layer", LAYERS)
def test_recomputing(layer):
    module = getattr(fused_rnn, layer)(I, H, recompute=True)
    forward, both = of_layer(GATES[layer], T * N, N)
    assert there_and_back(module, torch.randn(T, N, I)) == (forward, both + forward)


@pytest.mark.parametrize("name", ["layer_forward", "scan"])
@pytest.mark.parametrize("marks", [None, MARKS], ids=["dense", "marks"])
def test_a_node_that_saved_something(marks, name):
    def run(x):
        op = getattr(torch.ops.fused_rnn, name)
        weights = *module.parameters(), None
        operands = x, torch.zeros(3, H), None, *weights, marks, None, None, False, False
        return op("native", "gru", *operands, torch.is_grad_enabled())[0]

    module = fused_rnn.GRU(I, H)
    # What the marks leave out is not known from sizes.
    assert there_and_back(run, torch.randn(3, 3, I)) == of_layer(3, 9, 3)


@pytest.mark.parametrize("both", [False, True], ids=["marked", "bidirectional"])
def test_ops_of_a_gpu_alone(both):
    x, h, w_ih, w_hh, b = (T, N, I), (N, H), (4 * H, I), (4 * H, H), (4 * H,)
    of_one = h, h, w_ih, w_hh, b, b
    forward, backward = flops._FORMULAS["bidirectional" if both else "marked"]
    expected = of_layer(4, T * N, N, dx=True)
    y = (T, N, H)
    if both:
        scan = "lstm", x, *of_one, *of_one, None
        saved = (y, (1,), y, None, None) * 2
        mask = sum(1 << bit for bit in (0, 3, 4, 5, 6, 9, 10, 11, 12))  # all but the states
        found = forward(*scan, True), backward(*scan, *saved, mask)
    else:
        scan = "lstm", x, *of_one, (T, N), None, None, False
        saved = y, (1,), y, None, None, None
        found = forward(*scan, True, False), backward(*scan, *saved, 0b1111001)
    directions = 2 if both else 1
    assert found == (directions * expected[0], directions * (expected[1] - expected[0]))


def test_each_op_has_a_formula():
    ops = {
        name.removeprefix("fused_rnn::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fused_rnn::")
    }
    missing = {
        name
        for name in ops
        if name.endswith(("_forward", "_backward", "_step"))
        and getattr(torch.ops.fused_rnn, name) not in flop_registry
    }
    assert missing == {"scan_backward"}  # which is made of another


@pytest.mark.parametrize("first", ["fused_rnn", "torch.utils.flop_counter"])
def test_whichever_is_imported_first(first):
    code = (
        f"import {first}, sys\n"
        "import fused_rnn, torch\n"
        "print('torch.utils.flop_counter' in sys.modules)\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    fused_rnn.LSTM(7, 4)(torch.randn(5, 3, 7))\n"
        "print(counter.get_total_flops())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    counts = str(of_layer(4, T * N, N)[0])
    assert done.stdout.split() == [str(first != "fused_rnn"), counts], done.stderr

"""gates(): what the gates did."""

from __future__ import annotations

import pytest
import torch

from fused_rnn.cells import CELLS, State, Weights
from tests.layers.small import OPTIONS, Asking, H, I, N, T, example, make
from tests.twins import CONFIGURED, LAYERS, leaves, sequences, states


def gates_by_the_loop(module, x, hx, k, resets, length):
    """Return the gates of one row of x (T, I) in layer and direction k, one cell at a time."""
    cell = CELLS[module.mode.lower()]
    d = 2 if module.bidirectional else 1
    weights = list(module.all_weights[k])
    tail = weights.pop() if module.proj_size else None
    weights = Weights(*weights, *((None, None) if not module.bias else ()), tail)
    fresh = State(*(s[k] for s in tensors_of(module)), *(() if len(hx) > 1 else (None,)))
    state = State(*(s[k] for s in hx), *(() if len(hx) > 1 else (None,)))
    gates, outputs = [None] * length, [None] * length
    order = range(length) if k % d == 0 else range(length - 1, -1, -1)
    for t in order:
        border = t if k % d == 0 else t + 1
        if border < length and resets[border]:
            state = fresh
        gates[t] = cell.gates_of(x[t], state.h, weights)
        state = cell.step(x[t], state, weights)
        outputs[t] = state.h
    return gates, torch.stack(outputs)


def tensors_of(module):
    """Return h and c to begin anew with, without a batch dim."""
    if module.learn_initial_state:
        return [p[:, 0] for name, p in module.named_parameters() if name in ("h0", "c0")]
    return [torch.zeros_like(s) for s in leaves(states(module, None, torch.float64))]


@pytest.mark.parametrize("learned", [False, True], ids=["zeros", "learned"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_gates(layer, options, learned):
    module = make(layer, learn_initial_state=learned, **options)
    x, hx = example(module), states(module, N, torch.float64)
    lengths = [4, 5, 2]
    resets = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]]).bool()
    found = module.gates(
        x,
        hx,
        lengths=torch.tensor(lengths),
        resets=resets.t() if module.batch_first else resets,
    )
    x = x.transpose(0, 1) if module.batch_first else x
    d = 2 if module.bidirectional else 1
    for n, length in enumerate(lengths):
        below = x[:, n]
        for layer_index in range(module.num_layers):
            outputs = []
            for k in range(layer_index * d, layer_index * d + d):
                given = [s[:, n] for s in leaves(hx)]
                gates, y = gates_by_the_loop(module, below, given, k, resets[:, n], length)
                outputs.append(y)
                for name, values in found.items():
                    expected = torch.stack([getattr(g, name) for g in gates])
                    torch.testing.assert_close(values[:length, k, n], expected)
                    assert not values[length:, k, n].any()
            below = torch.cat(outputs, -1)


@pytest.mark.parametrize("layer", LAYERS)
def test_gates_with_resets_alone_are_those_of_whole_lengths(layer):
    module = make(layer, num_layers=2, bidirectional=True)
    x, hx = example(module), states(module, N, torch.float64)
    resets = torch.zeros(T, N, dtype=torch.bool)
    resets[[0, 0, 3], [0, 2, 1]] = True  # before the first step is where the reverse ends
    found = module.gates(x, hx, resets=resets)
    whole = module.gates(x, hx, resets=resets, lengths=torch.full((N,), T))
    torch.testing.assert_close(found, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        ("LSTM", ["input", "forget", "candidate", "output"]),
        ("GRU", ["reset", "update", "candidate"]),
        ("RNN", ["hidden"]),
    ],
)
def test_gates_by_name(layer, names):
    module = make(layer, num_layers=2, dropout=0.5)
    x = example(module)
    gates = module.gates(x)
    assert list(gates) == names
    assert all(g.shape == (T, 2, N, H) for g in gates.values())
    torch.testing.assert_close(module.eval().gates(x), gates, rtol=0, atol=0)  # without dropout
    alone = module.gates(x[:, 1])
    torch.testing.assert_close(alone, {name: g[:, :, 1] for name, g in gates.items()})
    if layer == "RNN":
        torch.testing.assert_close(gates["hidden"][:, -1], module(x)[0])
    assert torch.autograd.grad(sum(g.sum() for g in gates.values()), x)[0].any()
    with pytest.raises(TypeError, match="gates: input should be a tensor, got: PackedSequence"):
        module.gates(sequences((2, 1), I, enforce_sorted=True))


def test_a_compiled_model_looks_at_gates_outside_the_graph():
    module, x = make("LSTM", torch.float32, **OPTIONS), torch.randn(T, N, I)
    inspect = torch.compile(lambda x: module.gates(x)["forget"], backend="eager")
    torch.testing.assert_close(inspect(x), module.gates(x)["forget"])


@pytest.mark.parametrize("strict", [False, True])
def test_gates_cannot_be_exported(strict):
    model = Asking(make("GRU", torch.float32), lambda layer, x: layer.gates(x))
    with pytest.raises(Exception, match=r"gates, and .* cannot be exported") as caught:
        torch.export.export(model, (torch.randn(T, N, I),), strict=strict)
    assert strict or caught.type is RuntimeError

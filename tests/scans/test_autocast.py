"""Layers under autocast: which dtypes go in and out, and how near the numbers are."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from fused_rnn.cells import CELLS
from fused_rnn.graph import node
from tests.conftest import TOLERANCES
from tests.operands import SMALL, assert_near, make_inputs, needing, present
from tests.twins import CONFIGURED, LAYERS, first, leaves, sequences, states

HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, torch.bfloat16]


def made(layer, options, device="cpu", **kwargs):
    torch.manual_seed(5)
    return getattr(fused_rnn, layer)(3, 4, **options, **kwargs).to(device)


def cast(value, dtype):
    """Return states in another dtype."""
    return tuple(t.to(dtype) for t in value) if isinstance(value, tuple) else value.to(dtype)


@pytest.mark.parametrize("given", [None, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_output_in_its_dtype_and_states_as_given(layer, dtype, given, device):
    module = made(layer, {}, device)
    x = torch.randn(5, 2, 3, device=device, dtype=dtype)
    hx = None if given is None else cast(states(module, 2), given)
    with torch.autocast(device, torch.bfloat16):
        y, *final = leaves(module(x, hx))
    assert y.dtype is torch.bfloat16
    assert {s.dtype for s in final} == {given or torch.float32}


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_numbers_are_those_of_a_layer_of_that_dtype(layer, options, half, device):
    module, other = made(layer, options, device), made(layer, options, device).to(half)
    x = torch.randn(5, 2, 3, device=device)
    hx = states(module, 5 if module.batch_first else 2)
    with torch.autocast(device, half):
        found = leaves(module(x, hx))
    expected = leaves(other(x.to(half), cast(hx, half)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(half), b, rtol=0, atol=0)
    first(found[0]).float().pow(2).sum().backward()
    first(expected[0]).float().pow(2).sum().backward()
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert p.grad.dtype is torch.float32
        torch.testing.assert_close(p.grad.to(half), q.grad, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_near_the_reference_and_on_a_kernel(layer, device):
    module = made(layer, {"num_layers": 2, "bidirectional": True}, device)
    reference = made(layer, {"num_layers": 2, "bidirectional": True}, device).double()
    x = torch.randn(30, 3, 3, device=device)
    with fused_rnn.use_backend("reference"):
        expected = first(reference(x.double()))
    with torch.autocast(device, torch.bfloat16):
        rows = fused_rnn.explain(module, x)
        found = first(module(x))
    assert {row.backend for row in rows} == {"native"}
    assert_near(found, expected, 2 * TOLERANCES[torch.bfloat16].forward)
    found.float().sum().backward()
    expected.sum().backward()
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        assert_near(p.grad, q.grad, TOLERANCES[torch.bfloat16].gradient)


@pytest.mark.parametrize("layer", LAYERS)
def test_backward_inside_the_block(layer, device):
    gradients = []
    for inside in (False, True):
        module, x = made(layer, {}, device), torch.ones(5, 2, 3, device=device)
        with torch.autocast(device, torch.bfloat16):
            y = first(module(x))
        with torch.autocast(device, torch.bfloat16, enabled=inside):
            y.float().pow(2).sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_float64_stays_and_a_block_inside_may_switch_it_off(layer, device):
    module = made(layer, {}, device)
    x = torch.randn(5, 2, 3, device=device)
    expected = module(x)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        torch.testing.assert_close(leaves(module(x)), leaves(expected), rtol=0, atol=0)
    module, x = module.double(), x.double()
    with torch.autocast(device, torch.bfloat16):
        found = module(x)
    torch.testing.assert_close(leaves(found), leaves(module(x)))


@pytest.mark.parametrize("layer", LAYERS)
def test_packed_sequences(layer):
    module, packed = made(layer, {}), sequences((2, 4, 1), 3, enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16):
        y, *final = leaves(module(packed))
    half = PackedSequence(packed.data.bfloat16(), *packed[1:])
    expected, *_ = leaves(module.bfloat16()(half))
    assert [s.dtype for s in final] == [torch.float32] * len(final)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "call",
    [
        {"lengths": torch.tensor([2, 0])},
        {"resets": torch.tensor([[False, True]] * 5)},
        {"return_states": True},
    ],
    ids=lambda call: next(iter(call)),
)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_with_the_options_of_a_call(layer, call, learned):
    module = made(layer, {}, learn_initial_state=learned)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x, **call)
    expected = module.bfloat16()(x.bfloat16(), **call)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(a.bfloat16(), b, rtol=0.02, atol=0.02)
    assert first(found).dtype is torch.bfloat16


@pytest.mark.parametrize("name", CELLS)
def test_functions(name):
    function = getattr(fused_rnn.functional, name.partition("_")[0])
    options = ("relu",) if name == "rnn_relu" else ()
    rows = [[torch.randn(CELLS[name].gates * 4, 3), torch.randn(CELLS[name].gates * 4, 4)]]
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = leaves(function(x, None, rows, *options))
    half = [[w.bfloat16() for w in rows[0]]]
    expected = leaves(function(x.bfloat16(), None, half, *options))
    assert [t.dtype for t in found] == [torch.bfloat16] + [torch.float32] * (len(found) - 1)
    torch.testing.assert_close([t.bfloat16() for t in found], expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_in_a_graph(layer):
    torch.compiler.reset()
    module = made(layer, {"num_layers": 2})
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x, found = torch.randn(5, 2, 3), []
    for run in (module, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            results = leaves(run(x))
        gradients = torch.autograd.grad(
            [r.float().sum() for r in results], list(module.parameters())
        )
        found.append((results, gradients))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    torch.testing.assert_close(leaves(compiled(x)), leaves(module(x)))  # and without autocast


@pytest.mark.parametrize("layer", LAYERS)
def test_a_device_that_autocast_does_not_know(layer):
    module = made(layer, {}, "meta")
    with torch.autocast("cpu", torch.bfloat16):
        y, *_ = leaves(module(torch.randn(5, 2, 3, device="meta")))
    assert (y.shape, y.dtype, y.device.type) == ((5, 2, 4), torch.float32, "meta")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_node_takes_no_notice_of_it(backend):
    inputs, _ = make_inputs(("gru", False), SMALL, torch.float32)

    def run():
        operands = needing(inputs)
        y, h_n, *_ = node.scan(backend, "gru", operands, None, False, True)
        of = present(operands)
        return y, h_n, *torch.autograd.grad(y.sum() + h_n.sum(), of, create_graph=True)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

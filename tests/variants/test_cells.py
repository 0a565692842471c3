"""Cells with options: each is one step of the layer with the same ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import fused_rnn
from tests.variants.by_hand import by_hand
from tests.variants.test_variants import OPTIONS, H, I, N, T, make

# A cell has no projection.
CELLS = {
    layer: {k: v for k, v in of_layer.items() if k != "proj_clip"}
    for layer, of_layer in OPTIONS.items()
}
SINGLES = [(layer, name) for layer, options in CELLS.items() for name in options]


def twins(layer, names, **more):
    """Return a layer, a cell with its weights, and their options."""
    module, options = make(layer, names, **more)
    cell = getattr(fused_rnn, f"{layer}Cell")(I, H, **options, **more).double()
    state = {name.removesuffix("_l0"): value for name, value in module.state_dict().items()}
    assert list(cell.state_dict()) == list(state)
    cell.load_state_dict(state)
    return module, cell, options


def looped(cell, x, **given):
    """Return the outputs (T, N, H) of a loop of steps, and the last state."""
    state, outputs = None, []
    for row in x:
        state = cell(row, state, **given)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state


@pytest.mark.parametrize(("layer", "name"), SINGLES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_loop_is_the_layer_by_hand(layer, name, bias):
    module, cell, options = twins(layer, [name], bias=bias)
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    given = {}
    if name == "recurrent_dropout":  # one mask for the sequence, as the layer draws it
        torch.manual_seed(6)
        given["mask"] = cell.recurrent_mask(N)
        torch.manual_seed(6)
    else:
        module.eval()
        cell.eval()  # zoneout's expectation: masks are new at each step
    expected = by_hand(module, options, x)[0]
    found, _ = looped(cell, x, **given)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad(y, [x, *of.parameters()], weight)
        for y, of in ((found, cell), (expected, module))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layer", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_a_step_is_a_layer_of_one_step(layer, training):
    module, cell, _ = twins(layer, CELLS[layer])
    x, h, c = (torch.randn(N, width, dtype=torch.float64) for width in (I, H, H))
    module.train(training)
    cell.train(training)
    state = (h, c) if layer == "LSTM" else h
    of_layer = (h[None], c[None]) if layer == "LSTM" else h[None]
    torch.manual_seed(7)
    mask = cell.recurrent_mask(N)
    found = cell(x, state, mask=mask)
    torch.manual_seed(7)
    _, expected = module(x[None], of_layer)
    torch.testing.assert_close(found, torch.utils._pytree.tree_map(lambda t: t[0], expected))
    alone = mask if mask is None else mask[0]
    first = torch.utils._pytree.tree_map(lambda t: t[0], state)
    if not training:
        one = cell(x[0], first, mask=alone)
        torch.testing.assert_close(one, torch.utils._pytree.tree_map(lambda t: t[0], found))


@pytest.mark.parametrize("layer", CELLS)
def test_steps_of_a_layer_with_a_mask(layer):
    module, _ = make(layer, ["recurrent_dropout", "layer_norm"], num_layers=2)
    x = torch.randn(T, N, I, dtype=torch.float64)
    torch.manual_seed(8)
    expected, last = module(x)
    torch.manual_seed(8)
    mask = module.recurrent_mask(N)
    assert mask.shape == (2, N, H)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    state, outputs = None, []
    for row in x:
        output, state = module.step(row, state, mask=mask)
        outputs.append(output)
    torch.testing.assert_close((torch.stack(outputs), state), (expected, last))
    one, _ = module.step(x[0, 1], mask=mask[:, 1:2])
    torch.testing.assert_close(one, expected[0, 1])
    assert module.eval().recurrent_mask(N) is None


@pytest.mark.parametrize("layer", CELLS)
def test_graphs_and_transforms(layer):
    names = [name for name in CELLS[layer] if name != "recurrent_dropout"]
    _, cell, _ = twins(layer, names)
    cell.eval()
    x, h, c = (torch.randn(N, width, dtype=torch.float64) for width in (I, H, H))
    state = (h, c) if layer == "LSTM" else h
    expected = cell(x, state)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, state), expected)
    parameters = {name: p.detach() for name, p in cell.named_parameters()}

    def loss(parameters, x, state):
        h = torch.func.functional_call(cell, parameters, (x, state))
        return (h[0] if isinstance(h, tuple) else h).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, state)
    h = expected[0] if isinstance(expected, tuple) else expected
    gradients = torch.autograd.grad(h.square().sum(), list(cell.parameters()))
    for found, gradient in zip(per_sample.values(), gradients, strict=True):
        torch.testing.assert_close(found.sum(0), gradient)


@pytest.mark.parametrize("layer", CELLS)
def test_half_precision(layer):
    _, cell, _ = twins(layer, CELLS[layer])
    cell.eval()
    x = torch.randn(N, I, dtype=torch.float64)
    expected = cell(x)
    found = copy.deepcopy(cell).bfloat16()(x.bfloat16())
    as_double = torch.utils._pytree.tree_map(lambda t: t.double(), found)
    torch.testing.assert_close(as_double, expected, rtol=0, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        cast = copy.deepcopy(cell).float()(x.float())
    as_double = torch.utils._pytree.tree_map(lambda t: t.double(), cast)
    torch.testing.assert_close(as_double, expected, rtol=0, atol=0.05)


def test_names_and_copies():
    cell = fused_rnn.LSTMCell(3, 4, layer_norm=True, use_peepholes=True, zoneout=(0.1, 0.2))
    assert repr(cell) == "LSTMCell(3, 4, zoneout=(0.1, 0.2), layer_norm=True, use_peepholes=True)"
    own = ["ln_ih", "ln_hh", "ln_c", "ln_c_bias", "peephole"]
    assert list(cell.state_dict())[4:] == own
    assert cell.ln_hh.eq(1).all()
    assert cell.ln_c_bias.eq(0).all()
    x = torch.randn(2, 3)
    torch.manual_seed(0)
    expected = cell(x)
    for again in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        torch.manual_seed(0)
        torch.testing.assert_close(again(x), expected)
    assert "torch.nn has no zoneout" in str(reverted(cell))
    with pytest.raises(RuntimeError, match=r"torch\.nn's cell, which has no zoneout"):
        torch.jit.script(cell)
    assert "zoneout" not in repr(fused_rnn.LSTMCell(3, 4))


def reverted(cell):
    """Return what is said of a cell that is to be torch.nn's."""
    swaps = []
    fused_rnn.revert(cell, report=swaps.append)
    assert type(cell) is fused_rnn.LSTMCell
    return swaps[0]


def test_options_that_are_off_change_nothing():
    torch.manual_seed(1)
    plain = fused_rnn.GRUCell(3, 4)
    torch.manual_seed(1)
    zoned = fused_rnn.GRUCell(3, 4, zoneout=0.1)
    torch.testing.assert_close(zoned.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert plain._variants is None


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        ("LSTMCell", {"zoneout": 1.5}, ValueError, r"zoneout should be a probability in \[0, 1\)"),
        ("LSTMCell", {"num_heads": 3}, ValueError, "num_heads should divide hidden_size, 4"),
        ("LSTMCell", {"proj_clip": 1.0}, TypeError, "proj_clip"),
        ("LSTMCell", {"layer_norm": "yes"}, TypeError, "layer_norm should be of type bool"),
        ("GRUCell", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout of a GRUCell, which has no c"),
        ("RNNCell", {"norm_eps": -1.0, "layer_norm": True}, ValueError, "norm_eps should be posi"),
    ],
)
def test_errors_at_construction(cell, options, error, message):
    with pytest.raises(error, match=message):
        getattr(fused_rnn, cell)(I, H, **options)


def test_errors_of_calls():
    cell, x = fused_rnn.LSTMCell(3, 4, layer_norm=True), torch.randn(2, 3)
    h = torch.randn(2, 4)
    for arguments, error, message in (
        ((x, h), TypeError, "Expected hx to be a pair of tensors, got Tensor"),
        ((x, (h, None)), TypeError, "hx to be a pair of tensors, got None in it"),
        ((x, (h[:1], h)), RuntimeError, "the initial h has shape"),
        ((x[:, :2], None), RuntimeError, "the input has 2 features instead of 3, and torch.nn's"),
        ((x.double(), None), RuntimeError, "the input is torch.float64 on cpu"),
        ((x[0], (h, h)), ValueError, "Expected the hidden state to be 1D as the input is"),
        ((x[None], None), ValueError, "Expected input to be 1D or 2D, got 3D instead"),
        (("x", None), TypeError, "input should be a tensor, got: str"),
    ):
        with pytest.raises(error, match=message):
            cell(*arguments)
    dropping, mask = fused_rnn.GRUCell(3, 4, recurrent_dropout=0.5), torch.ones(2, 4)
    with pytest.raises(RuntimeError, match=r"one mask for all steps .* recurrent_mask\(\) draws"):
        dropping(x)
    with pytest.raises(ValueError, match=r"mask should have shape \(2, 4\), got: \(1, 4\)"):
        dropping(x, mask=mask[:1])
    with pytest.raises(TypeError, match="mask should be a tensor, got: float"):
        dropping(x, mask=1.0)
    with pytest.raises(ValueError, match="Expected mask to be 1D or 2D, got 3D instead"):
        dropping(x, mask=mask[None])
    with pytest.raises(ValueError, match="Expected mask to be 2D as the input is, got 1D instead"):
        dropping(x, mask=mask[0])
    with pytest.raises(RuntimeError, match="mask should be on cpu, got one on meta"):
        dropping(x, mask=mask.to("meta"))
    with pytest.raises(RuntimeError, match="mask has no gradient"):
        dropping(x, mask=mask.clone().requires_grad_())
    for without in (dropping.eval(), fused_rnn.GRUCell(3, 4)):
        with pytest.raises(RuntimeError, match="mask goes with recurrent_dropout"):
            without(x, mask=mask)
    with pytest.raises(RuntimeError, match="mask goes with recurrent_dropout"):
        fused_rnn.GRU(3, 4).step(x, mask=mask[None])
    with pytest.raises(RuntimeError, match=r"torch\.nn's own cell has no recurrent_dropout"):
        torch.jit.trace(dropping, x)

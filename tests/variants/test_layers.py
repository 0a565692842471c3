"""What is around variants: errors, names, state_dicts, graphs, autocast, what torch.nn lacks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.backends import VariantInputs
from fused_rnn.variants import variant_of
from tests.twins import leaves
from tests.variants.test_variants import OPTIONS, H, I, N, T, cuts, make

SINGLES = [(layer, name) for layer, options in OPTIONS.items() for name in options]


@pytest.mark.parametrize(
    ("layer", "options", "error", "message"),
    [
        ("LSTM", {"zoneout": 1.0}, ValueError, r"zoneout .* in \[0, 1\), got: 1.0"),
        ("LSTM", {"zoneout": (0.1, -0.1)}, ValueError, r"zoneout .* in \[0, 1\), got: -0.1"),
        ("LSTM", {"zoneout": (0.1,)}, ValueError, "zoneout should be p, or p_h and p_c, got: 1"),
        ("LSTM", {"recurrent_dropout": "a"}, TypeError, "recurrent_dropout should be a number"),
        ("LSTM", {"recurrent_dropout": 1}, ValueError, "recurrent_dropout should be a prob"),
        ("LSTM", {"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
        ("LSTM", {"layer_norm": True, "norm_eps": 0}, ValueError, "norm_eps should be positive"),
        ("LSTM", {"reset_after": False}, ValueError, "LSTM has no option reset_after"),
        ("LSTM", {"num_heads": 3}, ValueError, "num_heads should divide hidden_size, 4"),
        ("LSTM", {"num_heads": 0}, ValueError, "num_heads should be positive, got: 0"),
        ("LSTM", {"num_heads": 2.0}, TypeError, "num_heads should be an integer, got: float"),
        ("LSTM", {"proj_clip": 1.0}, ValueError, "proj_clip clips a projection"),
        ("LSTM", {"cell_clip": -1.0}, ValueError, "cell_clip should be positive"),
        ("LSTM", {"activation": "gelu"}, ValueError, "activation should be 'tanh' or 'relu'"),
        ("GRU", {"recurrent_activation": "relu"}, ValueError, "should be 'sigmoid', 'hard_sig"),
        ("GRU", {"use_peepholes": True}, ValueError, "GRU has no option use_peepholes"),
        ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "zoneout of a GRU, which has no c"),
        ("RNN", {"activation": "relu"}, ValueError, "RNN has no option activation: its activa"),
        ("RNN", {"cell_clip": 1.0}, ValueError, "RNN has no option cell_clip"),
    ],
)
def test_errors_at_construction(layer, options, error, message):
    with pytest.raises(error, match=message):
        getattr(fused_rnn, layer)(I, H, **options)


def test_names():
    module = fused_rnn.LSTM(
        3, 4, 2, bidirectional=True, layer_norm=True, use_peepholes=True, zoneout=(0.1, 0.2)
    )
    assert repr(module) == (
        "LSTM(3, 4, num_layers=2, bidirectional=True, zoneout=(0.1, 0.2), layer_norm=True, "
        "use_peepholes=True)"
    )
    names = {"ln_ih", "ln_hh", "ln_c", "ln_c_bias", "peephole"}
    for suffix in ("_l0", "_l1", "_l0_reverse", "_l1_reverse"):
        assert {f"{name}{suffix}" for name in names} <= set(module.state_dict())
    assert module.ln_hh_l1_reverse.eq(1).all()
    assert module.ln_c_bias_l0.eq(0).all()
    for name in ("lstm;zoneout=0.1,0.25;layer_norm=1e-05;reset_after=0", "gru;num_heads=4"):
        assert variant_of(name).name() == name
    assert variant_of("gru") is None
    heads = fused_rnn.GRU(3, 8, num_heads=4)
    assert heads.weight_hh_l0.shape == (4, 6, 2)


@pytest.mark.parametrize("layer", OPTIONS)
def test_off_is_the_plain_layer(layer):
    off = {"zoneout": 0.0, "recurrent_dropout": 0, "layer_norm": False, "num_heads": 1}
    torch.manual_seed(0)
    plain = getattr(fused_rnn, layer)(I, H)
    torch.manual_seed(0)
    module = getattr(fused_rnn, layer)(I, H, **off)
    assert repr(module) == repr(plain)
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert fused_rnn.explain(module, torch.randn(T, N, I))[0].backend != "reference"


@pytest.mark.parametrize("layer", OPTIONS)
def test_recurrent_dropout_is_the_plain_layer_in_eval(layer):
    module = getattr(fused_rnn, layer)(I, H, recurrent_dropout=0.5).eval()
    plain = getattr(fused_rnn, layer)(I, H).eval()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(T, N, I)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)
    rows = [fused_rnn.explain(m, x)[0].backend for m in (module, plain)]
    assert rows[0] == rows[1]


def test_state_dicts():
    module, plain = fused_rnn.LSTM(I, H, layer_norm=True), fused_rnn.LSTM(I, H)
    other = fused_rnn.LSTM(I, H, layer_norm=True)
    other.load_state_dict(module.state_dict())
    x = torch.randn(T, N, I)
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    with (
        pytest.warns(UserWarning, match="options .ln_ih_l0.*: layer_norm=True, say"),
        pytest.raises(RuntimeError, match="Unexpected key"),
    ):
        plain.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*ln_ih_l0"):
        module.load_state_dict(plain.state_dict())


@pytest.mark.filterwarnings("error")
def test_names_of_other_modules_are_not_a_layers():
    model = nn.ModuleDict({"lstm": fused_rnn.LSTM(I, H), "ln": nn.LayerNorm(H)})
    state = model.state_dict() | {"ln_f.weight": torch.ones(3), "lstm.ln_f.weight": torch.ones(3)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert unexpected == ["ln_f.weight", "lstm.ln_f.weight"]
    alone = fused_rnn.LSTM(I, H)
    alone.load_state_dict(alone.state_dict() | {"ln_f.weight": torch.ones(3)}, strict=False)


@pytest.mark.parametrize("option", [{"recurrent_dropout": 0.3}, {"zoneout": 0.1}], ids=str)
def test_weights_for_a_seed_are_the_plain_layers(option):
    states = []
    for options in ({}, option):
        torch.manual_seed(0)
        states.append(fused_rnn.LSTM(I, H, **options).state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("layer", OPTIONS)
def test_copies(layer):
    module, _ = make(layer, OPTIONS[layer])
    x = torch.randn(T, N, I, dtype=torch.float64)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        torch.testing.assert_close(other.eval()(x), module.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("layer", OPTIONS)
def test_batch_first_and_unbatched(layer):
    module, _ = make(layer, OPTIONS[layer], num_layers=2)
    turned, _ = make(layer, OPTIONS[layer], num_layers=2, batch_first=True)
    turned.load_state_dict(module.state_dict())
    module.eval()
    turned.eval()
    x = torch.randn(T, N, I, dtype=torch.float64)
    y = module(x)[0]
    torch.testing.assert_close(turned(x.transpose(0, 1))[0].transpose(0, 1), y)
    for each in (module, turned):
        torch.testing.assert_close(each(x[:, 1])[0], y[:, 1])


def test_what_torch_has_no_place_for():
    model = nn.Sequential(fused_rnn.LSTM(I, H, layer_norm=True, zoneout=0.1))
    said = []
    fused_rnn.revert(model, report=said.append)
    assert str(said[0]) == (
        "0: fused_rnn.LSTM was left alone: torch.nn has no zoneout and no layer_norm."
    )
    x = torch.randn(T, N, I)
    with pytest.raises(RuntimeError, match="no zoneout and no layer_norm"):
        torch.jit.script(model[0])
    with (
        fused_rnn.use_backend("torch"),
        pytest.raises(RuntimeError, match=r"'torch' was asked for .* no zoneout and no layer_norm"),
    ):
        model[0](x)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        model[0](torch.randn(T, N, I + 1))
    with pytest.raises(RuntimeError, match=r"torch.nn's own forward.* has no zoneout and no layer"):
        model[0](torch.randn(T, N, I).as_subclass(Sub))


class Sub(torch.Tensor):
    """A tensor that may mean anything."""


@pytest.mark.parametrize(("layer", "name"), SINGLES)
def test_compiled(layer, name):
    module, _ = make(layer, [name], bidirectional=True)
    module.eval()
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    lengths, resets = cuts()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for given in ({}, {"lengths": lengths, "resets": resets, "return_states": True}):
        found = []
        for run in (module, compiled):
            results = leaves(run(x, **given))
            loss = sum(t.pow(2).sum() for t in results)
            found.append([*results, *torch.autograd.grad(loss, [x, *module.parameters()])])
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("layer", OPTIONS)
def test_compiled_in_training(layer):
    module, _ = make(layer, ["zoneout", "recurrent_dropout"])
    x = torch.randn(T, N, I, dtype=torch.float64)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = []
    for run in (module, compiled, compiled):
        torch.manual_seed(6)
        found.append(run(x))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert not torch.equal(compiled(x)[0], found[0][0])


@pytest.mark.parametrize("layer", OPTIONS)
def test_exported(layer):
    module, _ = make(layer, OPTIONS[layer])
    x = torch.randn(T, N, I, dtype=torch.float64)
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    longer = torch.randn(T + 3, N, I, dtype=torch.float64)
    for given in (x, longer):
        torch.testing.assert_close(program.module()(given), module(given))


@pytest.mark.parametrize("layer", OPTIONS)
def test_autocast(layer):
    module, _ = make(layer, OPTIONS[layer])
    module.float().eval()
    x = torch.randn(T, N, I)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = module(x)
    assert y.dtype == torch.bfloat16
    assert leaves(state)[0].dtype == torch.float32
    torch.testing.assert_close(y.float(), module(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layer", OPTIONS)
@pytest.mark.parametrize("backend", [name for name in ("reference", "native")])
def test_opcheck(layer, backend):
    module, _ = make(layer, OPTIONS[layer])
    if (
        backend == "native"
        and "native" in fused_rnn.explain(module, torch.randn(1, 1, I).double())[0].refusals
    ):
        pytest.skip("native refuses it")
    with torch.random.fork_rng():
        inputs = operands_of(module)
    op = torch.ops.fused_rnn.variant_forward.default
    args = backend, module._cell_name(), *inputs, None, None, None, False, False, True
    torch.library.opcheck(op, args)


def operands_of(module):
    """Return the operands of a call's first scan."""
    seen = []
    from fused_rnn.scans import stack

    def scan(backend, cell, inputs, batch_sizes, reverse):
        seen.append(inputs)
        raise StopIteration

    x = torch.randn(T, N, I, dtype=torch.float64)
    rows = module._weights()
    with pytest.raises(StopIteration):
        stack.run_stack(module._sizes(), x, None, None, rows, None, N, 0.0, True, ["a"], scan)
    assert isinstance(seen[0], VariantInputs)
    return [
        t if t is None or t.dtype == torch.int64 else t.detach().requires_grad_() for t in seen[0]
    ]


@pytest.mark.parametrize("layer", OPTIONS)
def test_vmap(layer):
    module, _ = make(layer, [n for n in OPTIONS[layer] if n != "recurrent_dropout"])
    module.eval()
    x = torch.randn(2, T, N, I, dtype=torch.float64)
    found = torch.vmap(lambda x: module(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([module(each)[0] for each in x]))


def test_onnx_has_no_such_nodes():
    module, _ = make("GRU", ["layer_norm"])
    x = torch.randn(T, N, I, dtype=torch.float64)
    with pytest.raises(Exception, match="ONNX has no node with layer_norm"):
        torch.onnx.export(module.eval(), (x,), dynamo=True)

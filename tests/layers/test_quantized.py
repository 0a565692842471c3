"""Layers with int8 and bfloat16 weights are called as the float ones are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_sequence

import fused_rnn
from tests.layers.small import H, I, N, T, make
from tests.twins import CONFIGURED, leaves, states

DTYPES = [torch.int8, torch.bfloat16]
LENGTHS = [T, 2, 4]


@pytest.fixture(params=DTYPES, ids=["int8", "bfloat16"])
def stored(request):
    """How the weights are stored."""
    return request.param


@pytest.fixture(params=[None, "reference"], ids=["automatic", "reference"])
def backend(request):
    """What runs: kernels where there are some, or the reference."""
    with fused_rnn.use_backend(request.param):
        yield request.param


def quantized(layer, stored, **options):
    torch.manual_seed(3)
    module = make(layer, torch.float32, **options)
    return fused_rnn.quantize(module, dtype=stored).eval()


def close(found, expected, atol=2e-6):
    pair = (v if isinstance(v, list) else leaves(v) for v in (found, expected))
    torch.testing.assert_close(*pair, rtol=0, atol=atol)


def one_by_one(module, sequences, hx=None):
    """Return outputs and final states of sequences that run alone, unbatched."""
    outputs, finals = [], []
    for n, x in enumerate(sequences):
        given = None if hx is None else tuple(s[:, n] for s in leaves(hx))
        y, state = module(x, given if given is None or len(given) > 1 else given[0])
        outputs.append(y)
        finals.append(leaves(state))
    return outputs, [torch.stack(s, 1) for s in zip(*finals, strict=True)]


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_near_the_float_layer(layer, options, given, stored, backend):
    torch.manual_seed(3)
    module = make(layer, torch.float32, **options).eval()
    x = torch.randn((N, T, I) if module.batch_first else (T, N, I))
    hx = states(module, N, torch.float32) if given else None
    with torch.no_grad():
        expected = leaves(module(x, hx))
        found = leaves(fused_rnn.quantize(module, dtype=stored)(x, hx))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).norm() < 0.03 * b.norm()
        assert not torch.equal(a, b)


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_packed_padded_and_alone_are_the_same(layer, options, stored, backend):
    module = quantized(layer, stored, **options)
    sequences = [torch.randn(length, I) for length in LENGTHS]
    hx = states(module, N, torch.float32)
    outputs, finals = one_by_one(module, sequences, hx)
    y, state = module(pack_sequence(sequences, enforce_sorted=False), hx)
    close(state, finals)
    close(y.data, pack_sequence(outputs, enforce_sorted=False).data)
    padded = pad_sequence(sequences, module.batch_first, padding_value=torch.nan)
    y, state = module(padded, hx, lengths=torch.tensor(LENGTHS))
    close(state, finals)
    close(y, pad_sequence(outputs, module.batch_first))


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_resets_and_the_states_of_every_step(layer, options, stored, backend):
    module = quantized(layer, stored, **options)
    x = torch.randn(T, 1, I)
    resets = torch.tensor([False, False, True, False, False]).unsqueeze(1)
    turned = (x.transpose(0, 1), resets.t()) if module.batch_first else (x, resets)
    y, state, steps = module(turned[0], resets=turned[1], return_states=True)
    y = y.transpose(0, 1) if module.batch_first else y
    first, second = module(x[:2, 0]), module(x[2:, 0])
    if module.bidirectional and module.num_layers == 1:
        close(y[:, 0], torch.cat([first[0], second[0]]))
    elif not module.bidirectional:
        close(y[:, 0], torch.cat([first[0], second[0]]))
        close([s.squeeze(1) for s in leaves(state)], leaves(second[1]))
        for s, final in zip(leaves(steps), leaves(first[1]), strict=True):
            close(s[1, :, 0], final)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize(
    ("layer", "options"), [c for c in CONFIGURED if not c.values[1].get("bidirectional")]
)
def test_step_by_step_is_the_sequence(layer, options, batched, stored, backend):
    module = quantized(layer, stored, **options)
    x = torch.randn(T, N, I) if batched else torch.randn(T, I)
    y, after = module(x.transpose(0, 1) if batched and module.batch_first else x)
    y = y.transpose(0, 1) if batched and module.batch_first else y
    state, outputs = None, []
    for step in x:
        output, state = module.step(step, state)
        outputs.append(output)
    close(torch.stack(outputs), y)
    close(state, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
def test_half_types_go_in_and_come_out(layer, dtype, stored):
    module = quantized(layer, stored)
    x = torch.randn(T, N, I).to(dtype)
    found = module(x, return_states=True)
    assert {t.dtype for t in leaves(found)} == {dtype}
    wide = [t.to(dtype) for t in leaves(module(x.float(), return_states=True))]
    torch.testing.assert_close(leaves(found), wide, rtol=0, atol=0)


def test_a_models_dtype_leaves_scales_and_biases_alone(stored):
    module = quantized("LSTM", stored)
    before = {name: b.clone() for name, b in module.named_buffers()}
    module.half()
    for name, b in module.named_buffers():
        assert b.dtype == before[name].dtype
        assert torch.equal(b, before[name])


def test_a_learned_initial_state_begins():
    torch.manual_seed(3)
    module = make("LSTM", torch.float32, learn_initial_state=True)
    h0, c0 = (s.detach().expand(-1, N, -1) for s in (module.h0, module.c0))
    fused_rnn.quantize(module)
    x = torch.randn(T, N, I)
    close(module(x), module(x, (h0, c0)))


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_pickled_and_loaded(layer, options, stored):
    module = quantized(layer, stored, **options)
    other = fused_rnn.quantize(getattr(fused_rnn, layer)(I, H, **options), dtype=stored)
    other.load_state_dict(module.state_dict())
    x = torch.randn((N, T, I) if module.batch_first else (T, N, I))
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), other):
        assert type(twin) is type(module)
        close(twin(x), module(x), atol=0)


def test_a_state_dict_of_the_other_kind_is_refused(stored):
    module = quantized("GRU", stored)
    plain = fused_rnn.GRU(I, H)
    for a, b in ((module, plain), (plain, module)):
        with pytest.raises(RuntimeError, match=r"(?s)Missing key.*weight_ih_l0.*Unexpected key"):
            a.load_state_dict(b.state_dict())


def test_gradients_are_refused():
    module = quantized("LSTM", torch.int8)
    x = torch.randn(T, N, I, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"QuantizedLSTM: .* is for inference.*no_grad"):
        module(x)
    h = torch.randn(1, N, H, requires_grad=True)
    with pytest.raises(RuntimeError, match="is for inference"):
        module(x.detach(), (h, h))
    with torch.no_grad():
        module(x)
    assert list(module.parameters()) == []


def test_tangents_are_refused(stored):
    module, x = quantized("LSTM", stored), torch.randn(T, N, I)

    def tangent(x):
        return torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))[1]

    with pytest.raises(RuntimeError, match="for inference, and forward-mode AD is active"):
        tangent(x)
    with pytest.raises(RuntimeError, match="forward-mode AD is active"):
        torch.func.vmap(tangent)(x.unsqueeze(0))


@pytest.mark.parametrize("of_state", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16])
def test_types_under_autocast_are_a_float_layers(stored, of_x, of_state):
    module, plain = quantized("LSTM", stored), fused_rnn.LSTM(I, H)
    x = torch.randn(T, N, I, dtype=of_x)
    state = of_state and (torch.randn(1, N, H, dtype=of_state),) * 2
    with torch.no_grad(), torch.autocast("cpu"):
        found, expected = (leaves(m(x, state)) for m in (module, plain))
    assert [t.dtype for t in found] == [t.dtype for t in expected]


def test_it_has_one_kernel_to_be_tuned(stored):
    with torch.no_grad():
        tuning = fused_rnn.tune(quantized("LSTM", stored), torch.randn(T, N, I))
    assert [measured.trials for measured in tuning] == [[]]


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(T, N, I + 1), f"{I + 1} features instead of {I}"),
        (torch.zeros(T, N, I, dtype=torch.float64), r"the input is torch\.float64"),
        (torch.zeros(0, N, I), "the sequence is empty"),
        (torch.zeros(T), "not tensors of the right ranks"),
        (torch.zeros(T, N, I, device="meta"), "the input is on meta, the weights are on cpu"),
    ],
)
def test_operands_that_do_not_fit(x, match):
    with pytest.raises(RuntimeError, match=f"QuantizedGRU: .*{match}"):
        quantized("GRU", torch.int8)(x)


def test_what_only_float_layers_do_is_refused():
    module = quantized("LSTM", torch.int8)
    x = torch.zeros(T, N, I)
    with pytest.raises(RuntimeError, match="dequantize"):
        module.gates(x)
    with pytest.raises(RuntimeError, match="no weights to draw anew"):
        module.reset_parameters()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script"):
        torch.jit.script(module)
    with pytest.raises(TypeError, match="made of a float one"):
        fused_rnn.QuantizedLSTM(I, H)
    with fused_rnn.use_backend("torch"), pytest.raises(RuntimeError, match="'torch' has no layers"):
        module(x)


def test_a_batch_without_sequences():
    y, _ = quantized("LSTM", torch.int8)(torch.zeros(T, 0, I))
    assert y.shape == (T, 0, H)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_a_narrow_input_keeps_small_elements_beside_large_ones(layer, bidirectional, backend):
    torch.manual_seed(3)
    module = getattr(fused_rnn, layer)(4, 16, 2, bidirectional=bidirectional).eval()
    with torch.no_grad():
        module.weight_ih_l0[:, 0] = 0
        module.weight_ih_l0[:, 1:] *= 1e4
        if bidirectional:
            module.weight_ih_l0_reverse[:, 0] = 0
            module.weight_ih_l0_reverse[:, 1:] *= 1e4
    x = torch.randn(T, N, 4) * torch.tensor([1, 1e-4, 1e-4, 1e-4])
    with torch.no_grad():
        expected = leaves(module(x))
    fused_rnn.quantize(module)
    for a, b in zip(leaves(module(x)), expected, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()
    stored = {name: b.dtype for name, b in module.named_buffers()}
    assert stored["weight_ih_l0_bfloat16"] == torch.bfloat16
    assert stored["weight_hh_l0_int8"] == stored["weight_ih_l1_int8"] == torch.int8
    assert "weight_ih_l0_scale" not in stored


def test_a_narrow_layer_steps_pickles_and_loads(backend):
    torch.manual_seed(3)
    module, other = (fused_rnn.quantize(fused_rnn.LSTM(4, 16, 2)) for _ in range(2))
    other.load_state_dict(module.state_dict())
    x = torch.randn(T, N, 4)
    y, after = module(x)
    for twin in (pickle.loads(pickle.dumps(module)), other):
        close(twin(x), (y, after), atol=0)
    state = None
    for step, expected in zip(x, y, strict=True):
        output, state = module.step(step, state)
        close(output, expected)
    close(state, after)


def test_a_narrow_layer_is_undone():
    layer = torch.nn.GRU(4, 16)
    before = copy.deepcopy(layer)
    fused_rnn.dequantize(fused_rnn.quantize(layer, keep=True))
    assert list(layer.state_dict()) == list(before.state_dict())
    x = torch.randn(T, N, 4)
    close(layer(x), before(x), atol=0)


def test_a_weight_cannot_be_assigned(stored):
    module = quantized("LSTM", stored)
    for name in ("weight_hh_l0", "bias_ih_l0"):
        with pytest.raises(AttributeError, match=f"{name} is quantized, and cannot be assigned"):
            setattr(module, name, torch.nn.Parameter(torch.zeros(4 * H, H)))
    with pytest.raises(AttributeError, match="cannot be assigned"):
        module.weight_hh_l0 = torch.zeros(4 * H, H)
    with pytest.raises(AttributeError, match="cannot be assigned"):
        module.weight_hh_l0 = None
    x = torch.randn(T, N, I)
    y, _ = module(x)
    module.bias_ih_l0 = torch.ones(4 * H)
    assert not torch.equal(module(x)[0], y)

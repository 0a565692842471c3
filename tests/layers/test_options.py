"""recompute, learn_initial_state, return_states and gates."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

import fused_rnn
from fused_rnn.backends import native, reference
from fused_rnn.cells import CELLS, State, Weights
from fused_rnn.convert import reason_to_leave
from fused_rnn.scans import stack
from tests.twins import CONFIGURED, LAYERS, leaves, sequences, states

T, N, I, H = 5, 3, 3, 4  # noqa: E741
OPTIONS = {"learn_initial_state": True, "recompute": True}


def make(layer, dtype=torch.float64, **options):
    """Return a layer with random parameters, a learned initial state included."""
    module = getattr(fused_rnn, layer)(I, H, **options).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    return module


def example(module, dtype=torch.float64):
    shape = (N, T, I) if module.batch_first else (T, N, I)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def forward_sum(module, x, **options):
    return sum(t.pow(2).sum() for t in leaves(module(x, **options)))


# --- recompute ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "lengths"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_recomputed_gradients_are_bit_equal(layer, options, ragged, dtype):
    keeping = make(layer, dtype, **options)
    recomputing = copy.deepcopy(keeping)
    recomputing.recompute = True
    x = example(keeping, dtype)
    given = {"lengths": torch.tensor([2, 5, 4])} if ragged else {}
    found = []
    for module in (keeping, recomputing):
        torch.manual_seed(1)  # dropout's masks
        total = forward_sum(module, x, **given)
        found.append([total, *torch.autograd.grad(total, [x, *module.parameters()])])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_recomputing_keeps_nothing_but_operands_and_outputs():
    module = make("LSTM", torch.float32, num_layers=2, dropout=0.5)

    def kept_bytes():
        storages = {}

        def keep(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            output = module(torch.randn(64, 8, I))[0]
        assert output.requires_grad
        return sum(storages.values())

    before = kept_bytes()
    module.recompute = True
    kept, step = kept_bytes(), 64 * 8 * 4
    weights = sum(p.numel() * 4 for p in module.parameters())
    # x of both layers, the dropped output and its mask, y of both layers, final states.
    assert kept <= weights + step * (I + 4 * H) + 20 * 8 * H * 4
    assert before > kept + step * 2 * 4 * H


@pytest.mark.skipif(native.available() is not None, reason="there are no kernels to run again")
def test_the_forward_of_backward_is_one_in_training_mode(monkeypatch):
    seen = []
    run = native.forward

    def watched(*args):
        seen.append(args[-1])
        return run(*args)

    monkeypatch.setattr(native, "forward", watched)
    module = make("GRU", recompute=True, num_layers=2)
    forward_sum(module, example(module)).backward()
    assert seen == [False, False, True, True]


def test_recomputing_within_other_things():
    module = make("GRU", recompute=True)
    x = example(module)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)
    total = forward_sum(module, x)
    first = torch.autograd.grad(total, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, x), first, rtol=0, atol=0)
    with torch.autocast("cpu"):
        (inside,) = torch.autograd.grad(forward_sum(module, x), x)
    assert inside.dtype == torch.float64


def test_recompute_of_what_only_torch_runs():
    """No option that torch.nn's own forward would have to know of."""
    module = make("LSTM", torch.complex64, recompute=True)
    y, _ = module(torch.randn(T, N, I, dtype=torch.complex64))
    assert y.requires_grad


# --- learn_initial_state ---


@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed", "step"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_learned_state_is_where_a_call_begins(layer, options, kind):
    module = make(layer, learn_initial_state=True, **options)
    x = example(module).detach()
    if kind == "unbatched" or (kind == "step" and module.bidirectional):
        x, n, run = x[0], None, module
    elif kind == "packed":
        x, n, run = sequences((4, 2, 5), I, enforce_sorted=False), 3, module
        x = x._replace(data=x.data.double())
    elif kind == "step":
        x, n, run = x.flatten(0, 1)[:N], N, module.step
    else:
        n, run = N, module
    learned = [module.h0, module.c0] if module.mode == "LSTM" else [module.h0]
    with torch.no_grad():
        hx = tuple(s[:, 0] if n is None else s.repeat(1, n, 1) for s in learned)
    results = run(x), run(x, hx if len(hx) > 1 else hx[0])
    torch.testing.assert_close(*(leaves(r) for r in results), rtol=0, atol=0)
    found = torch.autograd.grad(sum(t.pow(2).sum() for t in leaves(results[0])), learned)
    for s in hx:
        s.requires_grad_()
    again = run(x, hx if len(hx) > 1 else hx[0])
    expected = torch.autograd.grad(sum(t.pow(2).sum() for t in leaves(again)), hx)
    summed = [e.unsqueeze(1) if n is None else e.sum(1, keepdim=True) for e in expected]
    torch.testing.assert_close(list(found), summed)


@pytest.mark.parametrize("layer", LAYERS)
def test_learned_state_is_a_parameter(layer):
    torch.manual_seed(0)
    module = getattr(fused_rnn, layer)(I, H, 2, bidirectional=True, learn_initial_state=True)
    torch.manual_seed(0)
    plain = getattr(fused_rnn, layer)(I, H, 2, bidirectional=True)
    names = ["h0", "c0"] if layer == "LSTM" else ["h0"]
    assert list(module.state_dict()) == [*plain.state_dict(), *names]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)
    x = torch.randn(T, N, I)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)  # zeros at first
    with torch.no_grad():
        module.h0.fill_(1)
    module.reset_parameters()
    assert not any(getattr(module, name).any() for name in names)
    moved = getattr(fused_rnn, layer)(
        I, H, learn_initial_state=True, device="meta", dtype=torch.float64
    )
    assert (moved.h0.device.type, moved.h0.dtype) == ("meta", torch.float64)


def test_a_given_state_comes_before_the_learned_one():
    module = make("LSTM", learn_initial_state=True)
    plain = fused_rnn.LSTM(I, H).double()
    plain.load_state_dict(module.state_dict(), strict=False)
    x, hx = example(module), states(module, N, torch.float64)
    torch.testing.assert_close(module(x, hx), plain(x, hx), rtol=0, atol=0)


def test_wrong_input_gets_torchs_words():
    module = make("GRU", learn_initial_state=True)
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 4D instead"):
        module(torch.zeros(1, 1, 1, I))
    with pytest.raises(ValueError, match="RNN input dtype"):
        module(torch.zeros(T, N, I))


def test_torch_gets_a_learned_state_dense(monkeypatch):
    """As cuDNN wants it."""
    seen = []
    by_module, by_operator = nn.GRU.forward, stack._TORCH_LAYERS["gru"]

    def forward(self, input, hx):
        seen.append(hx.is_contiguous())
        return by_module(self, input, hx)

    def operator(x, hx, *others):
        seen.append(hx.is_contiguous())
        return by_operator(x, hx, *others)

    class Own(torch.Tensor):
        """Not a plain tensor."""

    monkeypatch.setattr(nn.GRU, "forward", forward)
    monkeypatch.setitem(stack._TORCH_LAYERS, "gru", operator)
    module = make("GRU", torch.float32, num_layers=2, learn_initial_state=True)
    x = torch.randn(T, N, I)
    module(x.as_subclass(Own))
    with fused_rnn.use_backend("torch"):
        module(x)
        fused_rnn.functional.gru(x, None, module.all_weights, initial_state=module.h0)
    assert seen == [True] * 3


def test_torch_has_no_learned_state():
    module = make("GRU", learn_initial_state=True)
    with pytest.raises(RuntimeError, match="which has no learned initial state"):
        torch.jit.script(module)
    said = []
    fused_rnn.revert(module, report=said.append)
    assert type(module) is fused_rnn.GRU
    assert "torch.nn has no learned initial state" in str(said[0])


# --- return_states ---


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_states_of_every_step(layer, options, given):
    """What a call that ends at this step returns; in reverse, one that begins at it."""
    module = make(layer, **options)
    x = example(module)
    hx = states(module, N, torch.float64) if given else None
    y, after, steps = module(x, hx, return_states=True)
    torch.testing.assert_close([y, *leaves(after)], leaves(module(x, hx)))
    time = 1 if module.batch_first else 0
    d = 2 if module.bidirectional else 1
    assert type(steps) is type(after)
    if d == 1:
        for t in range(T):
            _, expected = module(x.narrow(time, 0, t + 1), hx)
            torch.testing.assert_close([s[t] for s in leaves(steps)], leaves(expected))
    elif module.num_layers == 1:  # with more, the first layer must have read all of the input
        for t in range(T):
            ahead = leaves(module(x.narrow(time, 0, t + 1), hx)[1])
            back = leaves(module(x.narrow(time, t, T - t), hx)[1])
            for found, a, b in zip(leaves(steps), ahead, back, strict=True):
                torch.testing.assert_close(found[t], torch.stack([a[0], b[1]]))
    else:
        top = leaves(steps)[0][:, -2:].transpose(1, 2).flatten(2)
        torch.testing.assert_close(top.transpose(0, 1) if module.batch_first else top, y)
        for found, last in zip(leaves(steps), leaves(after), strict=True):
            torch.testing.assert_close(found[-1, 0::2], last[0::2])
            torch.testing.assert_close(found[0, 1::2], last[1::2])


@pytest.mark.parametrize("layer", LAYERS)
def test_states_of_every_layout(layer):
    module = make(layer, num_layers=2, bidirectional=True)
    x = example(module)
    lengths = torch.tensor([2, 5, 4])
    _, _, steps = module(x, lengths=lengths, return_states=True)
    assert all(
        not s[length:, :, n].any() for s in leaves(steps) for n, length in enumerate(lengths)
    )
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    _, _, of_packed = module(packed, return_states=True)
    of_packed = of_packed if isinstance(of_packed, tuple) and layer == "LSTM" else (of_packed,)
    for found, expected in zip(of_packed, leaves(steps), strict=True):
        torch.testing.assert_close(pad_packed_sequence(found)[0], expected.transpose(1, 2))
    _, _, alone = module(x[:, 1], return_states=True)
    torch.testing.assert_close(leaves(alone), [s[:, :, 1] for s in leaves(steps)])


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_through_every_state(layer):
    module = make(layer, num_layers=2, bidirectional=True)

    def run(x):
        return tuple(leaves(module(x, lengths=torch.tensor([3, 0, 2]), return_states=True)[2]))

    x = torch.randn(3, N, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(lambda x: run(x)[-1], x)


@pytest.mark.skipif(native.available() is not None, reason="the kernels were not built")
def test_which_backend_knows_every_state():
    lstm, gru = make("LSTM"), make("GRU")
    x = example(lstm)
    for layer in (lstm, gru):
        rows = fused_rnn.explain(layer, x, return_states=True, lengths=torch.tensor([3, 0, 2]))
        assert [row.backend for row in rows] == ["native"]
    with fused_rnn.use_backend("torch"), pytest.raises(RuntimeError, match="every step's states"):
        gru(x, return_states=True)


# --- gates ---


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


def test_a_learned_initial_state_is_for_each_sequence_of_a_packed_input():
    module = make("LSTM", learn_initial_state=True)
    packed = sequences((2, 1, 1, 1), I, enforce_sorted=True)
    packed = packed._replace(data=packed.data.double())
    given = tuple(s.expand(-1, 4, -1).contiguous() for s in (module.h0, module.c0))
    torch.testing.assert_close(module(packed)[0].data, module(packed, given)[0].data)


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


@pytest.mark.parametrize("layer", LAYERS)
def test_options_under_autocast(layer):
    module = make(layer, torch.float32, num_layers=2, bidirectional=True, **OPTIONS)
    x = example(module, torch.float32)
    lengths, resets = torch.tensor([2, 5, 0]), torch.rand(T, N) < 0.3
    options = {"lengths": lengths, "resets": resets}
    y, state = module(x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        y_16, state_16, steps = module(x, return_states=True, **options)
        gates = module.gates(x, **options)
    assert y_16.dtype == leaves(steps)[0].dtype == torch.bfloat16
    bound = {"rtol": 0, "atol": 5e-2}
    torch.testing.assert_close(y_16.float(), y, **bound)
    torch.testing.assert_close([s.float() for s in leaves(state_16)], leaves(state), **bound)
    for name, gate in module.gates(x, **options).items():
        torch.testing.assert_close(gates[name].float(), gate, **bound)


# --- and the rest of a module's life ---


@pytest.mark.parametrize("layer", LAYERS)
def test_without_options_nothing_is_different(layer):
    module, plain = getattr(fused_rnn, layer)(I, H), getattr(nn, layer)(I, H)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert vars(module).keys() == vars(plain).keys()
    assert repr(module) == repr(plain)


@pytest.mark.parametrize("layer", LAYERS)
def test_options_are_shown(layer):
    module = getattr(fused_rnn, layer)(I, H, batch_first=True, **OPTIONS)
    assert repr(module) == (
        f"{layer}({I}, {H}, batch_first=True, learn_initial_state=True, recompute=True)"
    )
    with pytest.raises(TypeError, match="unexpected keyword argument 'learned'"):
        getattr(fused_rnn, layer)(I, H, learned=True)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
@pytest.mark.parametrize("layer", LAYERS)
def test_copies(layer, how):
    module = make(layer, **OPTIONS)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    elif how == "deepcopy":
        twin = copy.deepcopy(module)
    else:
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    assert repr(twin) == repr(module)
    x = example(module)
    torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)
    assert torch.autograd.grad(forward_sum(twin, x), twin.h0)[0].any()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_learned_state_in_a_state_dict_for_a_plain_layer(layer):
    learned = nn.Sequential(make(layer, learn_initial_state=True))
    plain = nn.Sequential(getattr(fused_rnn, layer)(I, H))
    keys = "0.h0, 0.c0" if layer == "LSTM" else "0.h0"
    hint = rf"learned initial state \({keys}\).*learn_initial_state=True"
    with pytest.warns(UserWarning, match=hint), pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(learned.state_dict())
    with pytest.warns(UserWarning, match=hint):
        plain.load_state_dict(learned.state_dict(), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.load_state_dict(learned.state_dict())
        plain.load_state_dict(plain.state_dict())
        # Another module's h0 is that module's business.
        with pytest.raises(RuntimeError, match="Unexpected key"):
            plain.load_state_dict(plain.state_dict() | {"h0": torch.zeros(1)})


def test_options_of_converted_layers():
    model = nn.Sequential(nn.LSTM(I, H))
    fused_rnn.convert(model)
    x, lengths = torch.randn(T, N, I), torch.tensor([2, 5, 0])
    y, _ = model[0](x, lengths=lengths)
    assert not y[2:, 0].any()
    model[0].recompute = True
    assert reason_to_leave(nn.LSTM(I, H)) is None
    fused_rnn.revert(model)
    assert type(model[0]) is nn.LSTM
    assert repr(model[0]) == "LSTM(3, 4)"
    fused_rnn.convert(model)
    assert repr(model[0]) == "LSTM(3, 4, recompute=True)"


def test_explain_names_what_ran():
    model = make("GRU", num_layers=2, **OPTIONS)
    rows = fused_rnn.explain(model, example(model), lengths=torch.tensor([1, 0, 5]))
    assert [(row.layer, row.direction) for row in rows] == [(0, "forward"), (1, "forward")]
    with fused_rnn.use_backend("reference"):
        rows = fused_rnn.explain(model, example(model), resets=torch.zeros(T, N, dtype=torch.bool))
    assert {row.backend for row in rows} == {reference.name}


def test_a_compiled_model_looks_at_gates_outside_the_graph():
    module, x = make("LSTM", torch.float32, **OPTIONS), torch.randn(T, N, I)
    inspect = torch.compile(lambda x: module.gates(x)["forget"], backend="eager")
    torch.testing.assert_close(inspect(x), module.gates(x)["forget"])


class Asking(nn.Module):
    """A model that calls its layer with options."""

    def __init__(self, layer, ask):
        super().__init__()
        self.layer, self.ask = layer, ask

    def forward(self, x):
        return self.ask(self.layer, x)


@pytest.mark.parametrize("strict", [False, True])
def test_gates_cannot_be_exported(strict):
    model = Asking(make("GRU", torch.float32), lambda layer, x: layer.gates(x))
    with pytest.raises(Exception, match=r"gates, and .* cannot be exported") as caught:
        torch.export.export(model, (torch.randn(T, N, I),), strict=strict)
    assert strict or caught.type is RuntimeError


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_can_be_exported(layer, strict):
    module = make(layer, torch.float32, num_layers=2, **OPTIONS)
    batch = {"x": {1: torch.export.Dim("n", min=2, max=64)}}
    one = {"x": {0: torch.export.Dim("n", min=2, max=64)}}
    for model, x, more, dims in (
        (Asking(module, lambda layer, x: layer(x)), example(module, torch.float32), 7, batch),
        (Asking(module, lambda layer, x: layer.step(x)), torch.randn(N, I), 7, one),
    ):
        x = x.detach()
        exported = torch.export.export(model, (x,), dynamic_shapes=dims, strict=strict).module()
        for given in (x, torch.randn(*x.shape[:-2], more, I)):
            torch.testing.assert_close(leaves(exported(given)), leaves(model(given)))


def test_a_learned_state_and_recompute_stay_in_the_graph():
    module = make("GRU", torch.float32, **OPTIONS)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(T, N, I)
    expected = forward_sum(module, x)
    found = forward_sum(compiled, x)
    torch.testing.assert_close(found, expected)
    of = list(module.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, of), torch.autograd.grad(expected, of))

"""lengths= and resets=: against torch.nn's layers run over each stretch of each sequence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn.backends import BACKENDS, reference
from fused_rnn.layers import options
from fused_rnn.scans.segments import cut
from tests.twins import CONFIGURED, LAYERS, leaves, states

T, N, I = 6, 5, 3  # noqa: E741
LENGTHS = (3, 6, 0, 1, 5)
# A reset before the first step, right at an end, past an end, two in a row, and none.
RESETS = {0: (0, 2, 4), 1: (3, 4), 2: (1,), 3: (0,)}


def resets_of(n_steps: int = T, n: int = N) -> torch.Tensor:
    resets = torch.zeros(n_steps, n, dtype=torch.bool)
    for member, steps in RESETS.items():
        for step in steps:
            resets[step, member] = True
    return resets


def stretches(length: int, resets: torch.Tensor) -> list[tuple[int, int]]:
    begins = [t for t in range(length) if t == 0 or resets[t]]
    return list(zip(begins, [*begins, length][1:], strict=True))


def oracle(module, x, hx, lengths, resets, anew=None):
    """Return output (T, N, ...) and final states, from torch.nn run over every stretch alone."""
    d = 2 if module.bidirectional else 1
    lstm = module.mode == "LSTM"
    k = module.num_layers * d
    sizes = [module.proj_size or module.hidden_size] + [module.hidden_size] * lstm
    if anew is None:
        anew = [x.new_zeros(k, 1, size) for size in sizes]
    if hx is None:
        hx = [s.expand(k, x.shape[1], -1) for s in anew]
    y = x.new_zeros(*x.shape[:2], d * sizes[0])
    columns, finals = [], []
    for n, length in enumerate(lengths):
        parts, ends = [y[length:, n]], None
        begun = [s[:, n].clone() for s in hx]
        spans = stretches(length, resets[:, n])
        for i, (begin, end) in enumerate(spans):
            state = []
            for given, fresh in zip(hx, anew, strict=True):
                rows = fresh[:, 0].clone()
                if i == 0 and not resets[0, n]:
                    rows[0::d] = given[0::d, n]
                if d == 2 and i == len(spans) - 1:
                    rows[1::2] = given[1::2, n]
                state.append(rows)
            out, after = run_one(module, x[begin:end, n], state)
            parts.insert(-1, out)
            if ends is None:
                ends = [s.clone() for s in after]  # the reverse direction's end
            for end_state, s in zip(ends, after, strict=True):
                end_state[0::d] = s[0::d]
        columns.append(torch.cat(parts))
        finals.append(ends or begun)
    return torch.stack(columns, 1), [torch.stack(s, 1) for s in zip(*finals, strict=True)]


def run_one(module, x, state):
    out, after = module(x, tuple(state) if len(state) > 1 else state[0])
    return out, after if isinstance(after, tuple) else (after,)


def tensors(hx):
    return [] if hx is None else list(hx) if isinstance(hx, tuple) else [hx]


def pair(layer, options, **kwargs):
    """Return a layer of torch.nn without batch_first in float64, and ours with the same weights."""
    ours = getattr(fused_rnn, layer)(I, 4, **options, **kwargs).double()
    theirs = getattr(nn, layer)(I, 4, **{**options, "batch_first": False}).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name in ("h0", "c0"):
                parameter.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict(), strict=not kwargs)
    return theirs, ours


def call(ours, x, hx, lengths, resets, **kwargs):
    """Call our layer with (T, N) data, in the layout that it takes."""
    flip = (lambda t: t.transpose(0, 1)) if ours.batch_first else (lambda t: t)
    if resets is not None:
        resets = flip(resets)
    if lengths is not None:
        lengths = torch.tensor(lengths, dtype=torch.int64, device=x.device)
    y, *rest = ours(flip(x), hx, lengths=lengths, resets=resets, **kwargs)
    return flip(y), *rest


@pytest.mark.parametrize("backend", [b for b in BACKENDS if not BACKENDS[b].available()])
@pytest.mark.parametrize("asked", ["lengths", "resets", "both"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_against_torch(layer, options, given, asked, backend, device):
    theirs, ours = (module.to(device) for module in pair(layer, options))
    x = torch.randn(T, N, I, dtype=torch.float64, device=device, requires_grad=True)
    hx = states(theirs, N, torch.float64) if given else None
    for state in tensors(hx):
        state.requires_grad_()
    lengths = None if asked == "resets" else LENGTHS
    resets = None if asked == "lengths" else resets_of()
    expected, finals = oracle(
        theirs,
        x,
        tensors(hx) or None,
        lengths or (T,) * N,
        torch.zeros(T, N, dtype=torch.bool) if resets is None else resets,
    )
    with fused_rnn.use_backend(backend):
        y, state = call(ours, x, hx, lengths, resets)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(leaves(state), finals)

    results, wanted = [y, *leaves(state)], [expected, *finals]
    weights = [torch.randn_like(r) for r in results]
    leading = [x, *tensors(hx)]
    found = torch.autograd.grad(results, [*leading, *ours.parameters()], weights)
    correct = torch.autograd.grad(
        wanted, [*leading, *theirs.parameters()], weights, materialize_grads=True, allow_unused=True
    )
    torch.testing.assert_close(found, correct)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_batch_that_lies_in_memory_sequence_by_sequence(layer):
    module = getattr(fused_rnn, layer)(I, 4, batch_first=True).double()
    x = torch.randn(N, T, I, dtype=torch.float64)
    asked = {"lengths": torch.tensor(LENGTHS), "resets": resets_of().t()}
    y, state = module(x, **asked)
    other = x.transpose(0, 1).contiguous().transpose(0, 1)  # step by step
    torch.testing.assert_close(module(other, **asked), (y, state), rtol=0, atol=0)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("layer", LAYERS)
def test_resets_to_a_learned_state(layer, bidirectional):
    options = {"bidirectional": bidirectional, "num_layers": 2}
    theirs, ours = pair(layer, options, learn_initial_state=True)
    x = torch.randn(T, N, I, dtype=torch.float64)
    learned = [p for name, p in ours.named_parameters() if name in ("h0", "c0")]
    for hx in (None, states(theirs, N, torch.float64)):
        expected, finals = oracle(theirs, x, tensors(hx) or None, LENGTHS, resets_of(), learned)
        y, state = call(ours, x, hx, LENGTHS, resets_of())
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(leaves(state), finals)
        sums = sum(t.pow(2).sum() for t in (expected, *finals))
        found = sum(t.pow(2).sum() for t in (y, *leaves(state)))
        torch.testing.assert_close(
            torch.autograd.grad(found, learned), torch.autograd.grad(sums, learned)
        )


@pytest.mark.parametrize("autocast", [False, True], ids=["stored", "autocast"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_gradient_of_a_learned_state_after_many_resets(half, autocast):
    """Thousands of small gradients add up to one that a sum in half precision does not reach."""
    steps = 4000
    ours = fused_rnn.GRU(I, 4, learn_initial_state=True, dtype=torch.float64)
    x = torch.randn(steps, 2, I, dtype=torch.float64)
    if not autocast:
        ours.to(half)
        x = x.to(half)
    exact = fused_rnn.GRU(I, 4, learn_initial_state=True, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    resets = torch.ones(steps, 2, dtype=torch.bool)
    if autocast:
        ours.float()
    with torch.autocast("cpu", half, enabled=autocast):
        y, _ = ours(x.float() if autocast else x, resets=resets)
    weight = 1 / 16  # for float16, which ends at 65504
    (y.double().sum() * weight).backward()
    (exact(x.double(), resets=resets)[0].sum() * weight).backward()
    assert exact.h0.grad.abs().min() > 100
    torch.testing.assert_close(ours.h0.grad.double(), exact.h0.grad, rtol=2e-2, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_float32_and_half(layer, dtype, tolerance):
    _, ours = pair(layer, {"num_layers": 2, "bidirectional": True})
    rounded = getattr(fused_rnn, layer)(I, 4, num_layers=2, bidirectional=True)
    rounded.load_state_dict({k: v.to(dtype) for k, v in ours.state_dict().items()})
    rounded.to(dtype)
    ours.load_state_dict(rounded.state_dict())
    x = torch.randn(T, N, I).to(dtype)
    y, state = call(rounded, x, None, LENGTHS, resets_of())
    expected, finals = call(ours, x.double(), None, LENGTHS, resets_of())
    assert y.dtype == leaves(state)[0].dtype == dtype
    bound = {"rtol": 0, "atol": 2 * tolerance.forward}
    torch.testing.assert_close(y.double(), expected, **bound)
    torch.testing.assert_close([s.double() for s in leaves(state)], leaves(finals), **bound)


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout_between_the_layers(layer):
    ours = getattr(fused_rnn, layer)(I, 4, 2, dropout=0.5).double()
    x = torch.randn(T, N, I, dtype=torch.float64)
    trained, _ = call(ours, x, None, LENGTHS, resets_of())
    evaluated, _ = call(ours.eval(), x, None, LENGTHS, resets_of())
    assert not torch.allclose(trained, evaluated)
    ended = torch.arange(T).unsqueeze(1) >= torch.tensor(LENGTHS)
    assert trained[ended].abs().max() == 0
    torch.manual_seed(3)
    first, _ = call(ours.train(), x, None, LENGTHS, resets_of())
    torch.manual_seed(3)
    again, _ = call(ours, x, None, LENGTHS, resets_of())
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_what_is_past_the_end_is_never_read():
    ours = fused_rnn.LSTM(I, 4, bidirectional=True)
    x = torch.randn(T, N, I)
    clean, _ = call(ours, x, None, LENGTHS, None)
    for n, length in enumerate(LENGTHS):
        x[length:, n] = torch.nan
    x.requires_grad_()
    y, _ = call(ours, x, None, LENGTHS, None)
    torch.testing.assert_close(y, clean)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.isfinite().all()
    gates = ours.gates(x, lengths=torch.tensor(LENGTHS))
    total = sum(gate.square().sum() for gate in gates.values())
    assert all(d.isfinite().all() for d in torch.autograd.grad(total, [x, *ours.parameters()]))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("n", [0, 3])
def test_no_step_at_all(layer, n):
    ours = getattr(fused_rnn, layer)(I, 4, 2, bidirectional=True)
    hx = states(ours, n)
    x = torch.randn(T, n, I, requires_grad=True)
    y, state, steps = call(ours, x, hx, (0,) * n, resets_of(n=max(n, 4))[:, :n], return_states=True)
    assert y.shape == (T, n, 8)
    assert not y.any()
    torch.testing.assert_close(leaves(state), tensors(hx))
    assert [s.shape for s in leaves(steps)] == [(T, 4, n, 4)] * len(leaves(steps))
    y.sum().backward()
    assert not x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


def test_unbatched():
    ours = fused_rnn.GRU(I, 4, bidirectional=True)
    x = torch.randn(T, I)
    resets = resets_of()[:, 1]
    y, h = ours(x, lengths=torch.tensor(5), resets=resets)
    expected, h_n = ours(x[:, None], lengths=torch.tensor([5]), resets=resets[:, None])
    torch.testing.assert_close(y, expected[:, 0])
    torch.testing.assert_close(h, h_n[:, 0])
    assert y.shape == (T, 8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers(dtype):
    ours = fused_rnn.RNN(I, 4)
    x = torch.randn(T, N, I)
    y, _ = ours(x, lengths=torch.tensor(LENGTHS, dtype=dtype))
    torch.testing.assert_close(y, ours(x, lengths=torch.tensor(LENGTHS))[0])


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_functional(name, batch_first):
    module = getattr(fused_rnn, name.upper())(I, 4, 2, learn_initial_state=True)
    module.batch_first = batch_first
    with torch.no_grad():
        for p in (p for key, p in module.named_parameters() if key in ("h0", "c0")):
            p.uniform_(-1, 1)
    initial = (module.h0, module.c0) if name == "lstm" else module.h0
    x = torch.randn(T, N, I)
    x = x.transpose(0, 1) if batch_first else x
    resets = resets_of().t() if batch_first else resets_of()
    options = {"lengths": torch.tensor(LENGTHS), "resets": resets, "return_states": True}
    run = getattr(fused_rnn.functional, name)
    for hx in (None, states(module, N)):
        expected = module(x, hx, **options)
        found = run(
            x, hx, module.all_weights, batch_first=batch_first, initial_state=initial, **options
        )
        assert len(found) == 3
        torch.testing.assert_close(leaves(found), leaves(expected))


BAD = [
    ({"lengths": [3, 6, 0, 1, 5]}, TypeError, "lengths should be a tensor of integers, got: list"),
    (
        {"lengths": torch.ones(N)},
        TypeError,
        "lengths should be a tensor of integers, got: torch.float32",
    ),
    (
        {"lengths": torch.ones(N, dtype=torch.bool)},
        TypeError,
        "lengths should be a tensor of integers, got: torch.bool",
    ),
    (
        {"lengths": torch.tensor(3)},
        ValueError,
        r"lengths should have shape \(5,\), got: \(\)",
    ),
    (
        {"lengths": torch.ones(4, dtype=torch.int64)},
        ValueError,
        r"lengths should have shape \(5,\), got: \(4,\)",
    ),
    (
        {"lengths": torch.tensor([1, 2, 3, -1, 5])},
        ValueError,
        "lengths should be from 0 to 6, the number of steps, got: -1 at index 3",
    ),
    (
        {"lengths": torch.tensor([1, 7, 3, 8, 5])},
        ValueError,
        "lengths should be from 0 to 6, the number of steps, got: 7 at index 1",
    ),
    ({"resets": [True]}, TypeError, "resets should be a tensor of booleans, got: list"),
    (
        {"resets": torch.zeros(T, N)},
        TypeError,
        "resets should be a tensor of booleans, got: torch.float32",
    ),
    (
        {"resets": torch.zeros(N, T, dtype=torch.bool)},
        ValueError,
        r"resets should have shape \(6, 5\), got: \(5, 6\)",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
@pytest.mark.parametrize("functional", [False, True], ids=["module", "functional"])
def test_errors(options, kind, message, functional):
    ours = fused_rnn.LSTM(I, 4)
    given = torch.randn(T, N, I), None
    if functional:
        ours, given = fused_rnn.functional.lstm, (*given, ours.all_weights)
    with pytest.raises(kind, match=message):
        ours(*given, **options)


def test_errors_of_other_layouts():
    x, resets = torch.randn(N, T, I), torch.zeros(T, N, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"resets should have shape \(5, 6\), got: \(6, 5\)"):
        fused_rnn.GRU(I, 4, batch_first=True)(x, resets=resets)
    with pytest.raises(ValueError, match=r"lengths should have shape \(\), got: \(1,\)"):
        fused_rnn.GRU(I, 4)(x[0], lengths=torch.tensor([3]))
    packed = nn.utils.rnn.pack_sequence([x[0], x[1]])
    with pytest.raises(TypeError, match="a padded tensor, got: PackedSequence"):
        fused_rnn.GRU(I, 4)(packed, lengths=torch.tensor([6, 6]))
    weights = fused_rnn.GRU(I, 4).all_weights
    with pytest.raises(TypeError, match="a padded tensor, got: batch_sizes"):
        fused_rnn.functional.gru(
            packed.data, None, weights, batch_sizes=packed.batch_sizes, lengths=torch.tensor([6, 6])
        )
    with pytest.raises(RuntimeError, match=r"initial_state\[0\] should be \(1, 1, 4\)"):
        fused_rnn.functional.gru(x, None, weights, initial_state=torch.zeros(1, 5, 4))


def test_mistakes_of_other_arguments_get_torchs_words():
    ours = fused_rnn.LSTM(I, 4)
    lengths = torch.tensor(LENGTHS)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        ours(torch.randn(T, N, I + 1), lengths=lengths)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        ours(torch.randn(T, N, I), (torch.zeros(1, 2, 4),) * 2, lengths=lengths)


def test_operands_that_only_torch_takes_are_refused():
    class Own(torch.Tensor):
        """Not a plain tensor."""

    x = torch.randn(T, N, I).as_subclass(Own)
    with pytest.raises(RuntimeError, match="lengths, resets and the states of every step need"):
        fused_rnn.LSTM(I, 4)(x, lengths=torch.tensor(LENGTHS))


def test_a_dtype_without_kernels():
    ours = fused_rnn.GRU(I, 4, dtype=torch.complex64)
    x = torch.randn(T, 3, I, dtype=torch.complex64)
    y, h = ours(x, lengths=torch.tensor([2, 6, 4]))
    for n, length in enumerate((2, 6, 4)):
        expected, h_n = ours(x[:length, n])
        torch.testing.assert_close(y[:length, n], expected)
        torch.testing.assert_close(h[:, n], h_n)


def test_ragged_work_is_skipped(monkeypatch):
    """As many rows reach the backend as there are steps to compute."""
    seen = []
    run = reference.forward

    def counting(cell, inputs, *others):
        seen.append(len(inputs.x))
        return run(cell, inputs, *others)

    monkeypatch.setattr(reference, "forward", counting)
    with fused_rnn.use_backend("reference"):
        call(fused_rnn.GRU(I, 4, 2, bidirectional=True), torch.randn(T, N, I), None, LENGTHS, None)
    assert seen == [sum(LENGTHS)] * 4


def test_cutting():
    segments = cut(torch.tensor(LENGTHS), resets_of(), T, N, 2, torch.device("cpu"))
    pieces = [
        (n, begin, end)
        for n, length in enumerate(LENGTHS)
        for begin, end in stretches(length, resets_of()[:, n])
    ]
    pieces.sort(key=lambda piece: piece[1] - piece[2])
    rows = [
        (n, begin + step)
        for step in range(max(end - begin for _, begin, end in pieces))
        for n, begin, end in pieces
        if begin + step < end
    ]
    assert segments.count == len(pieces)
    assert list(zip(segments.members.tolist(), segments.times.tolist(), strict=True)) == rows
    assert segments.batch_sizes.sum() == sum(LENGTHS)


def test_the_default_device_is_not_asked():
    with torch.device("meta"):
        segments = cut(torch.tensor(LENGTHS, device="cpu"), None, T, N, 1, torch.device("cpu"))
    assert all(t.device.type == "cpu" for t in segments[2:])


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_gradients(layer):
    ours = getattr(fused_rnn, layer)(2, 2, bidirectional=True).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    hx = [s.requires_grad_() for s in tensors(states(ours, 3, torch.float64))]
    resets = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()

    def run(x, *hx):
        given = hx if len(hx) > 1 else hx[0]
        return leaves(ours(x, given, lengths=torch.tensor([4, 3, 0]), resets=resets))[0]

    assert torch.autograd.gradcheck(run, (x, *hx))
    assert torch.autograd.gradgradcheck(run, (x, *hx))


def test_deterministic_algorithms(device):
    """The same numbers twice, and no operator that has only another way."""
    ours = fused_rnn.LSTM(I, 4, 2, bidirectional=True, learn_initial_state=True).to(device)
    x = torch.randn(T, N, I, device=device, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            y, state = ours(x, lengths=torch.tensor(LENGTHS), resets=resets_of().to(device))
            total = y.square().sum() + sum(s.square().sum() for s in leaves(state))
            found.append(torch.autograd.grad(total, [x, *ours.parameters()]))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_they_are_read_once(monkeypatch):
    """Where they are on a GPU, to read them is to wait for it."""
    reads, read = [], options.read
    monkeypatch.setattr(options, "read", lambda *args: reads.append(args) or read(*args))
    ours, x = fused_rnn.LSTM(I, 4, 2, bidirectional=True), torch.randn(T, N, I)
    ours.gates(x, lengths=torch.tensor(LENGTHS), resets=resets_of())
    assert len(reads) == 1


def test_transforms():
    ours = fused_rnn.LSTM(I, 4)
    x, lengths = torch.randn(2, T, N, I), torch.tensor(LENGTHS)
    found = torch.func.vmap(lambda x: ours(x, lengths=lengths, resets=resets_of())[0])(x)
    expected = [ours(part, lengths=lengths, resets=resets_of())[0] for part in x]
    torch.testing.assert_close(found, torch.stack(expected))
    tangent = torch.randn_like(x[0])
    _, forward = torch.func.jvp(lambda x: ours(x, lengths=lengths)[0], (x[0],), (tangent,))
    _, pull = torch.func.vjp(lambda x: ours(x, lengths=lengths)[0], x[0])
    weight = torch.randn_like(forward)
    torch.testing.assert_close((weight * forward).sum(), (pull(weight)[0] * tangent).sum())

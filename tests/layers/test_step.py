"""step(): the same layers one step at a time."""

from __future__ import annotations

import pytest
import torch

import fused_rnn
from fused_rnn import functional
from fused_rnn.backends import BACKENDS
from tests.twins import CONFIGURED, LAYERS, leaves, states

T, N, I, H = 5, 3, 3, 4  # noqa: E741
ONE_WAY = [case for case in CONFIGURED if not case.values[1].get("bidirectional")]


def run_steps(module, x, state):
    outputs = []
    for step in x:
        output, state = module.step(step, state)
        outputs.append(output)
    return torch.stack(outputs), state


@pytest.mark.parametrize("backend", [b for b in BACKENDS if not BACKENDS[b].available()])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), ONE_WAY)
def test_equal_to_the_sequence_call(layer, options, given, batched, backend, device):
    module = getattr(fused_rnn, layer)(I, H, **options).double().to(device)
    n = N if batched else None
    x = torch.randn(T, *(N,) * batched, I, dtype=torch.float64, device=device, requires_grad=True)
    hx = states(module, n, torch.float64) if given else None
    for state in leaves(hx) if given else []:
        state.requires_grad_()
    first = batched and module.batch_first
    with fused_rnn.use_backend(backend):
        y, after = module(x.transpose(0, 1) if first else x, hx)
        outputs, state = run_steps(module, x, hx)
    expected = [y.transpose(0, 1) if first else y, *leaves(after)]
    found = [outputs, *leaves(state)]
    torch.testing.assert_close(found, expected)
    of = [x, *module.parameters(), *(leaves(hx) if given else [])]
    weights = [torch.randn_like(t) for t in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, of, weights), torch.autograd.grad(expected, of, weights)
    )


@pytest.mark.parametrize("backend", [b for b in BACKENDS if not BACKENDS[b].available()])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_a_sequence_of_one_step(layer, options, given, batched, backend, device, monkeypatch):
    module = getattr(fused_rnn, layer)(I, H, **options).double().to(device)
    shape = (N, 1, I) if module.batch_first else (1, N, I)
    x = torch.randn(shape if batched else (1, I), dtype=torch.float64, device=device)
    hx = states(module, N if batched else None, torch.float64) if given else None
    of = [x, *module.parameters(), *(leaves(hx) if given else [])]
    for tensor in of:
        tensor.requires_grad_()
    sequences = []
    run = module._forward_dense
    monkeypatch.setattr(module, "_forward_dense", lambda *a: sequences.append(a) or run(*a))
    with fused_rnn.use_backend(backend):
        found = [leaves(module(x, hx))]
        # Both have no single steps: a sequence of one it is.
        assert len(sequences) == (module.bidirectional or module.proj_size > 0)
        found.append(leaves(run(x, hx)))
    torch.testing.assert_close(found[0], found[1])
    weights = [torch.randn_like(t) for t in found[0]]
    gradients = [torch.autograd.grad(outputs, of, weights) for outputs in found]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("steps", [0, 2])
def test_another_number_of_steps_is_no_single_one(steps):
    module, x = fused_rnn.GRU(I, H), torch.randn(steps, N, I)
    if steps:
        assert module(x)[0].shape == (steps, N, H)
    else:
        with pytest.raises(RuntimeError, match="larger than 0"):
            module(x)


@pytest.mark.parametrize("call", ["step", "forward"])
@pytest.mark.parametrize("layer", LAYERS)
def test_output_and_state_are_two(layer, call):
    module = getattr(fused_rnn, layer)(I, H)
    with torch.no_grad():
        x = torch.randn(1, N, I)
        output, state = module(x) if call == "forward" else module.step(x[0])
        before = [s.clone() for s in leaves(state)]
        output.zero_()
    torch.testing.assert_close(leaves(state), before, rtol=0, atol=0)


@pytest.mark.parametrize("call", ["step", "forward"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_output_of_a_step_may_be_changed(layer, layers, call):
    module, x = getattr(fused_rnn, layer)(I, H, layers), torch.randn(1, N, I)
    found = []
    for change in (lambda y: y.mul_(2), lambda y: y * 2):
        output, _ = module(x) if call == "forward" else module.step(x[0])
        found.append(torch.autograd.grad(change(output).pow(2).sum(), [*module.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_torch_asked_for_runs_its_layer():
    ours, x = fused_rnn.LSTM(64, 128, 2), torch.randn(1, 8, 64)
    theirs = torch.nn.LSTM(64, 128, 2)
    theirs.load_state_dict(ours.state_dict())
    with fused_rnn.use_backend("torch"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_backend_asked_for_runs_one_step(layer, monkeypatch):
    ran = []
    forward = BACKENDS["reference"].forward
    monkeypatch.setattr(
        BACKENDS["reference"], "forward", lambda *args: ran.append(args) or forward(*args)
    )
    with fused_rnn.use_backend("reference"):
        getattr(fused_rnn, layer)(I, H)(torch.randn(1, N, I))
    assert ran


def test_explain_of_one_step_names_its_layers():
    module = fused_rnn.GRU(I, H, 2)
    one, two = (fused_rnn.explain(module, torch.randn(steps, N, I)) for steps in (1, 2))
    assert [(row.layer, row.backend) for row in one] == [(row.layer, row.backend) for row in two]


@pytest.mark.parametrize("layer", LAYERS)
def test_goes_on_where_a_sequence_ended(layer):
    module = getattr(fused_rnn, layer)(I, H, 2)
    x = torch.randn(T, N, I)
    expected = module(x)[0]
    _, state = module(x[:3])
    output, state = module.step(x[3], state)
    torch.testing.assert_close(output, expected[3])
    torch.testing.assert_close(module(x[4:], state)[0][0], expected[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_dtypes(dtype):
    module = fused_rnn.GRU(I, H, 2, dtype=dtype)
    x = torch.randn(T, N, I).to(dtype)
    outputs, state = run_steps(module, x, None)
    assert outputs.dtype == state.dtype == dtype
    y, h_n = module(x)
    bound = {"rtol": 0, "atol": 2e-2 if dtype == torch.bfloat16 else 1e-6}
    torch.testing.assert_close((outputs, state), (y, h_n), **bound)


@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_autocast(layer, given, device):
    module = getattr(fused_rnn, layer)(I, H, 2).to(device)
    x, hx = torch.randn(N, I, device=device), None
    if given is not None:
        hx = states(module, N, given)
    with torch.autocast(device, torch.bfloat16):
        output, state = module.step(x, hx)
        expected, after = module(x[None], hx)
    torch.testing.assert_close(output, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(leaves(state), leaves(after), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=["cells", "sequence"])
def test_hooks_do_not_fire(options):
    module, fired = fused_rnn.LSTM(I, H, **options), []
    module.register_forward_hook(lambda *_: fired.append(True))
    module.step(torch.randn(N, I))
    assert not fired


def test_dropout_between_the_layers():
    module = fused_rnn.LSTM(I, 50, 2, dropout=0.5)
    x = torch.randn(N, I)
    assert not torch.equal(module.step(x)[0], module.step(x)[0])
    torch.manual_seed(1)
    expected = module(x[None])[0][0]
    torch.manual_seed(1)
    torch.testing.assert_close(module.step(x)[0], expected)
    module.eval()
    torch.testing.assert_close(module.step(x)[0], module(x[None])[0][0])


def test_one_cell_for_each_layer():
    """A step makes no sequence of its input: no scan of layers runs."""
    module = fused_rnn.GRU(I, H, 3)
    with torch.no_grad(), fused_rnn.backends.record() as records:
        module.step(torch.randn(N, I))
    assert [(r.problem.T, r.problem.N) for r in records] == [(1, N)] * 3


def test_learned_state_through_compile():
    module = fused_rnn.LSTM(I, H, 2, learn_initial_state=True)
    with torch.no_grad():
        module.h0.uniform_(-1, 1)
        module.c0.uniform_(-1, 1)

    def generate(x):
        output, state = module.step(x)
        return module.step(output[:, :I], state)

    x = torch.randn(N, I)
    found = torch.compile(generate, backend="eager")(x)
    torch.testing.assert_close(leaves(found), leaves(generate(x)))


def test_a_bidirectional_layer_has_no_steps():
    with pytest.raises(RuntimeError, match="step: a bidirectional layer begins at both ends"):
        fused_rnn.GRU(I, H, bidirectional=True).step(torch.randn(N, I))


@pytest.mark.parametrize("layer", LAYERS)
def test_mistakes_get_torchs_words(layer):
    module = getattr(fused_rnn, layer)(I, H, 2)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        module.step(torch.randn(N, I + 1))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module.step(torch.randn(N, I), states(module, N + 1))
    one_layer = getattr(fused_rnn, layer)(I, H)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module.step(torch.randn(N, I), states(one_layer, N))
    with pytest.raises(RuntimeError, match="2-D"):
        module.step(torch.randn(N, I), states(module, None))
    scalar = (torch.tensor(0.0),) * 2 if layer == "LSTM" else torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="0-D"):
        module.step(torch.randn(N, I), scalar)
    with pytest.raises(RuntimeError, match="0-D"):
        module.step(torch.randn(I), scalar)
    with pytest.raises(TypeError, match="step: input should be a tensor, got: list"):
        module.step([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="step: input should be 1-D or 2-D, got 3-D"):
        module.step(torch.randn(1, N, I))


def test_equal_to_the_functional_cell():
    module = fused_rnn.LSTM(I, H)
    x, (h, c) = torch.randn(N, I), states(module, N)
    output, state = module.step(x, (h, c))
    expected = functional.lstm_cell(x, (h[0], c[0]), *module.parameters())
    torch.testing.assert_close((output, state[1][0]), expected, rtol=0, atol=0)


def test_an_unbatched_step_of_a_projection_with_the_batch_first():
    module = fused_rnn.LSTM(I, H, proj_size=2, batch_first=True).double()
    x = torch.randn(T, I, dtype=torch.float64)
    output, state = run_steps(module, x, None)
    expected, after = module(x)
    torch.testing.assert_close((output, state), (expected, after))

"""What only a GPU has: streams, devices, graphs, wide accesses, TF32, and sizes past 2^31."""

from contextlib import contextmanager

import pytest
import torch

import fused_rnn
from fused_rnn import backends
from fused_rnn.backends import UNMEASURED, native, reference, tuned
from fused_rnn.backends.measured import Table
from tests.conftest import NO_CUDA, TOLERANCES, needs_cuda
from tests.operands import (
    Shape,
    as_double,
    assert_near,
    cotangents,
    differentiate,
    make_inputs,
    needing,
    present,
    ragged,
)
from tests.twins import (
    CELLS,
    LAYERS,
    MODULES,
    example,
    first,
    gradients,
    leaves,
    outcome,
    sequences,
    twins,
)

pytestmark = needs_cuda

GPU = "cuda"
CAPABILITY = (0, 0) if NO_CUDA else torch.cuda.get_device_capability()
SIZES = {name: (6,) if name in CELLS else (9, 6) for name in MODULES}
GPUS = 0 if NO_CUDA else torch.cuda.device_count()
# So many hidden units in a step that every thread takes 16 bytes of them.
WIDE = {
    "dense": Shape(2, 600, 16, 1024),
    "ragged": ragged((3, *[2] * 550, *[1] * 49), 16, 1024),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_native_runs_by_name_and_torch_by_itself(name, dtype, monkeypatch):
    monkeypatch.setattr(backends, "UNMEASURED", UNMEASURED)  # as it is shipped
    backends._forget()
    module = getattr(fused_rnn, name)(3, 4, device=GPU, dtype=dtype)
    x = example(name, GPU).to(dtype)
    (row,) = fused_rnn.explain(module, x)
    assert (row.backend, row.refusals["native"]) == ("torch.nn", UNMEASURED)
    with fused_rnn.use_backend("native"):
        assert [row.backend for row in fused_rnn.explain(module, x)] == ["native"]


@pytest.mark.parametrize("name", MODULES)
def test_every_way_is_right(name, monkeypatch):
    monkeypatch.setattr(tuned, "_measured", Table())
    module = getattr(fused_rnn, name)(40, 72, device=GPU, dtype=torch.bfloat16)
    (measured,) = fused_rnn.tune(module, torch.randn(*SIZES[name], 40, device=GPU).bfloat16())
    assert [(t.way, t.failure) for t in measured.trials if t.failure is not None] == []
    assert {"torch", "native stepwise"} <= {t.way for t in measured.trials}
    assert measured.chosen is not None
    backends._forget()


@pytest.mark.parametrize("shape", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_wide_accesses(variant, shape, offset, dtype, tolerance):
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, dtype, GPU)
    oracle = needing(as_double(inputs))
    drawn = cotangents(reference.forward(cell, oracle, batch_sizes, False, False)[:3])
    drawn = [g if g is None else g.to(dtype).double() for g in drawn]
    expected = differentiate(reference, cell, oracle, batch_sizes, False, drawn)
    moved = type(inputs)(*(t if t is None else shifted(t, offset) for t in inputs))
    found = differentiate(native, cell, needing_where_they_lie(moved), batch_sizes, False, drawn)
    for actual, wanted in zip(present(found[0]), present(expected[0]), strict=True):
        assert_near(actual, wanted, tolerance.forward)
    for actual, wanted in zip(found[1], expected[1], strict=True):
        assert_near(actual, wanted, tolerance.gradient)


def shifted(t, offset):
    """Return a contiguous copy that begins ``offset`` elements after an aligned address."""
    return torch.cat([t.new_zeros(offset), t.flatten()])[offset:].view(t.shape)


def needing_where_they_lie(inputs):
    return type(inputs)(*(t if t is None else t.detach().requires_grad_() for t in inputs))


@pytest.mark.parametrize("name", MODULES)
def test_the_callers_stream(name):
    module, x = getattr(fused_rnn, name)(3, 4, device=GPU), example(name, GPU)
    expected = gradients(module, x)
    late, stream = torch.full_like(x, torch.nan), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # on another stream, a kernel would see the NaNs
        late.copy_(x)
        found = gradients(module, late)
        for t in found:
            t.record_stream(torch.cuda.default_stream())
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.skipif(GPUS < 2, reason=f"two CUDA devices are needed, here are {GPUS}")
def test_a_device_that_is_not_the_current_one(name):
    module, x = getattr(fused_rnn, name)(3, 4, device=GPU), example(name, GPU)
    expected = [t.cpu() for t in gradients(module, x)]
    with torch.cuda.device(0):
        found = gradients(module.to("cuda:1"), x.to("cuda:1"))
        assert {t.device for t in found} == {torch.device("cuda", 1)}
    torch.testing.assert_close([t.cpu() for t in found], expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_input_and_weights_on_two_devices(name, there):
    theirs, ours = twins(name, 3, 4, device="cuda" if there == "cpu" else "cpu")
    x = example(name, there)
    expected, found = (outcome(lambda m=m: m(x)) for m in (theirs, ours))
    assert expected[0] == found[0] == "raised"
    assert found[1] is expected[1]


@pytest.mark.parametrize("name", ["x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"])
def test_ops_refuse_an_operand_of_another_device(name):
    inputs, _ = make_inputs(("lstm", True), Shape(3, 2, 3, 4), torch.float32, GPU)
    spoilt = inputs._replace(**{name: getattr(inputs, name).cpu()})
    with pytest.raises(RuntimeError, match="should be on the"):
        torch.ops.fused_rnn.lstm_forward(*spoilt, None, False, True)


@contextmanager
def no_synchronisation():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["dense", "packed", "stacked"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_never_wait_for_the_gpu(name, kind):
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5} if kind == "stacked" else {}
    module = getattr(fused_rnn, name)(3, 4, device=GPU, **options)
    x = sequences((5, 2, 4), 3, False, GPU) if kind == "packed" else example(name, GPU)
    weights = list(module.parameters())
    torch.autograd.grad(first(module(x)).sum(), weights)  # handles and workspaces are made once
    with no_synchronisation():
        torch.autograd.grad(first(module(x)).sum(), weights)
        with torch.no_grad():
            module(x)


@pytest.mark.parametrize("name", CELLS)
def test_cells_never_wait_for_the_gpu(name):
    module, x = getattr(fused_rnn, name)(3, 4, device=GPU), example(name, GPU)
    gradients(module, x)
    with no_synchronisation():
        gradients(module, x)
        with torch.no_grad():
            module(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_two_runs_of_a_large_layer_are_bit_equal(name, dtype):
    module = getattr(fused_rnn, name)(256, 512, bidirectional=True, device=GPU, dtype=dtype)
    x = torch.randn(40, 64, 256, device=GPU, dtype=dtype)
    torch.testing.assert_close(gradients(module, x), gradients(module, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_follows_the_seed(name):
    module = getattr(fused_rnn, name)(3, 64, 2, dropout=0.5, device=GPU)
    x, found = example(name, GPU), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(first(module(x)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_torchs(name, dtype):
    theirs, ours = twins(name, 3, 4, device=GPU)
    results = []
    for module in (theirs, ours):
        scaler = torch.amp.GradScaler(GPU)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        torch.manual_seed(2)
        for _ in range(2):
            with torch.autocast(GPU, dtype):
                output = first(module(example(name, GPU)))
                loss = output.float().pow(2).mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() > 0
        results.append([output, *module.parameters()])
    assert results[0][0].dtype == results[1][0].dtype
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.skipif(CAPABILITY < (8, 0), reason=f"TF32 needs sm_80, here is {CAPABILITY}")
def test_the_tf32_setting_is_honoured():
    variant, shape = ("lstm", False), Shape(4, 64, 256, 512)
    inputs, _ = make_inputs(variant, shape, torch.float32, GPU)
    expected = reference.forward("lstm", as_double(inputs), None, False, False)[0]
    errors = []
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        y, *_ = native.forward("lstm", inputs, None, False, False)
        errors.append(((y - expected).abs().max() / expected.abs().max()).item())
    assert errors[0] <= TOLERANCES[torch.float32].forward
    assert 10 * errors[0] < errors[1] < 1e-2


def memory(gigabytes):
    """Return a mark that skips where the GPU has less than this free."""
    free = 0 if NO_CUDA else torch.cuda.mem_get_info()[0] / 2**30
    reason = f"{gigabytes} GiB of free GPU memory are needed, here are {free:.0f}"
    return pytest.mark.skipif(free < gigabytes, reason=reason)


@memory(60)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_more_than_two_to_the_31_gates(name):
    T, N, H = 1500, 512, 1024
    assert T * N * 3 * H > 2**31
    module = getattr(fused_rnn, name)(8, H, device=GPU, dtype=torch.bfloat16)
    x = torch.randn(T, N, 8, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(T, N, H, device=GPU, dtype=torch.bfloat16) / T
    y, _ = module(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    # Sequences are independent: the last ones alone, at small offsets, are the same.
    few = x[:, -4:].detach().contiguous().requires_grad_()
    expected, _ = module(few)
    (expected_dx,) = torch.autograd.grad(expected, few, dy[:, -4:].contiguous())
    forward, gradient = TOLERANCES[torch.bfloat16]
    assert_near(y[:, -4:], expected, forward)
    assert_near(dx[:, -4:], expected_dx, gradient)


@memory(60)
@pytest.mark.parametrize("name", CELLS)
def test_a_step_of_more_than_two_to_the_31_gates(name):
    H = {"LSTMCell": 256, "GRUCell": 384, "RNNCell": 1024}[name]
    N, module = 2_200_000, getattr(fused_rnn, name)(4, H, device=GPU, dtype=torch.float16)
    assert N * len(module.weight_hh) > 2**31
    x = torch.randn(N, 4, device=GPU, dtype=torch.float16)
    with torch.no_grad():
        found, expected = leaves(module(x)), leaves(module(x[-5:]))
    for actual, wanted in zip(found, expected, strict=True):
        assert_near(actual[-5:], wanted, TOLERANCES[torch.float16].forward)

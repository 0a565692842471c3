"""The kernels of variants against the specification: dtypes, shapes, threads, lengths."""

from __future__ import annotations

import copy
import locale
import shutil
import subprocess

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn.backends import native
from tests.conftest import TOLERANCES
from tests.twins import leaves
from tests.variants.test_variants import OPTIONS

SINGLES = [(layer, name) for layer, options in OPTIONS.items() for name in options]
# Steps, sequences, inputs, units: tails of vectors, more rows than blocks of rows, one of each.
SHAPES = [(3, 70, 5, 20), (6, 2, 33, 130), (1, 1, 2, 4)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(layer, names, units, **more):
    options = {name: OPTIONS[layer][name] for name in names}
    if "proj_clip" in names:
        more["proj_size"] = units // 2 // 2 * 2
    torch.manual_seed(0)
    module = getattr(fused_rnn, layer)(more.pop("width"), units, **options, **more).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("ln_"):
                parameter.mul_(2)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def run(module, x, backend, **given):
    """Return results, and gradients of all operands, on a backend."""
    x = x.detach().requires_grad_()
    with fused_rnn.use_backend(backend):
        torch.manual_seed(1)
        results = leaves(module(x, **given))
        torch.manual_seed(2)
        loss = sum(
            (t * torch.randn(t.shape, dtype=torch.float64).to(t.dtype)).sum() for t in results
        )
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    return [t.detach() for t in results], list(gradients)


def close(found, expected, limit):
    for f, e in zip(found, expected, strict=True):
        scale = e.abs().max().item() if e.numel() else 1.0
        torch.testing.assert_close(f.double(), e.double(), rtol=0, atol=limit * max(scale, 1e-3))


@pytest.mark.parametrize(("layer", "name"), SINGLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_kernel_is_the_specification(layer, name, shape, reverse):
    steps, n, width, units = shape
    module = make(layer, [name], units, width=width, bidirectional=reverse)
    x = torch.randn(steps, n, width, dtype=torch.float64)
    lengths = torch.randint(0, steps + 1, (n,))
    for given in ({}, {"lengths": lengths, "return_states": True}):
        found, expected = (run(module, x, b, **given) for b in ("native", "reference"))
        close(found[0], expected[0], 1e-12)
        close(found[1], expected[1], 1e-11)


@pytest.mark.parametrize("layer", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "zoneout", "num_heads"])
def test_dtypes(layer, dtype, name):
    module = make(layer, [name], 20, width=7).to(dtype)
    x = torch.randn(5, 4, 7, dtype=torch.float64).to(dtype)
    found = run(module, x, "native")
    expected = run(module.double(), x.double(), "reference")
    limits = TOLERANCES[dtype]
    close(found[0], expected[0], 5 * limits.forward)
    close(found[1], expected[1], 5 * limits.gradient)
    assert all(t.dtype == dtype for t in found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", OPTIONS)
def test_threads_make_no_difference(layer, dtype):
    module = make(layer, OPTIONS[layer], 64, width=8).to(dtype)
    x = torch.randn(4, 37, 8, dtype=dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(run(module, x, "native"))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=0)
    # The products of all steps at once are torch's, whose sums are cut by threads.
    for one, two in zip(found[0], found[1], strict=True):
        close(one, two, 1e-12 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("layer", OPTIONS)
def test_an_empty_batch(layer):
    module = make(layer, OPTIONS[layer], 4, width=3)
    x = torch.randn(3, 0, 3, dtype=torch.float64)
    found, expected = (run(module, x, b) for b in ("native", "reference"))
    torch.testing.assert_close(found, expected)


def test_what_the_ops_refuse():
    op = torch.ops.fused_rnn.variant_scan.default
    h = torch.zeros(2, 4)
    rest = None, None, None, None, None, None, None, False, False, False
    for name, gates_x, w_hh, message in (
        ("gru;reset_after", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;foo=1", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;num_heads=2", torch.zeros(6, 12), torch.zeros(12, 4), "w_hh should have shape"),
        ("gru;zoneout=0.1,0", torch.zeros(6, 13), torch.zeros(12, 4), "G.H features, G = 3"),
        ("gru;zoneout=0.1,0", torch.zeros(5, 12), torch.zeros(12, 4), "should have T.N rows"),
        ("gru;layer_norm=1e-5", torch.zeros(6, 12), torch.zeros(12, 4), "extra should have 24"),
        ("gru;num_heads=0", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;num_heads=1.5", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;recurrent_activation=x", torch.zeros(6, 12), torch.zeros(12, 4), "that there are"),
        ("gru;activation=elu", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;input_forget=1", torch.zeros(6, 8), torch.zeros(8, 4), "options that there are"),
        ("gru;zoneout=0.1x,0", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("gru;zoneout=0.1", torch.zeros(6, 12), torch.zeros(12, 4), "options that there are"),
        ("lstm;cell_clip=1", torch.zeros(6, 16), torch.zeros(16, 4), "c0 should be given"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(name, gates_x, h, None, w_hh, *rest)


def test_a_mask_goes_with_its_option():
    op = torch.ops.fused_rnn.variant_scan.default
    h, rest = (
        torch.zeros(2, 4),
        (None, None, None, torch.ones(2, 4), None, None, False, False, False),
    )
    with pytest.raises(RuntimeError, match="mask goes with recurrent_dropout"):
        op("gru;num_heads=1", torch.zeros(6, 12), h, None, torch.zeros(12, 4), None, *rest)


def test_numbers_are_read_the_same_in_any_locale(tmp_path, monkeypatch):
    make_locale = shutil.which("localedef")
    if make_locale is None:
        pytest.skip("there is no localedef to make a locale with a decimal comma")
    made = [make_locale, "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("the sources of locales are not installed")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    module, x = fused_rnn.LSTM(2, 3, cell_clip=0.25, zoneout=0.5).eval(), torch.randn(4, 2, 2)
    expected, before = module(x)[0], locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=0)
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


@pytest.mark.parametrize("name", ["cell_clip", "proj_clip"])
def test_on_the_limit_the_gradient_is_zero(name):
    size = 2 if name == "proj_clip" else 0
    hard = {"recurrent_activation": "hard_sigmoid", "activation": "relu"}
    module = fused_rnn.LSTM(1, 4, proj_size=size, **hard, **{name: 0.5}).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        # Gates wide open: c is the candidate, one half, and so is what of it is shown.
        module.bias_ih_l0.copy_(torch.tensor([9.0, -9.0, 0.5, 9.0]).repeat_interleave(4))
        if size:
            module.weight_hr_l0[:, 0] = 1.0
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    found, expected = (run(module, x, b) for b in ("native", "reference"))
    close(found[0], expected[0], 0)
    assert found[0][0].eq(0.5).all()
    close(found[1], expected[1], 1e-12)


def test_what_overflows_passes_where_zoneout_keeps():
    torch.manual_seed(0)
    module = fused_rnn.GRU(2, 16, zoneout=0.5)
    x = torch.randn(1, 3, 2)
    gradients = []
    for backend in ("native", "reference"):
        h0 = torch.zeros(1, 3, 16, requires_grad=True)
        with fused_rnn.use_backend(backend):
            torch.manual_seed(1)
            y = module(x, h0)[0]
        dy = torch.where(y == 0, torch.inf, 0.0)  # of units that keep their old value
        gradients.append(torch.autograd.grad(y, h0, dy)[0])
    assert gradients[0].isinf().any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{"reset_after": False}, {"recurrent_dropout": 0.5}], ids=str)
def test_backward_takes_the_state_that_was_carried(options):
    """In half precision y is the state rounded; what the gradient of z takes is not."""
    torch.manual_seed(0)
    module = fused_rnn.GRU(3, 8, **options).to(torch.bfloat16)
    x, found = torch.randn(6, 4, 3).to(torch.bfloat16), []
    for of in (module, copy.deepcopy(module).float()):
        torch.manual_seed(1)
        y = of(x.to(of.weight_hh_l0.dtype))[0]
        found.append(torch.autograd.grad(y, list(of.parameters()), torch.ones_like(y)))
    # The same arithmetic in float32, but for results, which are rounded once.
    half, wide = found
    close(half, [g.to(torch.bfloat16) for g in wide], 0)


def test_native_takes_them():
    module = fused_rnn.GRU(3, 4, layer_norm=True)
    row = fused_rnn.explain(module, torch.randn(2, 2, 3))[0]
    assert row.backend == "native"
    assert row.how == native.simd_level().replace("amx", "avx512")


def test_operations_are_counted():
    module, x = fused_rnn.LSTM(3, 4, num_heads=2, proj_size=2), torch.randn(5, 6, 3)
    with FlopCounterMode(display=False) as counter:
        module(x)[0].sum().backward()
    rows, w_ih, w_hh, w_hr = 30, 16 * 3, 16, 8
    forward = 2 * rows * (w_ih + w_hh + w_hr)
    # Weights' gradients, those of the recurrent weight head by head; x needs none.
    assert counter.get_total_flops() == forward + 2 * rows * (w_ih + 2 * w_hh + 2 * w_hr)

"""Scans with marks: the CUDA path on the host bench and on a GPU, against the specification.

On the host bench kernels and host code are the shipped sources, as in test_stepwise.py.
"""

import pytest
import torch
from torch.library import opcheck

import fused_rnn
from fused_rnn.backends import Inputs, native
from fused_rnn.backends.native import fakes as native_fakes
from fused_rnn.backends.native import marked as native_marked
from fused_rnn.layers import options as options_of_calls
from fused_rnn.layers.options import Options
from fused_rnn.scans import autograd, marks
from fused_rnn.scans.segments import cut
from tests.backends.native.cuda.test_stepwise import _load
from tests.conftest import needs_cuda
from tests.marked import (
    ALL,
    ANEW,
    BEGINS,
    CASES,
    DEAD,
    NAMES,
    draw_in,
    expected_gradients,
    fed_for,
    make_marked,
    marks_of,
    run,
)
from tests.operands import OF_OPERANDS, assert_near, present, shifted
from tests.twins import leaves

BENCH = "the host bench"
RUNNERS = [BENCH, pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=RUNNERS)
def device(request, monkeypatch):
    """Where the operands are: on the CPU for the host bench, or on a GPU."""
    if request.param != BENCH:
        return request.param
    reason = _load()
    if reason is not None:
        pytest.skip(reason)
    for way in ("forward", "backward"):
        op = getattr(torch.ops.fused_rnn_bench, f"marked_{way}").default
        monkeypatch.setitem(native_marked._OPS, way, op)
    return "cpu"


@pytest.fixture(params=CASES)
def case(request):
    """Lengths, resets, both, and sizes at the edge."""
    return CASES[request.param]


@pytest.mark.parametrize(
    ("name", "anew"),
    [
        (name, anew)
        for name, case in CASES.items()
        for anew in (False, True)[: 1 + bool(case.resets)]
    ],
)
def test_scan_is_the_specification(cell, name, anew, reverse, dtype, tolerance, device):
    case = CASES[name]
    inputs, marked = make_marked(cell, case, reverse, anew, dtype, device)
    expected, fed, gradients = expected_gradients(
        cell, inputs, marked, case, reverse, draw_in(dtype)
    )
    found, actual, saved = run(cell, inputs, marked, reverse, fed_for(fed, marked, dtype, device))
    every_c = cell == "lstm"
    inference = native_marked.marked_forward(cell, inputs, marked, reverse, False, every_c)
    y, h_n, c_n, nothing, c = inference
    assert nothing[0].numel() == 0
    for a, again, wanted in zip(found, present((y, h_n, c_n, c)), expected, strict=True):
        assert a.dtype == dtype
        assert a.is_contiguous()
        assert_near(a, wanted, tolerance.forward)
        assert_near(again, wanted, tolerance.forward)
    assert not saved[0].isnan().any()
    for name, wanted in gradients.items():
        assert (actual[name] is None) == (wanted is None), name
        if wanted is not None:
            assert actual[name].dtype == dtype, name
            assert_near(actual[name], wanted, tolerance.gradient)
    for t in (found[0], found[-1] if every_c else found[0], actual["x"]):
        assert (t[marked.marks == DEAD] == 0).all()


BOTH = CASES["both"]


@pytest.mark.parametrize(
    "present_ones", [(), (0,), (1,), (2,), (3,), (1, 2)], ids=lambda p: "-".join(map(str, p))
)
def test_absent_gradients_are_zero(cell, reverse, present_ones, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    _, fed, _ = expected_gradients(cell, inputs, marked, BOTH, reverse, draw_in(torch.float32))
    fed = fed_for(fed, marked, torch.float32, device)
    absent = [g if i in present_ones else None for i, g in enumerate(fed)]
    zeros = [g if i in present_ones else torch.zeros_like(g) for i, g in enumerate(fed)]
    found, expected = (run(cell, inputs, marked, reverse, g)[1] for g in (absent, zeros))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gradients_one_by_one_are_the_same(cell, reverse, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    _, fed, _ = expected_gradients(cell, inputs, marked, BOTH, reverse, draw_in(torch.float32))
    fed = fed_for(fed, marked, torch.float32, device)
    every = run(cell, inputs, marked, reverse, fed)[1]
    for i, name in enumerate(NAMES):
        needs = [j == i for j in range(len(NAMES))]
        found = run(cell, inputs, marked, reverse, fed, needs)[1]
        assert [n for n, g in found.items() if g is not None] == [name] * (every[name] is not None)
        torch.testing.assert_close(found[name], every[name], rtol=0, atol=0)


def test_two_runs_are_bit_equal_and_operands_stay(cell, case, reverse, device):
    inputs, marked = make_marked(cell, case, reverse, True, torch.float32, device)
    _, fed, _ = expected_gradients(cell, inputs, marked, case, reverse, draw_in(torch.float32))
    fed = fed_for(fed, marked, torch.float32, device)
    before = [t.clone() for t in present((*inputs, *marked, *fed))]
    one, other = (run(cell, inputs, marked, reverse, fed) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    after = present((*inputs, *marked, *fed))
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_a_sequence_with_nan_stays_alone(cell, reverse, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    spoilt = inputs.x.clone()
    spoilt[:, 1] = torch.nan
    clean = native_marked.marked_forward(cell, inputs, marked, reverse, False, False)
    found = native_marked.marked_forward(
        cell, inputs._replace(x=spoilt), marked, reverse, False, False
    )
    others = [0, 2, 3]
    assert found[0][:, 1].isnan().all()
    torch.testing.assert_close(found[0][:, others], clean[0][:, others], rtol=0, atol=0)
    for state, wanted in zip(present(found[1:3]), present(clean[1:3]), strict=True):
        assert state[1].isnan().all()
        torch.testing.assert_close(state[others], wanted[others], rtol=0, atol=0)


def test_strided_operands(cell, reverse, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    strided = Inputs(*(t if t is None or t.dim() < 2 else t.mT.contiguous().mT for t in inputs))
    moved = marked._replace(marks=marked.marks.t().contiguous().t())
    assert not moved.marks.is_contiguous()
    found = native_marked.marked_forward(cell, strided, moved, reverse, False, False)
    expected = native_marked.marked_forward(cell, inputs, marked, reverse, False, False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_operands_stand_anywhere_in_their_storage(cell, reverse, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    inputs = inputs._replace(x=inputs.x.nan_to_num(1, 1))  # equal to itself
    moved = Inputs(*map(shifted, inputs)), marked._replace(h=shifted(marked.h), c=shifted(marked.c))
    results = []
    for operands in ((inputs, marked), moved):
        y, *states, saved, _ = native_marked.marked_forward(cell, *operands, reverse, True, False)
        dy = shifted(y) if operands is moved else y
        needs = (*(t is not None for t in inputs), *(t is not None for t in marked[1:]))
        gradients = native_marked.marked_backward(
            cell, *operands, reverse, y, saved, dy, None, None, needs
        )
        results.append([y, *present(states), *present(gradients)])
    torch.testing.assert_close(*results)


def test_a_sequence_without_steps_passes_its_state_and_gradient_through(cell, reverse, device):
    case = CASES["no-steps-at-all"]
    inputs, marked = make_marked(cell, case, reverse, True, torch.float32, device)
    _, fed, _ = expected_gradients(cell, inputs, marked, case, reverse, draw_in(torch.float32))
    fed = fed_for(fed, marked, torch.float32, device)
    results, gradients, _ = run(cell, inputs, marked, reverse, fed)
    for name, state, given, d in zip(("h0", "c0"), results[1:], inputs[1:3], fed[1:], strict=False):
        if given is not None:
            torch.testing.assert_close(state, given, rtol=0, atol=0)
            torch.testing.assert_close(gradients[name], d, rtol=0, atol=0)
    for name in set(NAMES) - {"h0", "c0"}:
        assert gradients[name] is None or (gradients[name] == 0).all()


def test_packed_segments_are_the_same(cell, reverse, device):
    inputs, marked = make_marked(cell, BOTH, reverse, True, torch.float32, device)
    resets = torch.zeros(BOTH.shape.T, BOTH.shape.N, dtype=torch.bool)
    for place in BOTH.resets:
        resets[place] = True
    T, N = resets.shape
    segments = cut(torch.tensor(BOTH.ends), resets, T, N, 2, inputs.x.device)
    one = slice(1, 2) if reverse else slice(0, 1)
    segments = segments._replace(origins=segments.origins[one], finals=segments.finals[one])
    begin = [
        s if s is None else segments.begin(s[None], a[None, None])[0]
        for s, a in ((inputs.h0, marked.h), (inputs.c0, marked.c))
    ]
    packed = inputs._replace(x=segments.pack(inputs.x), h0=begin[0], c0=begin[1])
    y, h_n, c_n = autograd.scan(native, cell, packed, segments.batch_sizes, reverse)
    found = native_marked.marked_forward(cell, inputs, marked, reverse, False, False)
    torch.testing.assert_close(found[0], segments.unpack(y, N))
    torch.testing.assert_close(found[1], segments.end(h_n[None], inputs.h0[None])[0])
    if c_n is not None:
        torch.testing.assert_close(found[2], segments.end(c_n[None], inputs.c0[None])[0])


SPOILT = {
    "marks of another shape": (
        {"marks": lambda t: t[:, :-1]},
        r"marks should have shape \(6, 4\), got \(6, 3\)",
    ),
    "marks of another dtype": (
        {"marks": lambda t: t.int()},
        "marks should be of dtype Byte, got Int",
    ),
    "a state of another shape": (
        {"h": lambda t: t[None]},
        r"anew_h should have shape \(5,\), got \(1, 5\)",
    ),
    "a state of another dtype": (
        {"c": lambda t: t.double()},
        "anew_c should have the dtype of x, Float, got Double",
    ),
    "a single step": (
        {"x": lambda t: t[0]},
        r"x should have 3 dimensions \(T, N, I\) with marks, got 2",
    ),
    "no c0": ({"c0": lambda t: None}, "c0 should be a tensor for an LSTM, got None"),
    "another w_hh": ({"w_hh": lambda t: t[:, :-1]}, "w_hh should have shape"),
}


@pytest.mark.parametrize(("changes", "message"), SPOILT.values(), ids=SPOILT)
def test_messages_name_the_operand(changes, message, device):
    inputs, marked = make_marked("lstm", BOTH, False, True, torch.float32, device)
    y, *_, saved, _ = native_marked.marked_forward("lstm", inputs, marked, False, True, False)
    for name, change in changes.items():
        if name in Inputs._fields:
            inputs = inputs._replace(**{name: change(getattr(inputs, name))})
        else:
            marked = marked._replace(**{name: change(getattr(marked, name))})
    with pytest.raises(RuntimeError, match=message):
        native_marked.marked_forward("lstm", inputs, marked, False, True, False)
    with pytest.raises(RuntimeError, match=message):
        native_marked.marked_backward(
            "lstm", inputs, marked, False, y, saved, y, None, None, ALL[:7] + (False,) * 3
        )


def test_what_belongs_to_an_lstm_alone(device):
    inputs, marked = make_marked("gru", BOTH, False, True, torch.float32, device)
    for changed, every_c, message in (
        ((inputs._replace(c0=inputs.h0), marked), False, "c0 should be None for this cell"),
        ((inputs, marked._replace(c=marked.h)), False, "anew_c should be None for this cell"),
        ((inputs, marked), True, "every_c should be False for gru"),
    ):
        with pytest.raises(RuntimeError, match=message):
            native_marked.marked_forward("gru", *changed, False, False, every_c)
    projected = inputs._replace(w_hr=inputs.h0.new_ones(2, 5))
    with pytest.raises(ValueError, match=r"w_hr should be None with marks, got .* \(2, 5\)"):
        native_marked.marked_forward("gru", projected, marked, False, False, False)


def test_saved_of_another_problem_is_an_error(cell, device):
    inputs, marked = make_marked(cell, BOTH, False, True, torch.float32, device)
    y, *_, (saved,), _ = native_marked.marked_forward(cell, inputs, marked, False, True, False)
    for spoilt in (saved[:-1], saved[None], saved.double()):
        with pytest.raises(RuntimeError, match="saved should be what the training forward"):
            native_marked.marked_backward(
                cell, inputs, marked, False, y, (spoilt,), y, None, None, ALL
            )


def arguments(cell, inputs, marked):
    return (cell, *inputs[:7], *marked)


@pytest.mark.parametrize(("name", "anew"), [("both", True), ("both", False), ("empty-batch", True)])
def test_opcheck(cell, name, anew, device):
    inputs, marked = make_marked(cell, CASES[name], False, anew, torch.float32, device)
    inputs = inputs._replace(x=inputs.x.nan_to_num(1, 1))  # equal to itself
    forward, backward = native_marked._OPS["forward"], native_marked._OPS["backward"]
    given = arguments(cell, inputs, marked)
    lstm = cell == "lstm"
    name = forward._schema.name.removesuffix("_forward")
    if name not in _faked:
        native_fakes.register(name)
        _faked.add(name)
    opcheck(forward, (*given, False, True, lstm))
    opcheck(forward, (*given, False, False, lstm), test_utils=OF_OPERANDS)
    y, h_n, c_n, c, saved = forward(*given, False, True, lstm)
    of_c = (c_n, c) if lstm else (None, None)
    opcheck(backward, (*given, False, y, saved, y, h_n, *of_c, 0x1FF))
    others = None, h_n, None, None, 0b010101010
    opcheck(backward, (*given, False, y, saved, *others), test_utils=OF_OPERANDS)


@pytest.mark.skipif(native.available() is not None, reason="the native module was not built")
@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_a_layer_packs_nothing(layer, device, monkeypatch):
    options = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}
    module = getattr(fused_rnn, layer)(3, 5, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    x, resets = torch.randn(6, 4, 3), torch.rand(6, 4) < 0.3
    given = {"lengths": torch.tensor([6, 0, 3, 1]), "resets": resets, "return_states": True}
    runs = []
    for on in ("cpu", device):
        if runs:  # the second time as on a GPU
            if on == "cpu":
                monkeypatch.setattr(Options, "_marking", lambda *_: ["native"] * 2)
                monkeypatch.setattr(native, "takes_marks", lambda *_: True)
            monkeypatch.delattr(marks, "cut")
            monkeypatch.delattr(options_of_calls, "read")
        module, of_x = module.to(on), x.to(on).requires_grad_()
        moved = {name: g if g is True else g.to(on) for name, g in given.items()}
        results = leaves(module(of_x, **moved))
        total = sum(r.pow(2).sum() for r in results)
        gradients = torch.autograd.grad(total, [of_x, *module.parameters()])
        runs.append([t.cpu() for t in (*results, *gradients)])
    for expected, found in zip(*runs, strict=True):
        assert_near(found, expected.double(), 1e-5)


# The bench has its ops under a name of its own.
_faked = {"fused_rnn::marked"}


@pytest.mark.skipif(native.available() is not None, reason="the native module was not built")
def test_the_cpu_says_that_only_cuda_has_it(cell):
    inputs, marked = make_marked(cell, BOTH, False, True, torch.float32)
    with pytest.raises(RuntimeError, match="x should be on a CUDA device with marks"):
        native_marked.marked_forward(cell, inputs, marked, False, False, False)


def test_the_marks_of_a_known_batch():
    marks = marks_of(BOTH, False)
    assert marks[:, 0].tolist() == [BEGINS, 1, 1, ANEW, DEAD, DEAD]
    assert marks_of(BOTH, True)[:, 0].tolist() == [1, 1, ANEW, BEGINS, DEAD, DEAD]
    assert marks[:, 3].tolist() == [ANEW, DEAD, DEAD, DEAD, DEAD, DEAD]
    assert marks_of(BOTH, True)[:, 3].tolist() == [BEGINS, DEAD, DEAD, DEAD, DEAD, DEAD]

"""Scans of padded sequences with marks, against each stretch of each sequence by itself."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

import fused_rnn
from fused_rnn.backends import ANEW, BEGINS, DEAD, GOES_ON, Inputs, Marked, native, reference
from fused_rnn.backends import BACKENDS as BACKENDS_OF_SCANS
from fused_rnn.cells import CELLS
from fused_rnn.graph import node
from fused_rnn.layers import options as options_of_calls
from fused_rnn.layers.options import Options
from fused_rnn.scans import marks
from fused_rnn.scans.stack import choose
from tests.operands import Shape, make_inputs, needing, present
from tests.twins import CONFIGURED, leaves

SHAPES = {
    "odd": (Shape(6, 5, 3, 7), (6, 0, 3, 1, 6)),
    "one-step": (Shape(1, 3, 2, 4), (1, 0, 1)),
    "one-sequence": (Shape(5, 1, 2, 1), (4,)),
    "no-steps": (Shape(4, 2, 3, 3), (0, 0)),
    "wide": (Shape(9, 17, 5, 33), tuple(range(9)) + tuple(range(2, 10))),
    "empty-batch": (Shape(4, 0, 3, 5), ()),
}
CUTS = {"lengths": (True, False), "resets": (False, True), "both": (True, True)}
BACKENDS = ["native", "reference"]


def cuts(shape, lengths, which, density=0.3):
    """Return lengths and resets, each None where it is not among those asked for."""
    with_lengths, with_resets = which
    generator = torch.Generator().manual_seed(5)
    resets = torch.rand(shape.T, shape.N, generator=generator) < density
    return (
        torch.tensor(lengths, dtype=torch.int64) if with_lengths else None,
        resets if with_resets else None,
    )


def stretches(shape, lengths, resets, reverse):
    """Yield (n, steps, anew): stretches of one sequence in the order of the scan."""
    for n in range(shape.N):
        end = shape.T if lengths is None else int(lengths[n])
        begins = [t for t in range(end) if t == 0 or (resets is not None and resets[t, n])]
        pieces = list(pairwise([*begins, end]))
        for k, (begin, stop) in enumerate(reversed(pieces) if reverse else pieces):
            # What was given is for the first stretch, unless a reset comes before its first step.
            anew = k > 0 or (not reverse and resets is not None and bool(resets[begin, n]))
            yield n, list(range(begin, stop)), anew


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", CUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_marks_say_where_states_come_from(name, which, reverse):
    shape, lengths = SHAPES[name]
    lengths, resets = cuts(shape, lengths, CUTS[which])
    expected = torch.full((shape.T, shape.N), DEAD, dtype=torch.uint8)
    for n, steps, anew in stretches(shape, lengths, resets, reverse):
        expected[steps, n] = GOES_ON
        expected[steps[-1 if reverse else 0], n] = ANEW if anew else BEGINS
    found = marks.mark(lengths, resets, shape.T, shape.N, reverse, torch.empty(0))
    assert torch.equal(found, expected)
    assert found.dtype == torch.uint8


def test_marks_are_numbered_as_in_the_kernels():
    header = (Path(fused_rnn.__file__).parents[1] / "csrc/cuda/stepwise/steps.h").read_text()
    body = header[header.index("enum class Mark") :].split("};")[0]
    names = re.findall(r"^  k(\w+),", body, re.MULTILINE)
    assert [names.index(name) for name in ("Dead", "GoesOn", "Begins", "Anew")] == [
        DEAD,
        GOES_ON,
        BEGINS,
        ANEW,
    ]


def oracle(cell, inputs, anew, shape, lengths, resets, reverse):
    """Return y, h_n, c_n and c, a scan by the reference for each stretch."""
    has_c = CELLS[cell].has_cell_state
    y = {}
    c = {}
    h_n, c_n = list(inputs.h0.unbind(0)), list(inputs.c0.unbind(0)) if has_c else []
    for n, steps, fresh in stretches(shape, lengths, resets, reverse):
        h0 = anew[0] if fresh else inputs.h0[n]
        c0 = None if not has_c else (anew[1] if fresh else inputs.c0[n]).unsqueeze(0)
        x = inputs.x[steps, n].unsqueeze(1)
        scan = inputs._replace(x=x, h0=h0.unsqueeze(0), c0=c0)
        if has_c:
            y_n, h, last, c_of = reference.scan_states(cell, scan, None, reverse)
            c_n[n] = last[0]
            c.update({(t, n): c_of[k, 0] for k, t in enumerate(steps)})
        else:
            y_n, h, *_ = reference.forward(cell, scan, None, reverse, True)
        h_n[n] = h[0]
        y.update({(t, n): y_n[k, 0] for k, t in enumerate(steps)})

    def padded(found, width):
        zeros = inputs.x.new_zeros(width)
        rows = [found.get((t, n), zeros) for t in range(shape.T) for n in range(shape.N)]
        return torch.stack(rows).view(shape.T, shape.N, width)

    r = inputs.h0.shape[1]
    if not shape.N:
        empty = inputs.x.new_zeros(shape.T, 0, r)
        return [empty, inputs.h0, inputs.c0, empty[..., :0] if has_c else None]
    return [
        padded(y, r),
        torch.stack(h_n),
        torch.stack(c_n) if has_c else None,
        padded(c, inputs.c0.shape[1]) if has_c else None,
    ]


def scanned(variant, shape, lengths, resets, reverse, dtype=torch.float64, given=True):
    """Return the operands of a marked scan: inputs, the state after a reset, marks."""
    inputs, _ = make_inputs(variant, shape, dtype)
    inputs = needing(inputs)
    anew = [None, None]
    if given:
        anew[0] = torch.randn(inputs.h0.shape[1], dtype=dtype, requires_grad=True)
        if inputs.c0 is not None:
            anew[1] = torch.randn(inputs.c0.shape[1], dtype=dtype, requires_grad=True)
    return inputs, anew, marks.mark(lengths, resets, shape.T, shape.N, reverse, inputs.x)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", CUTS)
@pytest.mark.parametrize("name", [n for n in SHAPES if n != "empty-batch"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_and_gradients_are_those_of_stretches(backend, variant, name, which, reverse):
    shape, lengths = SHAPES[name]
    cut = cuts(shape, lengths, CUTS[which])
    inputs, anew, of = scanned(variant, shape, *cut, reverse)
    has_c = CELLS[variant[0]].has_cell_state
    expected = oracle(variant[0], inputs, anew, shape, *cut, reverse)
    found = node.scan(backend, variant[0], inputs, Marked(of, *anew), reverse, True, has_c)
    torch.testing.assert_close(list(found), expected)

    operands = [*present(inputs), *present(anew)]
    weights = [torch.randn_like(t) for t in present(expected)]
    gradients = []
    for keep in (True, False):  # then a backward makes again what it needs
        found = node.scan(backend, variant[0], inputs, Marked(of, *anew), reverse, keep, has_c)
        gradients.append(torch.autograd.grad(present(found), operands, weights, allow_unused=True))
    wanted = torch.autograd.grad(
        [e for e in present(expected) if e.requires_grad],
        operands,
        [w for e, w in zip(present(expected), weights, strict=True) if e.requires_grad],
        allow_unused=True,
    )
    for of_run in gradients:
        for g, w, operand in zip(of_run, wanted, operands, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(operand) if w is None else w)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_each_gradient_can_be_had_alone(backend, variant, reverse):
    shape, lengths = SHAPES["odd"]
    cut = cuts(shape, lengths, (True, True))
    inputs, anew, of = scanned(variant, shape, *cut, reverse)
    operands = [*inputs, *anew]
    every = [k for k, t in enumerate(operands) if t is not None]

    def gradients(wanted):
        given = [t if t is None else t.detach() for t in operands]
        for k in wanted:
            given[k].requires_grad_()
        found = node.scan(
            backend, variant[0], Inputs(*given[:8]), Marked(of, *given[8:]), reverse, True
        )
        total = sum(r.pow(2).sum() for r in present(found) if r.requires_grad)
        return torch.autograd.grad(total, [given[k] for k in wanted])

    together = dict(zip(every, gradients(every), strict=True))
    for k in every:
        torch.testing.assert_close(gradients([k])[0], together[k])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_node_without_marks_makes_again_what_it_did_not_keep(variant, reverse):
    inputs, _ = make_inputs(variant, SHAPES["odd"][0])
    operands = needing(inputs)
    gradients = []
    for keep in (True, False):
        y, h_n, *_ = node.scan("native", variant[0], operands, None, reverse, keep)
        total = y.pow(2).sum() + h_n.sum()
        gradients.append(torch.autograd.grad(total, present(operands)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes(backend, variant, dtype):
    shape, lengths = SHAPES["odd"]
    cut = cuts(shape, lengths, (True, True))
    inputs, anew, of = scanned(variant, shape, *cut, False, dtype)
    y, *_ = node.scan(backend, variant[0], inputs, Marked(of, *anew), False, True)
    found = torch.autograd.grad(y.float().sum(), [*present(inputs), anew[0]])
    exact = [t.double() if t is not None else t for t in (*inputs, *anew)]
    exact = [t if t is None else t.detach().requires_grad_() for t in exact]
    y64, *_ = node.scan(
        "reference", variant[0], Inputs(*exact[:8]), Marked(of, *exact[8:]), False, True
    )
    expected = torch.autograd.grad(y64.sum(), [*present(exact[:8]), exact[8]])
    assert y.dtype == dtype
    assert all(g.dtype == dtype for g in found)
    limit = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for f, e in zip((y, *found), (y64, *expected), strict=True):
        assert (f.double() - e).detach().abs().max() <= limit * max(
            1.0, float(e.detach().abs().max())
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_what_is_past_an_end_is_not_seen(backend, variant, reverse):
    shape, lengths = SHAPES["odd"]
    cut = cuts(shape, lengths, (True, True))
    inputs, anew, of = scanned(variant, shape, *cut, reverse)
    operands = [*present(inputs), anew[0]]
    found = []
    for filling in (0.0, torch.nan, torch.inf):
        x = torch.where((of == DEAD).unsqueeze(2), filling, inputs.x)
        results = present(
            node.scan(backend, variant[0], inputs._replace(x=x), Marked(of, *anew), reverse, True)
        )
        total = sum(r.pow(2).sum() for r in results)
        found.append([*results, *torch.autograd.grad(total, operands, allow_unused=True)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_without_a_state_is_to_zeros(backend, variant):
    shape, lengths = SHAPES["odd"]
    cut = cuts(shape, lengths, (True, True))
    inputs, _, of = scanned(variant, shape, *cut, False, given=False)
    zeros = inputs.h0.new_zeros(inputs.h0.shape[1])
    c = None if inputs.c0 is None else inputs.c0.new_zeros(inputs.c0.shape[1])
    found = [
        present(node.scan(backend, variant[0], inputs, marked, False, True))
        for marked in (Marked(of, None, None), Marked(of, zeros, c))
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend, variant):
    shape, lengths = SHAPES["empty-batch"]
    cut = cuts(shape, lengths, (True, True))
    inputs, anew, of = scanned(variant, shape, *cut, False)
    results = present(node.scan(backend, variant[0], inputs, Marked(of, *anew), False, True))
    assert results[0].shape == (4, 0, inputs.h0.shape[1])
    gradients = torch.autograd.grad([r.sum() for r in results], inputs.w_hh)
    assert not gradients[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradcheck(backend, variant, reverse):
    shape = Shape(3, 3, 2, 2)
    cut = torch.tensor([3, 0, 2]), torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 0]]).bool()
    inputs, anew, of = scanned(variant, shape, *cut, reverse)
    given = [t is not None for t in (*inputs, *anew)]

    def run(*tensors):
        tensors = iter(tensors)
        every = [next(tensors) if g else None for g in given]
        has_c = every[2] is not None
        scan = backend, variant[0], Inputs(*every[:8]), Marked(of, *every[8:]), reverse, True
        return tuple(present(node.scan(*scan, has_c)))

    operands = present((*inputs, *anew))
    assert gradcheck(run, operands)
    assert gradgradcheck(run, operands, fast_mode=True)


def test_transforms(variant):
    shape, lengths = SHAPES["odd"]
    cut = cuts(shape, lengths, (True, True))
    inputs, anew, of = scanned(variant, shape, *cut, False)
    inputs = Inputs(*(t if t is None else t.detach() for t in inputs))
    marked = Marked(of, *(a if a is None else a.detach() for a in anew))

    def run(x, of=of):
        scan = "native", variant[0], inputs._replace(x=x), marked._replace(marks=of), False, True
        return node.scan(*scan)[0]

    xs = torch.randn(2, *inputs.x.shape, dtype=torch.float64)
    torch.testing.assert_close(vmap(run)(xs), torch.stack([run(x) for x in xs]))
    # Of sequences of other lengths too: nothing has to read the marks.
    others = torch.stack([of, marks.mark(None, None, shape.T, shape.N, False, xs)])
    expected = torch.stack([run(x, m) for x, m in zip(xs, others, strict=True)])
    torch.testing.assert_close(vmap(run)(xs, others), expected)
    tangent, eps = torch.randn_like(inputs.x), 1e-6
    _, found = jvp(run, (inputs.x,), (tangent,))
    near = (run(inputs.x + eps * tangent) - run(inputs.x - eps * tangent)) / (2 * eps)
    torch.testing.assert_close(found, near, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_layers_that_leave_them_where_they_are(layer, options, recompute, monkeypatch):
    module = getattr(fused_rnn, layer)(3, 4, **options, learn_initial_state=True).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    module.recompute = recompute
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 5, 3, dtype=torch.float64, requires_grad=True)
    given = {
        "lengths": torch.tensor([5, 0, 3, 1, 5]),
        "resets": torch.rand(5, 5, generator=generator) < 0.3,
        "return_states": True,
    }
    found = []
    for names in (None, ["native"] * module.num_layers):
        if names is not None:  # as on a GPU
            monkeypatch.setattr(Options, "_marking", lambda *_, names=names: names)
            monkeypatch.delattr(options_of_calls, "read")
        results = leaves(module(x, **given))
        total = sum(r.pow(2).sum() for r in results)
        found.append((results, torch.autograd.grad(total, [x, *module.parameters()])))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wrong", [6, -1])
def test_a_length_that_is_wrong_is_told_without_being_read(wrong, monkeypatch):
    monkeypatch.setattr(Options, "_marking", lambda *_: ["native"])
    module, x = fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="lengths should be from 0 to the number of steps"):
        module(x, lengths=torch.tensor([wrong, 2]))


def test_kernels_for_marks_are_those_of_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for backend in BACKENDS_OF_SCANS.values():
        taken = [marks.takes_marks(backend, d, p) for d in (cpu, cuda) for p in (False, True)]
        assert taken == [False, False, backend is native, False]
    assert not marks.takes_marks(None, cuda, False)


@pytest.mark.parametrize("how", ["reference", "vmap"])
def test_what_has_no_kernels_for_marks_has_lengths_read(how, monkeypatch):
    # As if they were on a GPU: there the backends are asked.
    def marking(self, *operands):
        asked.append(choose(*operands, every_state=False, marked=True)[0])

    asked = []
    monkeypatch.setattr(Options, "_marking", marking)
    module, x, lengths = fused_rnn.GRU(3, 4), torch.randn(1, 5, 2, 3), torch.tensor([6, 2])

    def run(x):
        return module(x, lengths=lengths)[0]

    told = pytest.raises(ValueError, match=r"lengths should be from 0 to 5.*got: 6 at index 0")
    with fused_rnn.use_backend("reference" if how == "reference" else None), told:
        vmap(run)(x) if how == "vmap" else run(x[0])
    assert asked == [None]

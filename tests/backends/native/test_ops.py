"""The ops themselves, called past the modules: what they tell torch, and what they refuse."""

import pytest
import torch
from torch.library import opcheck

from fused_rnn.backends import Inputs, native
from fused_rnn.cells import CELLS
from tests.operands import OF_OPERANDS, SMALL, SMALL_RAGGED, Shape, make_inputs

pytestmark = pytest.mark.skipif(
    native.available() is not None, reason="the native module was not built"
)

ALL = 0xFF  # every gradient
SOME = 0b1010
SHAPES = {"dense": SMALL, "ragged": SMALL_RAGGED, "empty": Shape(3, 0, 3, 4, bias=False)}
LSTM = ("lstm", False)


def op(cell, way):
    return getattr(torch.ops.fused_rnn, f"{cell}_{way}").default


def operands(variant, shape=SMALL, dtype=torch.float32, device="cpu"):
    """Return the ops' operands by name, batch_sizes included."""
    cell, _ = variant
    inputs, batch_sizes = make_inputs(variant, shape, dtype, device)
    named = {**inputs._asdict(), "batch_sizes": batch_sizes}
    if not CELLS[cell].has_cell_state:
        del named["c0"], named["w_hr"]
    return named


def check_both_ways(variant, named, **utils):
    cell, _ = variant
    args = (*named.values(), True)
    every_c = [True] if CELLS[cell].has_cell_state else []
    opcheck(op(cell, "forward"), (*args, True, *every_c), **utils)
    for given in ((True,), (False, *every_c), (False,)):
        opcheck(op(cell, "forward"), (*args, *given), test_utils=OF_OPERANDS)
    y, *states, saved = op(cell, "forward")(*args, True, *every_c)
    gradients = [torch.ones_like(t) for t in (y, *states)]
    last = [gradients.pop()] if every_c else []
    opcheck(op(cell, "backward"), (*args, y, saved, *gradients, ALL, *last), **utils)
    some = None, *gradients[1:], SOME
    for given in ((*some, *last), some, (*gradients, ALL)):
        opcheck(op(cell, "backward"), (*args, y, saved, *given), test_utils=OF_OPERANDS)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_opcheck(variant, shape, device):
    check_both_ways(variant, operands(variant, shape, device=device))


def test_opcheck_of_half_types(variant, device):
    named = operands(variant, dtype=torch.bfloat16, device=device)
    check_both_ways(variant, named, test_utils=OF_OPERANDS)


def test_opcheck_of_strided_operands(variant, device):
    # What comes back is contiguous, however the operands lie.
    named = {
        name: t if t is None or t.dim() < 2 else t.mT.contiguous().mT
        for name, t in operands(variant, device=device).items()
    }
    check_both_ways(variant, named, test_utils=OF_OPERANDS)


def test_opcheck_of_a_single_step(variant, device):
    named = operands(variant, device=device)
    check_both_ways(variant, {**named, "x": named["x"][0]}, test_utils=OF_OPERANDS)


def of_a_step(variant, dtype=torch.float32):
    """Return the operands of a scan of one step, and those of the op for a step alone."""
    named = operands(variant, dtype=dtype)
    named["x"] = named["x"][0]
    if named.get("w_hr") is not None:
        pytest.skip("a step has no projection")
    alone = {name: t for name, t in named.items() if name not in ("w_hr", "batch_sizes")}
    return named, alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_step_has_the_bits_of_a_scan_of_one(variant, dtype):
    cell, _ = variant
    named, alone = of_a_step(variant, dtype)
    _, *states, _ = op(cell, "forward")(*named.values(), False, False)
    found = op(cell, "step")(*alone.values())
    found = found if cell == "lstm" else [found]
    for state, wanted in zip(found, states[: len(found)], strict=True):
        assert torch.equal(state, wanted)
    opcheck(op(cell, "step"), tuple(alone.values()))


@pytest.mark.parametrize("x", [torch.ones(3, 2, 3), torch.ones(3)], ids=["3-D", "1-D"])
def test_a_step_wants_a_matrix(variant, x):
    _, alone = of_a_step(variant)
    with pytest.raises(RuntimeError, match=r"x should have .*2 .*got"):
        op(variant[0], "step")(*{**alone, "x": x}.values())


def test_gradients_not_needed_are_empty(variant, device):
    cell, _ = variant
    args = (*operands(variant, device=device).values(), False)
    y, *_, saved = op(cell, "forward")(*args, True)
    nothing = [None] * (2 if CELLS[cell].has_cell_state else 1)
    found = op(cell, "backward")(*args, y, saved, torch.ones_like(y), *nothing, SOME)
    for bit, gradient in enumerate(found):
        assert (gradient.numel() > 0) == bool(SOME >> bit & 1)


# Every operand spoilt in every way that leaves it a tensor; none of these may be taken or crash.
SPOIL = {
    "wider": lambda t: torch.cat([t, t], -1),
    "empty": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "one dimension more": lambda t: t[None, None],
    "a scalar": lambda t: t.sum(),
    "another dtype": lambda t: t.double(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
@pytest.mark.parametrize("variant", [("lstm", True), ("gru", False)], ids=["lstm", "gru"])
def test_a_spoilt_operand_is_an_error(variant, spoil, device):
    cell, _ = variant
    named = operands(variant, device=device)
    y, *states, saved = op(cell, "forward")(*named.values(), False, True)
    later = dict(zip(("y", "saved", "dy", "dh_n", "dc_n"), (y, saved, y, *states), strict=False))
    for name, t in {**named, **later}.items():
        if t is None or (name == "w_hr" and spoil is SPOIL["empty"]):  # (0, H) is no projection
            continue
        if name in named:
            with pytest.raises(RuntimeError):
                op(cell, "forward")(*{**named, name: spoil(t)}.values(), False, True)
        spoilt = {**named, **later, name: spoil(t)}
        first = [spoilt[n] for n in named]
        last = [spoilt[n] for n in later]
        with pytest.raises(RuntimeError):
            op(cell, "backward")(*first, False, *last, ALL)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3, 2, 0], "should be positive, got 0 at step 2"),
        ([1, 3, 2], "should not increase, got 1 then 3 at step 1"),
        ([2, 2, 2], "should begin with the batch size of h0, 3, got 2"),
        ([3, 2, 2], "should add up to the rows of x, 6, got 7"),
        ([3, -1], "should be positive, got -1 at step 1"),
        ([], "non-empty 1-D int64"),
        ([[3, 2, 1]], "non-empty 1-D int64"),
        ([3.0, 2.0, 1.0], "non-empty 1-D int64"),
    ],
)
def test_wrong_batch_sizes(variant, sizes, message, device):
    cell, _ = variant
    named = operands(variant, SMALL_RAGGED, device=device)
    assert named["batch_sizes"].tolist() == [3, 2, 1]
    dtype = None if isinstance(sizes and sizes[0], float) else torch.int64
    spoilt = {**named, "batch_sizes": torch.tensor(sizes, dtype=dtype)}
    with pytest.raises(RuntimeError, match=message):
        op(cell, "forward")(*spoilt.values(), False, True)


def test_strided_batch_sizes(variant, device):
    cell, _ = variant
    named = operands(variant, SMALL_RAGGED, device=device)
    strided = torch.tensor([3, 3, 2, 3, 1, 3])[::2]
    found = op(cell, "forward")(*{**named, "batch_sizes": strided}.values(), False, True)
    expected = op(cell, "forward")(*named.values(), False, True)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", lambda t: t[:0], r"x should have at least one step, got shape \(0, 2, 3\)"),
        ("x", lambda t: t[..., 0, 0], r"x should have 3 dimensions .*, got 1"),
        ("h0", lambda t: t[:, :2], r"h0 should have shape \(2, 4\), got \(2, 2\)"),
        ("c0", lambda t: t[0], r"c0 should have shape \(2, 4\), got \(4,\)"),
        ("w_ih", lambda t: t.double(), "w_ih should have the dtype of x, Float, got Double"),
        ("w_hh", lambda t: t[:3], "w_hh should have G.H rows, G = 4, got 3"),
        ("b_hh", lambda t: t[:4], r"b_hh should have shape \(16,\), got \(4,\)"),
        ("x", lambda t: t.long(), "x should be of dtype .*, got Long"),
    ],
)
def test_messages_name_the_operand(name, value, message, device):
    named = operands(LSTM, device=device)
    with pytest.raises(RuntimeError, match=message):
        op("lstm", "forward")(*{**named, name: value(named[name])}.values(), False, True)


def test_saved_of_another_problem_is_an_error(variant, device):
    cell, _ = variant
    args = (*operands(variant, device=device).values(), False)
    y, *_, saved = op(cell, "forward")(*args, True)
    nothing = [None] * (2 if CELLS[cell].has_cell_state else 1)
    spoilt_ones = [torch.cat([saved, saved.new_zeros(1)]), saved.double(), saved[None]]
    if len(saved) > 0:  # a plain RNN's backward may find all that it needs in y
        spoilt_ones += [saved[:-1], op(cell, "forward")(*args, False)[-1]]
    for spoilt in spoilt_ones:
        with pytest.raises(RuntimeError, match="saved should be what the training forward"):
            op(cell, "backward")(*args, y, spoilt, y, *nothing, ALL)


def test_an_operand_on_the_meta_device_is_an_error(variant):
    # torch takes the whole call to the meta device then, where nothing would be computed.
    cell, _ = variant
    named = operands(variant)
    named["w_hh"] = named["w_hh"].to("meta")
    with pytest.raises(RuntimeError, match=r"should be on the device of x, cpu, got meta"):
        op(cell, "forward")(*named.values(), False, False)


def test_none_for_a_tensor_is_an_error(device):
    named = operands(LSTM, device=device)
    for name in Inputs._fields[:5]:
        with pytest.raises(RuntimeError):
            op("lstm", "forward")(*{**named, name: None}.values(), False, True)

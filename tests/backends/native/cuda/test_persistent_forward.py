"""The persistent forward kernels of CUDA, run on the host bench: a whole scan in one launch."""

import pytest
import torch

from tests.conftest import TOLERANCES
from tests.native.core import assert_same_bits
from tests.native.persistent_forward import (
    CLUSTER,
    MEMORY,
    Case,
    Layout,
    bench,
    draw,
    expected,
    fewest_blocks,
    forward,
    shape_of,
    shapes_of,
    step_by_step,
)
from tests.native.simt.library import ORDERS

# Products of halves, of floats rounded to TF32, and of floats as they are.
KINDS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}
EVEN = (4,) * 9
RAGGED = (6, 5, 5, 3, 2, 2, 2, 1, 1, 1)
# Of each number of columns, a compiled shape for each way to meet.
SHAPES = {16: {MEMORY: 2, CLUSTER: 2}, 1: {MEMORY: 8, CLUSTER: 11}}

kinds = pytest.mark.parametrize("kind", KINDS)
meetings = pytest.mark.parametrize("meeting", [MEMORY, CLUSTER])
columns = pytest.mark.parametrize("columns", SHAPES)
directions = pytest.mark.parametrize(
    "reverse", [(False,), (True,), (False, True)], ids=["forward", "reverse", "both"]
)


@pytest.fixture(params=["lstm", "gru", "rnn_tanh", "rnn_relu"])
def cell(request):
    return request.param


def make(
    cell, kind, lengths=EVEN, H=19, meeting=MEMORY, shape=None, chunks=1, columns=16, **changes
):
    dtype, tf32 = KINDS[kind]
    shape = SHAPES[columns][meeting] if shape is None else shape
    layout = Layout(shape, meeting, fewest_blocks(cell, H, shape), chunks)
    return Case(cell, dtype, lengths, H, layout, tf32=tf32, **changes)


def tolerance_of(case):
    """Return what operands of products, rounded as they are, cost."""
    return TOLERANCES[torch.float16 if case.tf32 else case.dtype].forward


def assert_is_expected(case, given, found, reverse):
    """Compare with the specification, and each step with the gate kernels."""
    wanted = expected(case, given, reverse)
    assert found.keys() - {"gates", "extra"} == wanted.keys()
    tolerance = tolerance_of(case)
    for name, tensor in wanted.items():
        # What ends near zero was rounded where it was larger.
        scale = max(values.abs().max().item() for values in (tensor, wanted["y"]))
        torch.testing.assert_close(found[name].double(), tensor, rtol=0, atol=tolerance * scale)
    if not case.training:
        return
    if case.tf32:
        case = case._replace(tf32=False)
    else:
        tolerance = TOLERANCES[torch.float32].forward
    for name, tensor in step_by_step(case, given, found, reverse).items():
        # What is stored in half precision differs by one unit in its last place at most.
        rounding = torch.finfo(tensor.dtype).eps if tensor.dtype.itemsize == 2 else 0
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance + rounding, atol=4 * tolerance, msg=name
        )


def check(case):
    operands = [draw(case) for _ in case.reverse]
    results = forward(case, operands)
    for given, found, reverse in zip(operands, results, case.reverse, strict=True):
        assert_is_expected(case, given, found, reverse)
    return operands, results


@kinds
@meetings
@columns
def test_forward(cell, kind, meeting, columns):
    check(make(cell, kind, meeting=meeting, columns=columns))


@kinds
@meetings
@directions
@columns
def test_ragged(cell, kind, meeting, reverse, columns):
    check(make(cell, kind, RAGGED, meeting=meeting, reverse=reverse, columns=columns))


@meetings
def test_every_shape(cell, meeting):
    for shape in shapes_of(meeting):
        check(make(cell, "float16", (2,) * 5, 70, meeting, shape))
        check(make(cell, "float32", (2,) * 5, 37, meeting, shape))


@kinds
@pytest.mark.parametrize("H", [1, 13, 100])
@meetings
def test_one_sequence(cell, kind, meeting, H):
    for shape in (s for s in shapes_of(meeting) if shape_of(s)[1] == 1):
        case = make(cell, kind, (4,), H, meeting, shape, reverse=(False, True))
        check(case)
        # Over more blocks than it takes, the last of which may have no unit.
        check(case._replace(layout=case.layout._replace(blocks=case.layout.blocks + 3)))


# More than a warp keeps in registers.
@pytest.mark.parametrize("kind", ["tf32", "float32"])
@pytest.mark.parametrize(
    ("shape", "meeting", "H"),
    [
        (8, MEMORY, 1030),
        (9, MEMORY, 530),
        (10, MEMORY, 550),
        (11, CLUSTER, 300),
        (12, CLUSTER, 150),
    ],
)
def test_one_sequence_with_weights_in_shared_memory(kind, shape, meeting, H):
    check(make("rnn_tanh", kind, (3,), H, meeting, shape))


# A sequence that crosses alone takes more blocks, each of which the bench makes of fibres.
@meetings
@pytest.mark.parametrize(("columns", "N"), [(16, 1), (16, 17), (16, 70), (1, 1), (1, 7)])
def test_chunks_and_groups(cell, meeting, columns, N):
    lengths = tuple(sorted(((5 * n) % 4 + 1 for n in range(N)), reverse=True))
    for chunks in (1, 2, 3):
        check(make(cell, "bfloat16", lengths, meeting=meeting, chunks=chunks, columns=columns))


@pytest.mark.parametrize("H", [1, 8, 16, 31, 64])
@meetings
def test_hidden_units(cell, meeting, H):
    check(make(cell, "float16", (3, 3, 2), H, meeting))


@kinds
@meetings
@columns
def test_inference_gives_the_same(cell, kind, meeting, columns):
    case = make(cell, kind, RAGGED, meeting=meeting, reverse=(True,), columns=columns)
    given = draw(case)
    (training,) = forward(case, [given])
    (inference,) = forward(case._replace(training=False), [given])
    assert_same_bits(inference, {name: training[name] for name in inference})


@pytest.mark.parametrize("biases", [(), ("b_ih",), ("b_hh",)], ids=["none", "b_ih", "b_hh"])
def test_absent_biases_are_zero(cell, biases):
    check(make(cell, "float16", biases=biases))


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize(("columns", "kind"), [(16, "float16"), (1, "float16"), (1, "float32")])
@meetings
def test_the_order_of_threads_and_blocks_does_not_matter(cell, kind, meeting, chunks, columns):
    lengths = tuple(n for n in RAGGED for _ in range(2)) if columns > 1 else RAGGED[::2]
    case = make(
        cell, kind, lengths, 31, meeting, chunks=chunks, columns=columns, reverse=(False, True)
    )
    operands = [draw(case) for _ in case.reverse]
    results = []
    for order in ORDERS:
        with bench().order(order):
            results.append(forward(case, operands))
    for found in results[1:]:
        for direction, first in zip(found, results[0], strict=True):
            assert_same_bits(direction, first)


@meetings
@columns
def test_nan_stays_in_its_sequence(cell, meeting, columns):
    case = make(cell, "float16", meeting=meeting, columns=columns)
    given = draw(case)
    (clean,) = forward(case, [given])
    given["h0"][3] = torch.nan
    (found,) = forward(case, [given])
    sequence = torch.arange(sum(case.lengths)) % len(case.lengths)
    for name in ("y", "gates"):
        assert found[name][sequence == 3].isnan().any()
        others = sequence != 3
        assert_same_bits({name: found[name][others]}, {name: clean[name][others]})


def test_blocks_beyond_the_hidden_units(cell):
    case = make(cell, "float16", H=9)
    # Units are shared out evenly: 9 over 7 blocks are 2 each, and the last two blocks have none.
    check(case._replace(layout=case.layout._replace(blocks=7)))


@pytest.mark.parametrize("columns", [16, 1])
def test_more_blocks_than_poll_one_line(columns):
    # 40 blocks poll three copies of their flags, which take two lines each.
    case = make("gru", "float16", (4, 4, 3) * 6 if columns > 1 else (4,), 41, columns=columns)
    case = case._replace(lengths=tuple(sorted(case.lengths, reverse=True)))
    chunks = 2 if columns > 1 else 1
    case = case._replace(layout=case.layout._replace(blocks=40, chunks=chunks))
    operands, results = check(case)
    for order in ORDERS[1:]:
        with bench().order(order):
            (found,) = forward(case, operands)
        assert_same_bits(found, results[0])


def banks(columns, rows, first):
    """Return the banks of words that some rows have of a run of columns."""
    place = bench().library.simt_place_of
    return [place(columns, row, column) % 32 for row in rows for column in first]


@pytest.mark.parametrize("width", [8, 16])
def test_accesses_to_sums_meet_each_bank_once(width):
    place = bench().library.simt_place_of
    for row in range(64):
        # Nothing is in another's place.
        places = {place(width, r, c) for r in (row, row + 1) for c in range(width)}
        assert len(places) == 2 * width
        # As gates are summed up: 8 units of 4 columns, from any row on.
        for first in range(0, width, 4):
            found = banks(width, range(row, row + 8), range(first, first + 4))
            assert sorted(found) == list(range(32))
        # As products leave them: pairs of 8 columns, of 4 rows at a time.
        if row % 4 == 0:
            for first in range(0, width, 8):
                found = banks(width, range(row, row + 4), range(first, first + 8))
                assert sorted(found) == list(range(32))
            pairs = [
                place(width, row, c) + 1 == place(width, row, c + 1) for c in range(0, width, 2)
            ]
            assert all(pairs)

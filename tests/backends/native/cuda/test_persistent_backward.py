"""The persistent backward kernels of CUDA, run on the host bench: a whole scan in one launch."""

import pytest
import torch

from tests.conftest import TOLERANCES
from tests.native.core import assert_same_bits
from tests.native.persistent_backward import (
    MEETINGS,
    Case,
    Layout,
    backward,
    bench,
    draw,
    expected,
    saved_by_forward,
    shape_of,
    shapes_of,
    step_by_step,
)
from tests.native.simt.library import ORDERS
from tests.operands import assert_near

# Products of halves, of floats rounded to TF32, and of floats as they are.
KINDS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}
EVEN = (3,) * 11
RAGGED = (5, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1)  # of two chunks, at least
BLOCKS = {"memory": (0, 3), "cluster": (4, 4), "clusters": (2, 6)}  # cluster, blocks of a group

kinds = pytest.mark.parametrize("kind", KINDS)
meetings = pytest.mark.parametrize("meeting", MEETINGS)
both = pytest.mark.parametrize("reverse", [(False,), (True,)], ids=["forward", "reverse"])


def layouts(meeting, H, chunks=1, blocks=None):
    """Yield a layout for every compiled tile shape that has room for H units."""
    cluster, all_blocks = blocks or BLOCKS[meeting]
    for shape in shapes_of(meeting):
        if -(-H // all_blocks) * max(cluster, 1) <= shape_of(shape)[0]:
            yield Layout(shape, cluster, all_blocks, chunks)


def first_layout(meeting, H, **changes):
    return next(layouts(meeting, H, **changes))


def crosses_alone(layout):
    """Return whether every sequence has a group of its own, so that few fill the bench."""
    return shape_of(layout.shape)[1] == 1


def make(cell, kind, layout, lengths=EVEN, H=21, **changes):
    dtype, tf32 = KINDS[kind]
    return Case(cell, dtype, lengths, H, layout, tf32=tf32, **changes)


def operands_of(case):
    """Return what each direction reads, from a forward of the gate kernels."""
    operands = []
    for reverse in case.reverse:
        given = draw(case)
        operands.append(given | saved_by_forward(case, given, reverse))
    return operands


def assert_is_expected(case):
    """Compare with the specification, and each step with the gate kernels."""
    operands = operands_of(case)
    tolerance = TOLERANCES[torch.float16 if case.tf32 else case.dtype].gradient
    for given, found, reverse in zip(operands, backward(case, operands), case.reverse, strict=True):
        wanted = expected(case, given, reverse)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert_near(found[name], tensor, tolerance)
        # Of gradients that went into products rounded as they are, a rounding may differ.
        rounding = torch.finfo(torch.float16 if case.tf32 else case.dtype).eps
        for name, tensor in step_by_step(case, given, found, reverse).items():
            assert_near(found[name], tensor, rounding + TOLERANCES[torch.float32].gradient)


@kinds
@meetings
@both
def test_gradients(cell, kind, meeting, reverse):
    for layout in layouts(meeting, 21):
        assert_is_expected(make(cell, kind, layout, reverse=reverse))


@kinds
@meetings
@both
def test_ragged(cell, kind, meeting, reverse):
    layout = first_layout(meeting, 21, chunks=2)
    assert_is_expected(make(cell, kind, layout, RAGGED, reverse=reverse))


@pytest.mark.parametrize("lengths", [EVEN, RAGGED], ids=["even", "ragged"])
@meetings
def test_both_directions_in_one_launch(cell, meeting, lengths):
    layout = first_layout(meeting, 21)
    assert_is_expected(make(cell, "float32", layout, lengths, reverse=(False, True)))


@pytest.mark.parametrize("chunks", [1, 3])
@meetings
def test_chunks_and_groups(meeting, chunks):
    lengths = (3,) * 20 + (2,) * 17
    for layout in layouts(meeting, 21, chunks=chunks):
        some = lengths[::4] if crosses_alone(layout) else lengths
        assert_is_expected(make("gru", "float32", layout, some))


@kinds
@pytest.mark.parametrize("H", [1, 13, 100])
@pytest.mark.parametrize("meeting", ["memory", "cluster"])
def test_one_sequence(cell, kind, meeting, H):
    blocks = {"memory": (0, -(-H // 13) + 1), "cluster": (4, 4)}[meeting]
    for layout in filter(crosses_alone, layouts(meeting, H, blocks=blocks)):
        for lengths in ((4,), (4, 3, 1)):
            assert_is_expected(make(cell, kind, layout, lengths, H, reverse=(False, True)))


@pytest.mark.parametrize(
    ("lengths", "H"), [((1,), 1), ((7,), 1), ((1,) * 3, 8), ((2,), 19), ((4, 1), 3)]
)
@meetings
def test_small_sizes(cell, meeting, lengths, H):
    for kind in ("float16", "float32"):
        layout = first_layout(meeting, H)
        assert_is_expected(make(cell, kind, layout, lengths, H))


@pytest.mark.parametrize("H", [1, 5, 64])
def test_a_block_that_is_a_group_alone(cell, H):
    for layout in layouts("cluster", H, blocks=(1, 1)):
        assert_is_expected(make(cell, "float16", layout, H=H))
        assert_is_expected(make(cell, "float32", layout, H=H))


@pytest.mark.parametrize("blocks", [(8, 8), (8, 16), (4, 8), (2, 10)], ids=str)
def test_clusters_of_other_sizes(cell, blocks):
    meeting = "cluster" if blocks[0] == blocks[1] else "clusters"
    for layout in layouts(meeting, 37, blocks=blocks):
        assert_is_expected(make(cell, "bfloat16", layout, H=37))


# 9 units in 3 blocks of 3 leave the fourth without one; 10 in 5 of 2 the last cluster and a half.
@pytest.mark.parametrize(
    ("meeting", "blocks", "H"), [("memory", (0, 4), 9), ("clusters", (2, 8), 10)]
)
def test_blocks_without_a_unit(cell, meeting, blocks, H):
    for layout in layouts(meeting, H, blocks=blocks):
        assert_is_expected(make(cell, "float16", layout, RAGGED, H))


# More than a warp keeps in registers.
@pytest.mark.parametrize(
    ("meeting", "blocks", "H"),
    [("memory", (0, 17), 270), ("cluster", (2, 2), 64), ("clusters", (2, 8), 200)],
)
def test_weights_in_shared_memory(meeting, blocks, H):
    for layout in layouts(meeting, H, blocks=blocks):
        lengths = (2,) if crosses_alone(layout) else (2,) * 9
        for kind in ("tf32", "float32"):
            assert_is_expected(make("lstm", kind, layout, lengths, H))


@pytest.mark.parametrize(
    "absent",
    [("dy",), ("dh_n",), ("dc_n",), ("dh0",), ("dh_n", "dc_n", "dh0", "dc0")],
    ids="-".join,
)
@meetings
def test_absent_gradients(cell, meeting, absent):
    layout = first_layout(meeting, 21)
    assert_is_expected(make(cell, "float32", layout, RAGGED, absent=absent))


@pytest.mark.parametrize("lengths", [(4,) * 19, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("chunks", [1, 2])
@meetings
def test_the_order_of_threads_and_blocks_does_not_matter(meeting, chunks, lengths):
    for layout in layouts(meeting, 21, chunks=chunks):
        some = lengths[::3] if crosses_alone(layout) else lengths
        case = make("lstm", "float16", layout, some, reverse=(False, True))
        operands = operands_of(case)
        results = []
        for order in ORDERS:
            with bench().order(order):
                results.append(backward(case, operands))
        for found in results[1:]:
            for direction, first in zip(found, results[0], strict=True):
                assert_same_bits(direction, first)


@kinds
@meetings
def test_nan_stays_in_its_sequence(cell, kind, meeting):
    case = make(cell, kind, first_layout(meeting, 21), RAGGED)
    operands = operands_of(case)
    clean = backward(case, operands)[0]
    operands[0]["dh_n"][1] = torch.nan
    found = backward(case, operands)[0]
    assert found["dh0"][1].isnan().all()
    row = torch.cat([torch.arange(n) for n in case.batch_sizes])
    for name, tensor in found.items():
        others = (torch.arange(len(tensor)) if name.endswith("0") else row) != 1
        assert_same_bits({name: tensor[others]}, {name: clean[name][others]})


def test_what_has_no_kernel_is_refused():
    compiled = set(shapes_of("memory"))
    missing = next(shape for shape in shapes_of("cluster") if shape not in compiled)
    case = make("lstm", "float32", Layout(missing, 0, 2))
    with pytest.raises(RuntimeError, match="no persistent backward kernel"):
        backward(case, operands_of(case))
    layout = first_layout("memory", 21)
    double = make("lstm", "float32", layout)._replace(dtype=torch.float64)
    with pytest.raises(RuntimeError, match="no persistent kernel for double"):
        backward(double, operands_of(double))


@pytest.mark.parametrize("meeting", ["memory", "clusters"])
def test_more_blocks_than_poll_one_line(meeting):
    blocks = {"memory": (0, 36), "clusters": (2, 36)}[meeting]
    layout = first_layout(meeting, 37, chunks=2, blocks=blocks)
    assert_is_expected(make("gru", "float16", layout, RAGGED, 37, reverse=(True,)))

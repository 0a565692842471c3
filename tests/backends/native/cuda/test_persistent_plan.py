"""The plan of persistent kernels, on devices made up: that it fits, covers and says why."""

from itertools import product

import pytest

from tests.native.build import UnbuildableError
from tests.native.plans import (
    A100,
    BYTES,
    GATES,
    H100,
    SLICE,
    SMALL,
    TURING,
    Problem,
    known_plan,
    plan,
)

DEVICES = {"h100": H100, "a100": A100, "small": SMALL, "slice": SLICE}
HIDDEN = (1, 7, 19, 64, 100, 128, 192, 256, 300, 512, 650, 768, 1000, 1024, 1152, 1536, 2048)
BATCHES = (1, 3, 8, 16, 20, 64, 128, 256, 1000)


@pytest.fixture(scope="module", autouse=True)
def _built():
    try:
        plan(Problem(), H100)
    except UnbuildableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=DEVICES.values(), ids=DEVICES.keys())
def device(request):
    return request.param


def problems():
    """Return a spread of problems that kernels could take."""
    kinds = (("float16", False), ("bfloat16", False), ("float32", False), ("float32", True))
    for cell, (dtype, tf32), H, N, backward, directions in product(
        GATES, kinds, HIDDEN, BATCHES, (False, True), (1, 2)
    ):
        yield Problem(cell, dtype, H, N, backward=backward, tf32=tf32, directions=directions)


def planned(device):
    """Return the problems that have a plan, with it."""
    found = [(p, plan(p, device)) for p in problems()]
    kept = [(p, a) for p, a in found if a.found]
    assert len(kept) > len(found) / 4
    return kept


def test_every_plan_covers_the_problem(device):
    for p, a in planned(device):
        assert a.units * a.blocks >= p.H, p
        assert 0 < a.units <= p.H, p
        sequences = a.chunks * a.columns
        assert a.groups * sequences >= p.N > (a.groups - 1) * sequences, p
        assert a.padded_depth >= a.depth, p
        rows = a.units * (max(a.cluster, 1) if p.backward else GATES[p.cell])
        assert rows <= a.rows, p


def test_every_plan_multiplies_all_weights(device):
    for p, a in planned(device):
        slices = a.cluster if p.backward and a.cluster > 0 else 1
        assert a.depth * slices >= p.H * (GATES[p.cell] if p.backward else 1), p


def test_every_plan_fits_in_shared_memory(device):
    for p, a in planned(device):
        assert a.shared_bytes <= device.shared_bytes, p
        # Weights that are neither in registers nor in shared memory would be nowhere.
        assert a.shared_bytes + a.register_bytes >= a.rows * a.depth * BYTES[p.dtype], p


def test_blocks_that_wait_for_each_other_are_there_together(device):
    for p, a in planned(device):
        blocks = a.groups * a.blocks * p.directions
        if a.cluster == 0:
            assert blocks <= device.sms, p
            continue
        at_once = device.clusters_at_once[(1, 2, 4, 8).index(a.cluster)]
        assert at_once > 0, p
        assert a.blocks % a.cluster == 0, p
        if a.cluster < a.blocks:
            assert blocks // a.cluster <= at_once, p
            assert p.backward, p


def test_scratch_is_what_meets_in_memory(device):
    for p, a in planned(device):
        assert (a.scratch_bytes > 0) == (a.cluster != a.blocks), p
        chunks = p.directions * a.groups * a.chunks
        if a.scratch_bytes:
            ranks = a.cluster or 1
            states = 2 * ranks * a.padded_depth * a.columns * BYTES[p.dtype]
            flags = ranks * a.flag_copies * a.flag_stride
            assert a.scratch_bytes == chunks * (states + 4 * flags), p


def test_flags_have_lines_of_their_own(device):
    for p, a in planned(device):
        members = a.blocks // (a.cluster or 1)
        assert a.flag_stride >= members, p
        assert a.flag_stride % 32 == 0, p
        # A warp of each block polls a line; a lane of one warp writes each copy.
        assert 1 <= a.flag_copies <= 8, p
        assert members / a.flag_copies <= 16 or a.flag_copies == 8, p


def test_no_cluster_where_the_device_has_none():
    for device in (A100, SMALL, H100._replace(clusters=(132, 0, 0, 0))):
        assert {a.cluster for _, a in planned(device)} == {0, 1}


def test_every_shape_is_of_use():
    used = {a.shape for device in DEVICES.values() for _, a in planned(device)}
    assert used == set(range(13))


def test_every_way_to_meet_is_of_use():
    ways = {(p.backward, (a.cluster > 0) + (a.cluster == a.blocks)) for p, a in planned(H100)}
    assert ways == {(False, 0), (False, 2), (True, 0), (True, 1), (True, 2)}


def test_small_layers_stay_in_one_block_or_cluster():
    for backward in (False, True):
        assert plan(Problem(H=32, backward=backward), H100).blocks == 1
        for H in (128, 256):
            a = plan(Problem(H=H, N=256, backward=backward), H100)
            assert a.cluster == a.blocks > 1
            assert a.groups > 1


def test_the_anchor_takes_most_of_the_device():
    for backward in (False, True):
        a = plan(Problem(backward=backward), H100)
        assert 64 <= a.blocks * a.groups <= 132


def test_sequences_that_cross_alone_do_not_take_turns(device):
    for p, a in planned(device):
        if a.columns == 1:
            assert (a.chunks, a.groups) == (1, p.N), p


def test_one_sequence_crosses_alone():
    kinds = (("bfloat16", False), ("float32", False), ("float32", True))
    for cell, (dtype, tf32), H, backward in product(
        ("lstm", "gru"), kinds, (100, 128, 256, 512, 768, 1024), (False, True)
    ):
        few = Problem(cell, dtype, H, N=1, backward=backward, tf32=tf32)
        one, eight = (plan(few._replace(N=N), H100) for N in (1, 8))
        assert one.columns == 1, few
        assert one.microseconds <= eight.microseconds, few


def test_two_directions_share_the_device():
    for backward in (False, True):
        one, two = (plan(Problem(backward=backward, directions=d), H100) for d in (1, 2))
        assert 2 * two.blocks * two.groups <= 132
        assert two.microseconds >= one.microseconds


def test_two_directions_are_not_slower_than_one_after_the_other(device):
    for p, a in planned(device):
        alone = plan(p._replace(directions=1), device)
        if p.directions == 2 and alone.found:
            assert a.microseconds <= 2 * alone.microseconds, p
    either = Problem(dtype="float32", H=256, N=1000, tf32=True)
    assert plan(either, H100).found
    words = plan(either._replace(directions=2), H100).words
    reason = "a step of both directions should take 8.3 us one after the other, and 10.4 us at once"
    assert words == reason


def test_a_smaller_device_is_not_quicker():
    for p in (p for p in problems() if p.directions == 1):
        large, small = plan(p, H100), plan(p, SLICE)
        if small.found:
            assert large.found, p
            assert large.microseconds <= small.microseconds, p


@pytest.mark.parametrize(
    ("problem", "device", "reason"),
    [
        (Problem(dtype="float64"), H100, "no persistent kernel for float64"),
        (Problem(P=32), H100, "no persistent kernel for projections"),
        (Problem(), TURING, "persistent kernels need sm_80, this is sm_75"),
        (Problem(), H100._replace(cooperative=False), "this device has no cooperative launch"),
        (Problem(N=0), H100, "there is no sequence"),
        (Problem(T=1), H100, "a single step has nothing to keep on the chip"),
        (Problem(T=2**31), H100, "more steps than a flag can count"),
        (
            Problem(H=4096),
            H100,
            "the recurrent weights in bfloat16, 128 MB, and the states of N = 16 fit in no "
            "compiled way on 132 SMs with 227 KB of shared memory each",
        ),
        (Problem(H=768), SLICE, "the recurrent weights in bfloat16, 4.5 MB, and the states"),
        (Problem(H=2048, N=256), H100, "a step should take 23.2 us with launches of its own"),
        (Problem(N=2**31 - 17), H100, "fit in no compiled way"),
        (Problem(N=2**31 - 16), H100, "more sequences than a kernel can count"),
        (Problem(H=0), H100, "there is no hidden unit"),
        (Problem(H=2**30), H100, "fit in no compiled way"),
    ],
)
def test_refusals_say_why(problem, device, reason):
    for backward in (False, True):
        answer = plan(problem._replace(backward=backward), device)
        assert not answer.found
        assert answer.words.startswith(reason) or reason in answer.words


def test_an_inference_does_not_take_much_more_than_its_results():
    # 4 gates of 768 units, 4 bytes each: 87381 rows are a GB.
    fits, does_not = (Problem(T=T, N=16, training=False) for T in (5461, 5462))
    assert plan(fits, H100).found
    answer = plan(does_not, H100)
    reason = "the input products of all steps at once would take an inference 1024.1 MB"
    assert answer.words == reason
    for kept in (does_not._replace(training=True), does_not._replace(backward=True)):
        assert plan(kept, H100).found
    assert plan(fits._replace(directions=2, T=2730), H100).found
    assert plan(fits._replace(directions=2, T=2731), H100).words == reason.replace("1.1", "1.3")


def test_plans_are_put_in_words():
    a = plan(Problem(), H100)
    assert a.words == (
        "1 group of 96 blocks that meet through flags in memory, 8 hidden units a block (32 of 32 "
        "rows, depth 768), weights in registers 48 KB and in shared memory 0 KB of "
        f"{a.shared_bytes / 1024:.1f} KB, 2 chunks of 8 sequences"
    )
    a = plan(Problem(H=1024, N=1), H100)
    assert a.words == (
        "1 group of 128 blocks that meet through flags in memory, 8 hidden units a block (32 of 32 "
        "rows, depth 1024), weights in registers 64 KB and in shared memory 0 KB of "
        f"{a.shared_bytes / 1024:.1f} KB, 1 chunk of 1 sequence"
    )
    words = plan(Problem(H=256, N=64), H100).words
    assert words.startswith("4 groups of 8 blocks that are one cluster, 32 hidden units a block")
    words = plan(Problem(H=32), H100).words
    assert words.startswith("16 groups of 1 block that has all weights, 32 hidden units a block")
    words = plan(Problem(backward=True), H100).words
    assert "in clusters of 8 that split the depth and meet through flags in memory" in words


def test_a_plan_that_was_made_is_remembered():
    problem = Problem(H=416, N=24)  # nobody else's
    first, made = known_plan(problem, H100)
    again, after = known_plan(problem, H100)
    assert (after, bytes(first)) == (made, bytes(again))
    assert bytes(first) == bytes(plan(problem, H100))
    # How many steps there are is no matter, as long as there is something to keep for the next one.
    assert known_plan(problem._replace(T=7), H100)[1] == made
    alone, after = known_plan(problem._replace(T=1), H100)
    assert (alone.found, after) == (0, made)
    assert alone.words.startswith("a single step")


def test_whatever_a_plan_hangs_on_makes_another():
    problem = Problem("gru", "float32", H=424, N=24)
    _, made = known_plan(problem, H100)
    others = (
        {"cell": "lstm"}, {"dtype": "float16"}, {"tf32": True}, {"H": 432}, {"N": 40},
        {"backward": True}, {"training": False}, {"directions": 2},
    )  # fmt: skip
    for count, change in enumerate(others, start=1):
        found, after = known_plan(problem._replace(**change), H100)
        assert after == made + count, change
        assert bytes(found) == bytes(plan(problem._replace(**change), H100))
    for count, device in enumerate((A100, SMALL, H100._replace(sms=100)), start=1):
        found, after = known_plan(problem, device)
        assert after == made + len(others) + count
        assert bytes(found) == bytes(plan(problem, device))


def test_more_plans_than_are_remembered():
    for N in range(1, 1100):
        known_plan(Problem(N=N, H=8), SMALL)
    for N in (1, 1099):
        found, _ = known_plan(Problem(N=N, H=8), SMALL)
        assert bytes(found) == bytes(plan(Problem(N=N, H=8), SMALL))


def test_a_device_without_code_has_no_plan():
    assert plan(Problem(), H100._replace(capability=0)).words == (
        "this build has no kernels for this device"
    )

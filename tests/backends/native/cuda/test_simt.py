"""The host bench itself: it runs right kernels rightly, and finds what is wrong with others."""

import ctypes
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.native.build import UnbuildableError
from tests.native.simt.library import BACKWARD, FORWARD, ORDERS, SIMT, TOYS, machine, program

BLOCK = 64  # kToyBlock

orders = pytest.mark.parametrize("order", ORDERS)


def play(toy, order=FORWARD):
    """Run a toy; return what it read and what it wrote, flat; -1 where it wrote nothing."""
    toys = machine("toys", TOYS)
    given = np.random.default_rng(0).standard_normal(5 * BLOCK).astype(np.float32)
    out = np.full(5 * BLOCK, -1, np.float32)
    with toys.order(order):
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (given, out))
        toys.function("simt_toy")(toy.encode(), *pointers)
    return given, out


@orders
def test_indices(order):
    _, out = play("indices", order)
    threads = 2 * 3 * 2 * (4 * 2 * 3)
    np.testing.assert_array_equal(out[:threads], np.arange(threads))
    assert (out[threads:] == -1).all()


@orders
def test_a_reduction_in_dynamic_shared_memory(order):
    given, out = play("block_sum", order)
    np.testing.assert_allclose(out[:3], given.reshape(5, BLOCK)[:3].sum(1), rtol=1e-5)


@orders
def test_static_shared_memory(order):
    given, out = play("reverse", order)
    np.testing.assert_array_equal(out[:BLOCK], given[:BLOCK][::-1])


@orders
def test_a_reduction_by_shuffles(order):
    given, out = play("warp_sum", order)
    sums = given[: 3 * BLOCK].reshape(-1, 32).sum(1)
    np.testing.assert_allclose(out[: 3 * BLOCK], sums.repeat(32), rtol=1e-4)


@orders
def test_shuffles_within_eight_lanes(order):
    given, out = play("shuffles", order)
    lane = np.arange(BLOCK)
    of_group = lane % 8
    sources = [
        np.where(of_group < 3, lane, lane - 3),
        np.where(of_group >= 5, lane, lane + 3),
        lane - of_group + 5,
        # A lane of a lower group can be read, one of a higher group cannot.
        np.where((lane ^ 9) // 8 > lane // 8, lane, lane ^ 9),
    ]
    np.testing.assert_array_equal(out[: 4 * BLOCK], given[np.concatenate(sources)])


@orders
def test_shuffles_among_some_lanes(order):
    given, out = play("half_warps", order)
    lane = np.arange(BLOCK)
    np.testing.assert_array_equal(out[:BLOCK], given[lane ^ np.where(lane % 32 < 16, 15, 1)])


def test_a_missing_barrier_shows_in_every_order():
    found = {order: play("reverse_without_barrier", order)[1][:BLOCK] for order in ORDERS}
    for out in found.values():
        assert np.isnan(out).any()
    assert (np.isnan(found[FORWARD]) != np.isnan(found[BACKWARD])).all()


@pytest.mark.parametrize(("order", "winner"), [(FORWARD, 4), (BACKWARD, 0)])
def test_the_order_of_blocks(order, winner):
    assert play("last_block_wins", order)[1][0] == winner


def test_random_orders_repeat():
    seeds = range(2, 12)
    winners = [[play("last_block_wins", seed)[1][0] for seed in seeds] for _ in range(2)]
    assert winners[0] == winners[1]
    assert len(set(winners[0])) > 2


def test_shared_memory_begins_as_nan():
    assert np.isnan(play("unwritten")[1][:BLOCK]).all()
    _, out = play("stale")
    assert (out[:BLOCK] == 1).all()
    assert np.isnan(out[BLOCK : 2 * BLOCK]).all()


@orders
def test_blocks_of_a_cooperative_launch_wait_for_each_other(order):
    given, out = play("relay", order)
    wanted = np.zeros(BLOCK)
    for b in range(4):
        wanted = given.reshape(5, BLOCK)[b] + np.roll(wanted, -32)
        np.testing.assert_allclose(out.reshape(5, BLOCK)[b], wanted, rtol=1e-4, atol=1e-6)


@orders
def test_blocks_of_a_cooperative_launch_are_alive_together(order):
    assert (play("meet", order)[1][: 4 * BLOCK] == 1).all()


def test_a_large_launch_leaves_the_process_its_mappings():
    def mappings():
        return len(Path("/proc/self/maps").read_text().splitlines())

    play("reverse")
    before = mappings()
    play("crowd", FORWARD)  # two mappings for each of 16384 threads; a process may have 65530
    assert mappings() - before <= 2 * 1024


_STARVED = """
import resource
from pathlib import Path
from tests.backends.native.cuda.test_simt import play
mappings = lambda: len(Path("/proc/self/maps").read_text().splitlines())
play("reverse")
before = mappings()
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), room[1]))
for order in (0, 2, 3):
    try:
        play("crowd", order)
    except RuntimeError as error:
        print(error, mappings() - before <= 2 * 1024)
resource.setrlimit(resource.RLIMIT_AS, room)
"""


def test_a_launch_without_room_gives_back_what_it_had():
    play("reverse")
    run = subprocess.run(
        [sys.executable, "-c", _STARVED], capture_output=True, text=True, cwd=SIMT.parents[2]
    )
    assert run.stdout.splitlines() == ["std::bad_alloc True"] * 3, run.stderr


@orders
def test_a_release_does_not_publish_what_other_threads_wrote_without_a_barrier(order):
    right, wrong = (play(toy, order)[1] for toy in ("relay", "relay_without_barrier"))
    assert (right[BLOCK:] != wrong[BLOCK:]).any()


@orders
def test_members_of_a_cluster_write_into_each_others_shared_memory(order):
    _, out = play("neighbours", order)
    # Blocks 0 and 1 are a cluster, 2 and 3 are another.
    np.testing.assert_array_equal(out[: 4 * BLOCK].reshape(4, BLOCK)[:, 0], [1, 0, 3, 2])


@orders
def test_a_missing_wait_for_the_cluster_shows(order):
    assert np.isnan(play("neighbours_without_wait", order)[1][: 4 * BLOCK]).any()


@pytest.mark.parametrize(("toy", "depth", "eps"), [("half", 16, 2**-11), ("bfloat16", 16, 2**-8)])
def test_a_product_of_halves(toy, depth, eps):
    assert_is_product(toy, depth, eps)


def test_a_product_of_rounded_floats():
    assert_is_product("tf32", 8, 2**-11)
    a, b, out = product("tf32", 8)
    exact = nearest(a) @ nearest(b) + 1
    np.testing.assert_allclose(out, exact, rtol=0, atol=2**-20 * np.abs(exact).max())


def nearest(x):
    """Return numbers rounded to the 10 bits of fraction that tf32 has."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)


def product(toy, depth):
    """Return A, B and what the toy makes of them."""
    given, out = play(f"product_{toy}")
    a = given[: 16 * depth].reshape(16, depth)
    b = given[4 * depth :][: depth * 8].reshape(depth, 8)
    return a, b, out[: 16 * 8].reshape(16, 8)


def assert_is_product(toy, depth, eps):
    a, b, out = product(toy, depth)
    most = 2 * eps * (np.abs(a) @ np.abs(b)) + eps
    off = np.abs(out - (a @ b + 1))
    assert (off <= most).all()
    assert (off > 0).any()  # the operands were rounded


FAILURES = {
    "some_leave": r"block \([01], 0, 0\): .*48 have left the kernel, 16 wait at __syncthreads in ",
    "two_barriers": r"block \(0, 0, 0\): .*32 wait at __syncthreads in line (\d+), 32 wait at __sy",
    "warp_against_block": r"1 wait at __syncthreads in line \d+, 31 wait at __syncwarp",
    "absent_lane": r"__shfl_down_sync in line \d+ reads from lane 16, which takes no part",
    "not_in_mask": r"__syncwarp in line \d+ has a mask without the calling lane",
    "nobody_answers": r"block \(0, 0, 0\): .*64 poll in line \d+ for 1, at 0; block \(1, 0, 0\)",
    "meet_apart": r"block \([0-3], 0, 0\): threads wait in vain: .*poll in line \d+ for 1, at 0",
    "arrives_twice": r"arrives at the cluster's barrier in line \d+ and has not waited since",
    "has_not_arrived": r"waits for the cluster in line \d+ and has not arrived",
    "one_stays_away": r"block \(0, 0, 0\): .*64 wait for the cluster in line \d+",
    "no_such_member": r"shared memory of block 2 at 0: there is none",
    "leaves_early": r"block \([01], 0, 0\): it writes to block \([01], 0, 0\) .* which has left",
    "writes_late": r"has written to block \([01], 0, 0\) of its cluster, which may have left",
    "odd_clusters": r"a grid of \(3, 1, 1\) has no clusters of 2",
    "stray_write_to_shared": r"block \(0, 0, 0\): it has written beyond its shared memory",
    "half_a_product": r"16 have left the kernel, 16 wait at mma|mma in line \d+ lacks some",
    "too_many_rows": r"invalid configuration, grid \(1, 65536, 1\), block \(1, 1, 1\)",
}


@pytest.mark.parametrize("toy", FAILURES)
@orders
def test_what_cannot_go_on_is_an_error(toy, order):
    with pytest.raises(RuntimeError, match=f"^{toy}.*{FAILURES[toy]}"):
        play(toy, order)
    given, out = play("reverse", order)  # the machine still runs
    np.testing.assert_array_equal(out[:BLOCK], given[:BLOCK][::-1])


@functools.cache
def _sanitized_or_reason():
    try:
        return program("toys_sanitized", SIMT / "toys_main.cpp", TOYS)
    except UnbuildableError as reason:
        return str(reason)


def play_sanitized(*toys):
    path = _sanitized_or_reason()
    if isinstance(path, str):
        pytest.skip(path)
    return subprocess.run([path, *toys], capture_output=True, text=True)


def test_right_kernels_under_the_sanitizers():
    alone = ("block_sum", "warp_sum", "shuffles", "reverse", "half_warps")
    run = play_sanitized(*alone, "relay", "neighbours", "product_half")
    assert (run.returncode, run.stdout) == (0, "")
    assert not re.search("ERROR|runtime error", run.stderr)


def test_failures_under_the_sanitizers():
    run = play_sanitized("warp_sum", "some_leave")
    assert run.returncode == 2
    assert "wait in vain" in run.stdout
    assert not re.search("ERROR|runtime error", run.stderr)


@pytest.mark.parametrize(
    ("toy", "report"),
    [
        ("stray_read", "heap-buffer-overflow"),
        ("stray_write", "heap-buffer-overflow"),
        ("stray_shared", "heap-buffer-overflow"),
        ("stray_static", "index 64 out of bounds"),
    ],
)
def test_the_sanitizers_see_what_is_out_of_bounds(toy, report):
    run = play_sanitized(toy)
    assert run.returncode not in (0, 2)
    assert report in run.stderr

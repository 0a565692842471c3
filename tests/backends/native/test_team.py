"""Teams of threads in the kernels: who computes what, and when, does not change the results."""

import pytest
import torch

from tests.native.core import EACH_LEVEL, assert_same_bits, bench_for, run
from tests.native.scans import VARIANTS, make_scan
from tests.operands import Shape, ragged

pytestmark = pytest.mark.parametrize("level", EACH_LEVEL)
variants = pytest.mark.parametrize("variant", VARIANTS)

# Enough work that every cell takes eight members. The first has few columns, so rows are cut too.
SHAPES = {
    "many-rows": Shape(6, 450, 7, 18),
    "many-columns": Shape(5, 16, 40, 110),
    "few-rows": Shape(9, 3, 5, 230, bias=False),
    "ragged": ragged([(5 * n) % 9 + 1 for n in range(40)], 9, 75),
    "large-weights": Shape(3, 5, 700, 395),
    # Deep sums of items that have more rows than a tile, and of such that have not.
    "deep-sums": Shape(3, 20, 5, 300),
}
PARALLELS = ["threads", "only_first", "only_last", "in_turn", "late", "crowded", "interrupted"]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def team_shape(request):
    """Each shape with work for a team."""
    return request.param


@variants
@pytest.mark.parametrize("parallel", PARALLELS)
def test_members_may_come_late_or_never(level, variant, parallel):
    scan = make_scan(variant, SHAPES["ragged"], reverse=True)
    alone = run(level, scan)
    for threads in (2, 3, 8):
        found = run(level, scan, threads=threads, parallel=parallel)
        assert bench_for(level).last_members() == threads
        assert_same_bits(found, alone)


@variants
def test_results_do_not_depend_on_threads_or_run(level, variant, team_shape):
    scan = make_scan(variant, team_shape)
    alone = run(level, scan)
    assert bench_for(level).last_members() == 0
    assert all(not tensor.isnan().any() for tensor in alone.values())
    for threads in (2, 3, 8):
        for _ in range(2):
            assert_same_bits(run(level, scan, threads=threads), alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["lstm-projected", "gru"])
def test_results_of_other_types_do_not_depend_on_threads(level, variant, dtype, team_shape):
    scan = make_scan(variant, team_shape, dtype=dtype)
    assert_same_bits(run(level, scan, threads=3), run(level, scan))


@pytest.mark.parametrize("threads", [0, 1])
def test_one_thread_needs_no_parallel(level, threads):
    scan = make_scan("lstm", SHAPES["many-columns"])
    found = run(level, scan, threads=threads)
    assert bench_for(level).last_members() == 0
    assert_same_bits(found, run(level, scan, threads=2))


def test_little_work_takes_one_thread(level):
    run(level, make_scan("lstm", Shape(9, 2, 8, 16)), threads=8)
    assert bench_for(level).last_members() == 0

"""The Triton kernels compiled for GPUs that need not be there: none spills, none takes too much."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

if util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from fused_rnn.backends.triton.whole import COMPILED_FOR, LIMITS
from tests.backends.triton.table import Row

# Bytes of shared memory that a block may have.
SHARED = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# The others are compiled for in part, to keep this short.
WHOLLY = (80, 90, 100)


def test_every_gpu_that_is_taken_is_compiled_for():
    assert {10 * major + minor for major, minor in COMPILED_FOR} == set(SHARED)


def rows_of(arch, *part):
    """Return the table of a GPU, or of a part of the kernels."""
    # In a Python of its own: where Triton's compiler fails an assertion, it ends the process.
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.triton.table", str(arch), *part],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    return [Row(*json.loads(line)) for line in done.stdout.splitlines()]


def assert_fit(rows, arch):
    assert [row for row in rows if row.spilt] == []
    assert [row for row in rows if row.shared > SHARED[arch]] == []


# Products on tensor cores as Hopper has them, and as all others do.
@pytest.mark.parametrize("arch", [90, 120])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_each_kernel_fits_at_its_largest(dtype, arch):
    assert_largest_fit(dtype, arch)


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types_that_differ_in_width_alone(dtype, arch):
    assert_largest_fit(dtype, arch)


def assert_largest_fit(dtype, arch):
    rows = rows_of(arch, "each", dtype)
    whole = {row.cell for row in rows if row.kernel.endswith("sequence")}
    size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    assert whole == {cell for cell, itemsize in LIMITS if itemsize == size}
    assert_fit(rows, min(SHARED, key=SHARED.get))  # one compiled for another GPU takes as much


@pytest.mark.parametrize("arch", SHARED)
def test_no_kernel_spills(arch):
    rows = rows_of(arch, *(() if arch in WHOLLY else ("largest",)))
    assert {(row.cell, row.dtype) for row in rows if row.kernel.endswith("sequence")} == {
        (cell, dtype)
        for cell, size in LIMITS
        for dtype in {2: ("float16", "bfloat16"), 4: ("float32",)}[size]
    }
    assert_fit(rows, arch)

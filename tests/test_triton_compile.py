"""The Triton kernels compiled for GPUs that need not be there: none spills, none takes too much."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

if util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from triton_table import Row

from fused_rnn.backends.triton_whole import COMPILED_FOR, LIMITS

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


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED)
def test_no_kernel_spills(arch):
    # In a Python of its own: where Triton's compiler fails an assertion, it ends the process.
    part = () if arch in WHOLLY else ("largest",)
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_table", str(arch), *part],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    rows = [Row(*json.loads(line)) for line in done.stdout.splitlines()]
    assert {(row.cell, row.dtype) for row in rows if row.kernel.endswith("sequence")} == {
        (cell, dtype)
        for cell, size in LIMITS
        for dtype in {2: ("float16", "bfloat16"), 4: ("float32",)}[size]
    }
    assert [row for row in rows if row.spilt] == []
    assert [row for row in rows if row.shared > SHARED[arch]] == []

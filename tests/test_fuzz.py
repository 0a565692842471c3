"""Operands that do not fit, a thousand times: an error or what the equations say, and no crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_an_error_or_the_right_numbers(kind, request):
    core = request.config.getoption("--core")
    command = [sys.executable, "-m", "tests.fuzz", kind, "0", "400" if core else "2000"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-2000:]}"
    *wrong, counts = run.stdout.splitlines()
    assert wrong == []
    assert all(int(count) > 10 for count in counts.split())

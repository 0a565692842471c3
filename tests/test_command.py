"""How command lines end: with their status, and quietly where nobody reads what they write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused_rnn.command import READER_GONE, run

ROOT = Path(__file__).parents[1]


def unread(*arguments):
    """Run Python, with nobody at the other end of its standard output."""
    # Unbuffered, argparse itself swallows the error of its help.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    return process.stderr.read().decode(), process.wait(120)


# Without the package, which takes seconds to import.
PROGRAM = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT / "fused_rnn")!r})
from command import run

def main():
    argparse.ArgumentParser().parse_args()
    for _ in range({{lines}}):
        print("a line")

run(main)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", PROGRAM.format(lines=1)),  # still in the buffer at the end
        ("-c", PROGRAM.format(lines=100_000)),
        ("-u", "-c", PROGRAM.format(lines=1)),
        ("-c", PROGRAM.format(lines=1), "--help"),
        ("-m", "benchmarks", "--list", "--device", "cpu"),
        ("-m", "tests.mutants", "--list"),
        ("-m", "fused_rnn", "--help"),
    ],
    ids=["short", "long", "unbuffered", "help", "benchmarks", "mutants", "doctor"],
)
def test_no_traceback_where_the_reader_has_gone(arguments):
    assert unread(*arguments) == ("", READER_GONE)


@pytest.mark.parametrize(("ends", "status"), [(lambda: 3, 3), (lambda: None, None)])
def test_the_status_is_mains(ends, status):
    with pytest.raises(SystemExit) as stop:
        run(ends)
    assert stop.value.code == status


def test_the_status_is_that_of_argparse():
    with pytest.raises(SystemExit) as stop:
        run(lambda: sys.exit(2))
    assert stop.value.code == 2


def test_other_errors_are_seen():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)

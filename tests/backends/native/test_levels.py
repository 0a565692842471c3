"""Which SIMD levels the native module has, and which of them runs."""

import os

import pytest

from fused_rnn.backends import native
from tests.native.build import LEVELS, ROOT, levels_of, shipped_library
from tests.native.core import EACH_LEVEL
from tests.test_import import run_python

pytestmark = pytest.mark.skipif(
    native.available() is not None, reason="the native module was not built"
)


def test_every_level_was_built():
    record = ROOT / "build" / "level"  # of make build
    asked = os.environ.get("FUSED_RNN_LEVEL", "") + (record.read_text() if record.exists() else "")
    if set(asked.split()) & LEVELS.keys():
        pytest.skip(f"built for {asked.strip()} alone")
    assert levels_of(shipped_library()) == LEVELS


def level_that_runs(**environment):
    out, err = run_python(
        "import fused_rnn\nprint(fused_rnn.backends.native.simd_level())", **environment
    )
    return out or err


@pytest.mark.parametrize("level", EACH_LEVEL)
def test_the_level_asked_for_runs(level):
    assert level_that_runs(FUSED_RNN_SIMD=level) == level


@pytest.mark.parametrize("asked", ["", None], ids=["empty", "unset"])
def test_the_best_runs_where_none_is_asked_for(asked):
    best = [parameter.values[0] for parameter in EACH_LEVEL if not parameter.marks[0].args[0]][-1]
    assert level_that_runs(**({} if asked is None else {"FUSED_RNN_SIMD": asked})) == best

"""Which SIMD levels the native module has, and which of them runs."""

import json
import os

import pytest
import torch

import fused_rnn
from fused_rnn.backends import Problem, native
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


@pytest.fixture(scope="module")
def said():
    """What processes say that ask for a level, for "" and for none: which runs, and of calls.

    A process decides once. So one imports torch, which takes seconds, and has a child for each.
    """
    levels = [parameter.values[0] for parameter in EACH_LEVEL if not parameter.marks[0].args[0]]
    code = (
        "import json, os\n"
        f"for asked in {[*levels, '', None]}:\n"
        "    if os.fork() == 0:\n"
        "        if asked is not None: os.environ['FUSED_RNN_SIMD'] = asked\n"
        "        from fused_rnn.backends import native\n"
        "        from tests.backends.native.test_levels import CALL, ON_TILES, ON_VECTORS\n"
        "        calls = *ON_TILES, *ON_VECTORS, CALL._replace(ragged=True)\n"
        "        told = asked, native.simd_level(), [native.plan(call) for call in calls]\n"
        "        print(json.dumps(told), flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0\n"
    )
    out, err = run_python(code)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == len(levels) + 2, err
    return {asked: (level, words) for asked, level, words in rows}


@pytest.mark.parametrize("level", EACH_LEVEL)
def test_the_level_asked_for_runs(level, said):
    assert said[level][0] == level


@pytest.mark.parametrize("asked", ["", None], ids=["empty", "unset"])
def test_the_best_runs_where_none_is_asked_for(asked, said):
    best = [parameter.values[0] for parameter in EACH_LEVEL if not parameter.marks[0].args[0]][-1]
    assert said[asked][0] == best


CALL = Problem("lstm", torch.device("cpu"), torch.float32, 20, 32, 8, 256, 0, False, False, None)
# What tiles pay for, and what they do not: one of each kind.
ON_TILES = (CALL, CALL._replace(dtype=torch.bfloat16), CALL._replace(cell="gru", training=True))
ON_VECTORS = (
    CALL._replace(N=1),
    CALL._replace(H=16),
    CALL._replace(T=1),
    CALL._replace(P=8),
    CALL._replace(dtype=torch.float64),
    CALL._replace(dtype=torch.float16),
)


@pytest.mark.parametrize("level", EACH_LEVEL[:-1])
def test_a_level_of_vectors_takes_every_call(level, said):
    assert set(said[level][1]) == {level}


@pytest.mark.parametrize("level", EACH_LEVEL[-1:])
def test_the_level_of_a_call_is_told(level, said):
    expected = [level] * len(ON_TILES) + ["avx512"] * len(ON_VECTORS) + [f"{level} or avx512"]
    assert said[level][1] == expected


def test_explain_names_the_level():
    rows = fused_rnn.explain(fused_rnn.LSTM(3, 4, 2), torch.rand(5, 2, 3))
    assert [row.how for row in rows] == [native.plan(CALL._replace(H=4))] * 2

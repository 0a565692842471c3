"""The tiers of the tests: what the core tier takes of a product."""

import itertools
import random
import re
import subprocess
import sys

import pytest

from tests import tiers

PRODUCT = list(itertools.product(range(4), range(5), range(2), range(3)))


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_combination_that_there_is_is_taken(strength):
    points = random.Random(0).sample(PRODUCT, 90)  # not all go together
    chosen = [points[i] for i in tiers.covering(points, strength)]
    for axes in itertools.combinations(range(4), strength):
        there = {tuple(point[axis] for axis in axes) for point in points}
        assert {tuple(point[axis] for axis in axes) for point in chosen} == there


def test_it_is_far_less_than_the_product():
    assert len(tiers.covering(PRODUCT, 1)) == 5
    assert len(tiers.covering(PRODUCT, 2)) <= 24  # 4 * 5 at least


@pytest.mark.parametrize("points", [[()], [(0,), (1,)]], ids=["none", "one"])
def test_what_has_one_parameter_or_none_is_whole(points):
    assert tiers.covering(points, 2) == list(range(len(points)))


def test_the_tables_name_tests_that_there_are(request):
    for name in tiers.CORE.keys() | tiers.APART.keys():
        file, _, test = name.partition("::")
        text = (request.path.parent / file).read_text()
        assert re.search(rf"\b{test}\b" if test else "def test_", text), (
            name
        )  # defined there, or imported


PROGRAM = """
import pytest

@pytest.mark.parametrize("a", range(6))
@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("c", [0, 1, pytest.param(2, marks=pytest.mark.skip(reason="none"))])
def test_product(a, b, c):
    pass

def test_alone():
    pass
"""


@pytest.mark.parametrize(("option", "passed"), [((), 49), (("--core",), 25)])
def test_a_skipped_value_takes_no_pair_from_the_others(option, passed, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from tests import tiers\n"
        "def pytest_addoption(parser):\n"
        "    parser.addoption('--core', action='store_true')\n"
        "def pytest_collection_modifyitems(config, items):\n"
        "    kept = tiers.choose(items, core=config.getoption('--core'))\n"
        "    items[:] = [item for item in items if item in kept]\n"
    )
    (tmp_path / "test_it.py").write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", *option, str(tmp_path)],
        env={"PYTHONPATH": str(tiers.__file__.rsplit("/", 2)[0]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert f"{passed} passed, 1 skipped" in run.stdout

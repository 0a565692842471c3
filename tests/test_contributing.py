"""CONTRIBUTING.md and the other files about the project say what is so."""

import re
from pathlib import Path

import pytest

import fused_rnn

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_files_that_it_names_exist():
    named = re.findall(r"`((?:\.ci|benchmarks|csrc|examples|fused_rnn|tests)/[^`\s]+)`", TEXT)
    assert len(named) > 20
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_targets_that_it_names_exist():
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z0-9]+)?)", TEXT))
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"build", "wheel", "test-all"} <= named
    assert named - set(targets) == set()


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("fused_rnn/cells.py", ["CELLS"]),
        ("csrc/dtypes.h", ["FUSED_RNN_DTYPES", "widen", "narrow"]),
        ("fused_rnn/backends/native/__init__.py", ["_DTYPES"]),
        ("fused_rnn/backends/triton/__init__.py", ["_DTYPES"]),
        ("tests/conftest.py", ["TOLERANCES"]),
        ("fused_rnn/__main__.py", ["LIMITS"]),
        ("fused_rnn/backends/base.py", ["Backend", "supports"]),
        ("fused_rnn/backends/__init__.py", ["BACKENDS"]),
        ("csrc/cpu/levels.cpp", ["kLevel"]),
        ("setup.py", ["LEVELS"]),
        ("tests/native/build.py", ["LEVELS"]),
    ],
)
def test_what_it_names_in_a_file_is_there(file, names):
    text = (ROOT / file).read_text()
    for name in names:
        assert f"`{name}`" in TEXT
        assert re.search(rf"\b{name}\b", text), f"{file} has no {name}"


def test_the_version_is_the_same_everywhere():
    version = re.escape(fused_rnn.__version__)
    assert re.search(rf'^version = "{version}"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert re.search(rf"^## {version} - ", (ROOT / "CHANGELOG.md").read_text(), re.M)

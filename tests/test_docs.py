"""Every example in the documentation runs: the README's code blocks, the docstrings' Examples."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fused_rnn

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MODULES = ["modules", "layers.beyond", "functional", "backends", "convert", "explain"]


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme(block: str):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str):
    module = import_module(f"fused_rnn.{name}")
    names = {"fused_rnn": fused_rnn, "torch": torch, "nn": torch.nn}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_make_targets_that_the_readme_names_exist():
    named = set(re.findall(r"\bmake (?:ENV=system )?([a-z]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

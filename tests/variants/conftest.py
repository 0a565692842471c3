"""Compiled graphs of one test are no business of the next."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh():
    """Forget what was compiled: a function is compiled again but a few times."""
    yield
    torch.compiler.reset()

"""Graphs are compiled here as users compile them: torch's deterministic mode chooses other code."""

import pytest


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan():
    """Leave fresh tensors, in place of the fixture that fills them."""

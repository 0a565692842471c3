"""The guard bytes around the arrays of the bench: they see a stray write."""

import ctypes

import pytest
import torch

from tests.native.core import Arrays


@pytest.mark.parametrize("where", ["first byte before", "first byte behind"])
def test_a_write_outside_is_seen(where):
    arrays = Arrays()
    arrays.want("y", (3, 5), torch.float16)
    arrays.check()
    ctypes.memset(arrays["y"].ctypes.data + (-1 if "before" in where else arrays["y"].nbytes), 0, 1)
    with pytest.raises(AssertionError, match="written"):
        arrays.check()


def test_a_changed_input_is_seen():
    arrays = Arrays()
    arrays.give("x", torch.ones(4))
    arrays.check()
    arrays["x"][0] ^= 1
    with pytest.raises(AssertionError, match="the input x was written to"):
        arrays.check()

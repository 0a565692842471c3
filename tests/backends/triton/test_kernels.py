"""The Triton backend against the reference: both its paths, on a GPU or in Triton's interpreter.

``test_triton.py`` runs this file in the interpreter, which has to be switched on before Triton is
imported, and so in a Python of its own.
"""

import os

import pytest

from fused_rnn.backends import triton
from fused_rnn.backends.triton import whole as triton_whole
from tests.backends.test_kernels import (  # noqa: F401 (the same tests, with the fixtures below)
    test_a_sequence_with_nan_stays_alone,
    test_inference_computes_what_training_does,
    test_kernel_is_the_reference,
    test_operands_stand_anywhere_in_their_storage,
    test_ragged_reverse_and_projected,
    test_two_runs_are_bit_equal,
)
from tests.operands import RAGGED, SHAPES, Shape, ragged

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if triton.available() is not None:
    pytest.skip(f"triton: {triton.available()}", allow_module_level=True)


@pytest.fixture
def device():
    """The interpreter takes CPU tensors."""
    return "cpu" if INTERPRETED else "cuda"


# Those that differ in what the kernels do: padding, tiles, several programs, no bias, no rows.
FEW = {
    "odd": Shape(4, 3, 3, 17),
    "one-unit-no-bias": Shape(2, 2, 2, 1, bias=False),
    "two-programs": Shape(2, 18, 2, 16),
    "empty-batch": SHAPES["empty-batch"],
    "ragged": ragged((4, 1, 3, 3), 2, 9),
}


@pytest.fixture(params=[*FEW, *(() if INTERPRETED else (*SHAPES, *RAGGED))])
def shape(request):
    """All shapes on a GPU; the interpreter takes a millisecond for each operation of a program."""
    return FEW.get(request.param) or SHAPES.get(request.param) or RAGGED[request.param]


@pytest.fixture
def _bfloat16_products(monkeypatch):
    """Make the interpreter multiply numbers of bfloat16, not their bit patterns."""
    from triton.runtime import interpreter

    narrow = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *others):
        if a.dtype.scalar.is_bf16():
            a, b = (self.create_fp_to_fp(t, interpreter.tl.float32, None) for t in (a, b))
        return narrow(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(triton_whole, "MISINTERPRETED", set())


def cannot_be(kernel=None, variant=None, dtype=None, **_):
    """No whole-sequence kernel has a projection, or float64."""
    return kernel == "whole" and (variant[1] or (dtype is not None and dtype.itemsize == 8))


@pytest.fixture(params=["steps", "whole"])
def kernel(request, variant, monkeypatch, _bfloat16_products):
    """The backend with either of its paths, for all problems that the path can run."""
    if request.param == "steps":
        monkeypatch.setattr(triton_whole, "LIMITS", {})
        return triton
    given = {"variant": variant}
    if "dtype" in request.fixturenames:
        given["dtype"] = request.getfixturevalue("dtype")
    if cannot_be(request.param, **given):
        pytest.skip(cannot_be.__doc__)
    return triton

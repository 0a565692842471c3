"""The arithmetic below the kernels, on every SIMD level: functions and conversions."""

import ctypes

import numpy as np
import pytest

from tests.native.build import scalar_math
from tests.native.core import EACH_LEVEL, bench_for

FUNCTIONS = ["exp", "sigmoid", "tanh", "relu"]  # as bench::Function counts
FLOATS = [np.float32, np.float64]
# Where exp's result is a normal number, and neither it nor 1 / it overflows.
RANGE = {np.float32: 87.0, np.float64: 708.0}

levels = pytest.mark.parametrize("level", EACH_LEVEL)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
functions = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(
    params=[
        *EACH_LEVEL,
        "scalar",
        "gpu",  # whose quotients are made of an estimate
    ]
)
def evaluate(request):
    """Each way that math.h is compiled: f(name, array) -> array."""
    if request.param in ("scalar", "gpu"):
        library = scalar_math(gpu=request.param == "gpu")

        def by_scalars(name, x):
            out = np.empty_like(x)
            f = library.evaluate_float if x.dtype == np.float32 else library.evaluate_double
            pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, out))
            f(FUNCTIONS.index(name), *pointers, ctypes.c_int64(x.size))
            return out

        return by_scalars
    bench = bench_for(request.param)
    return lambda name, x: bench.evaluate(request.param, FUNCTIONS.index(name), x)


def every_kind_of_number(dtype):
    """Return numbers of every magnitude and sign, denormal ones, infinities and NaN among them."""
    if dtype == np.float32:
        bits = np.arange(0, 2**32, 8191, dtype=np.uint64).astype(np.uint32)
    else:
        bits = np.random.default_rng(0).integers(0, 2**64, 400_000, dtype=np.uint64)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, *(RANGE[dtype] * np.array([1, -1]))])
    tiny = np.finfo(dtype).smallest_subnormal * np.arange(-3, 4)
    return np.concatenate([bits.view(dtype), special.astype(dtype), tiny.astype(dtype)])


def exact(name, x):
    """Return the function in a wider type."""
    if x.dtype == np.float64 and np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        pytest.skip("long double is no wider than double here")
    wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    with np.errstate(over="ignore", invalid="ignore"):
        if name == "sigmoid":
            return 1 / (1 + np.exp(-wide))
        if name == "relu":
            return np.where(wide < 0, 0, wide)
        return np.exp(wide) if name == "exp" else np.tanh(wide)


@functions
@floats
def test_within_three_units_in_the_last_place(evaluate, name, dtype):
    limit = RANGE[dtype]
    x = every_kind_of_number(dtype)
    x = np.concatenate([x[np.abs(x) <= limit], np.linspace(-limit, limit, 200_001, dtype=dtype)])
    expected = exact(name, x)
    unit = np.spacing(np.abs(expected).astype(dtype)).astype(expected.dtype)
    error = np.abs(evaluate(name, x) - expected) / unit
    worst = error.argmax()
    assert error[worst] <= 3, f"{name}({x[worst]!r}) is {error[worst]:.2f} units off"


@functions
@floats
def test_nan_and_the_ends(evaluate, name, dtype):
    x = every_kind_of_number(dtype)
    found = evaluate(name, x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    if name == "relu":
        np.testing.assert_array_equal(found, exact(name, x))
        return
    above, below = found[x > RANGE[dtype]], found[x < -RANGE[dtype]]
    assert above.size > 1000
    assert below.size > 1000
    if name != "exp":  # its users clamp what they ask of it
        assert (above == 1).all()
    if name == "tanh":
        assert (below == -1).all()
    else:
        assert (below >= 0).all()
        assert (below <= 2 * np.finfo(dtype).tiny).all()


@floats
def test_quotients_are_as_good_as_divisions(dtype):
    # Over all that gates divide by, and by numbers of every kind.
    by, gpu = (scalar_math(gpu=gpu) for gpu in (False, True))
    x = every_kind_of_number(dtype)
    x = np.concatenate([x, np.linspace(-100, 100, 400_001, dtype=dtype)])
    for name in ("sigmoid", "tanh"):
        found = []
        for library in (by, gpu):
            out = np.empty_like(x)
            f = library.evaluate_float if dtype == np.float32 else library.evaluate_double
            pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, out))
            f(FUNCTIONS.index(name), *pointers, ctypes.c_int64(x.size))
            found.append(out)
        divided, estimated = found
        np.testing.assert_array_equal(np.isnan(estimated), np.isnan(x))
        number = ~np.isnan(x)
        off = np.abs(estimated - divided)[number] / np.spacing(np.abs(divided[number]))
        assert off.max() <= 1
        assert (np.abs(estimated[number]) <= 1).all()


@floats
def test_every_length(evaluate, dtype):
    # Registers that are partly filled: no lane takes another's number.
    x = np.linspace(-3, 3, 40, dtype=dtype)
    whole = evaluate("tanh", x)
    for n in range(len(x)):
        np.testing.assert_allclose(evaluate("tanh", x[:n].copy()), whole[:n], rtol=1e-6)


ALL_PATTERNS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


def widened(dtype):
    """Return the value of every bit pattern of a half type, by arithmetic on its fields."""
    exponent_bits, mantissa_bits = (5, 10) if dtype == "float16" else (8, 7)
    bits = ALL_PATTERNS.astype(np.int64)
    mantissa = bits & (2**mantissa_bits - 1)
    exponent = (bits >> mantissa_bits) & (2**exponent_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1
    significand = np.where(exponent > 0, mantissa + 2**mantissa_bits, mantissa).astype(np.float64)
    value = np.ldexp(significand, np.maximum(exponent, 1) - bias - mantissa_bits)
    special = np.where(mantissa == 0, np.inf, np.nan)
    value = np.where(exponent == 2**exponent_bits - 1, special, value)
    return np.where(bits >> 15, -value, value)


half_types = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


@levels
@half_types
def test_every_pattern_is_widened(level, dtype):
    found = bench_for(level).widen(level, dtype, ALL_PATTERNS)
    expected = widened(dtype)
    np.testing.assert_array_equal(found.astype(np.float64), expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(expected[number]))


@levels
@half_types
def test_every_pattern_comes_back(level, dtype):
    bench = bench_for(level)
    found = bench.narrow(level, dtype, bench.widen(level, dtype, ALL_PATTERNS))
    number = ~np.isnan(widened(dtype))
    np.testing.assert_array_equal(found[number], ALL_PATTERNS[number])
    assert np.isnan(bench.widen(level, dtype, found[~number])).all()


@levels
@half_types
@pytest.mark.parametrize("sign", [1, -1])
def test_rounds_to_nearest_and_ties_to_even(level, dtype, sign):
    # Between each two neighbours: the middle, and the floats closest to it and to them.
    values = widened(dtype)[: 2**15]
    finite = values[np.isfinite(values)]
    step = finite[-1] - finite[-2]
    lower, upper = finite, np.append(finite[1:], finite[-1] + step)
    with np.errstate(over="ignore"):
        lower32, upper32 = lower.astype(np.float32), upper.astype(np.float32)
        middle = ((lower + upper) / 2).astype(np.float32)
    patterns = np.arange(len(finite))
    tie = patterns + patterns % 2
    inf = np.float32(np.inf)
    cases = [
        (lower32, patterns),
        (np.nextafter(lower32, inf), patterns),
        (np.nextafter(middle, -inf), patterns),
        (middle, tie),
        (np.nextafter(middle, inf), patterns + 1),
        (np.nextafter(upper32, -inf), patterns + 1),
    ]
    bench = bench_for(level)
    for x, expected in cases:
        found = bench.narrow(level, dtype, (sign * x).astype(np.float32))
        np.testing.assert_array_equal(found, expected + (0x8000 if sign < 0 else 0))


@levels
@half_types
def test_nan_stays_nan_when_narrowed(level, dtype):
    bench = bench_for(level)
    mantissas = np.append(2 ** np.arange(23, dtype=np.uint32), np.uint32(2**23 - 1))
    for sign in (0, 0x80000000):
        x = (np.uint32(0x7F800000 | sign) | mantissas).astype(np.uint32).view(np.float32)
        assert np.isnan(bench.widen(level, dtype, bench.narrow(level, dtype, x))).all()

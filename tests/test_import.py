"""What importing the package does, each time in a fresh Python."""

import subprocess
import sys

import pytest
from torch import nn

import fused_rnn
from fused_rnn.backends import native
from tests.twins import MODULES


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", "import sys, torch\n" + code],
        env={"PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def imported():
    """Names of all modules there are after importing fused_rnn."""
    out, err = run_python("import fused_rnn\nprint(*sys.modules)")
    assert err == ""
    return out.split()


def test_environment():
    code = "import fused_rnn\nrnn = fused_rnn.GRU(3, 4)\n"
    code += "from fused_rnn.backends import record\n"
    show = "with record() as r: rnn(torch.ones(2, 3))\nprint(r[0].backend)\n"
    out, err = run_python(
        code + show + "with fused_rnn.use_backend('torch'):\n"
        "  with record() as r: rnn(torch.ones(2, 3))\n"
        "print(r[0].backend)",
        FUSED_RNN_BACKEND="reference",
    )
    assert out.split() == ["reference", "torch"], err
    out, err = run_python(code + "print('imported')\n" + show, FUSED_RNN_BACKEND="cudnn")
    assert out == "imported"
    assert "ValueError: FUSED_RNN_BACKEND: unknown backend 'cudnn'" in err


@pytest.mark.skipif(native.available() is not None, reason="the kernels were not built")
def test_an_unknown_simd_level():
    code = "import fused_rnn\nrnn = fused_rnn.GRU(3, 4)\nprint('imported')\nrnn(torch.ones(2, 3))\n"
    out, err = run_python(code, FUSED_RNN_SIMD="avx9")
    assert out == "imported"
    assert "FUSED_RNN_SIMD is 'avx9', which is no SIMD level. Choose one of amx, avx512, " in err


def test_without_the_native_module():
    out, err = run_python(
        "sys.modules['fused_rnn._C'] = None\n"
        "import fused_rnn\n"
        "print(fused_rnn.available_backends()['native'])\n"
        "rnn, x = fused_rnn.LSTM(3, 4, 2), torch.randn(5, 2, 3)\n"
        "a, _ = rnn(x)\n"
        "with fused_rnn.use_backend('reference'): b, _ = rnn(x)\n"
        "torch.testing.assert_close(a, b)\n"
        "try:\n"
        "  with fused_rnn.use_backend('native'): rnn(x)\n"
        "except RuntimeError as e: print(e)\n"
    )
    reason, refusal = out.splitlines()
    assert "the native module was not built" in reason, err
    assert reason in refusal


@pytest.mark.parametrize("module", ["torch._dynamo", "triton"])
def test_importing_does_not_import_the_compiler(module, imported):
    assert module not in imported


def test_public_names():
    assert set(fused_rnn.__all__) == {
        *MODULES, "functional", "convert", "revert", "use_backend", "available_backends", "explain",
        "Explanation", "Row", "Swap", "__version__", "safe_globals", "tune", "Measured", "Trial",
        "Tuning", "quantize", "dequantize", "QuantizedLSTM", "QuantizedGRU", "QuantizedRNN",
        "from_keras", "from_onnx",
    }  # fmt: skip
    assert all(hasattr(fused_rnn, name) for name in fused_rnn.__all__)
    assert issubclass(fused_rnn.LSTM, nn.RNNBase)
    assert not issubclass(fused_rnn.LSTM, nn.LSTM)
    assert issubclass(fused_rnn.LSTMCell, nn.LSTMCell)

"""Recurrent layers for PyTorch with the gate arithmetic fused into one pass.

Drop-ins for torch.nn's LSTM, GRU and RNN and their cells: the same weights, outputs and errors.
"""

from fused_rnn import functional
from fused_rnn.backends import available_backends, use_backend
from fused_rnn.convert import Swap, convert, revert
from fused_rnn.explain import Explanation, Row, explain
from fused_rnn.importing import from_keras, from_onnx
from fused_rnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, safe_globals
from fused_rnn.quantize import dequantize, quantize
from fused_rnn.quantized import QuantizedGRU, QuantizedLSTM, QuantizedRNN
from fused_rnn.trials import Trial
from fused_rnn.tune import Measured, Tuning, tune

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "Measured",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedRNN",
    "RNNCell",
    "Row",
    "Swap",
    "Trial",
    "Tuning",
    "__version__",
    "available_backends",
    "convert",
    "dequantize",
    "explain",
    "from_keras",
    "from_onnx",
    "functional",
    "quantize",
    "revert",
    "safe_globals",
    "tune",
    "use_backend",
]

__version__ = "0.1.0"

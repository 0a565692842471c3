"""Layers with the weights and options of other frameworks' layers."""

from __future__ import annotations

from fused_rnn.importing.keras import from_keras
from fused_rnn.importing.onnx import from_onnx

__all__ = ["from_keras", "from_onnx"]

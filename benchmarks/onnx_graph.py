"""The ONNX graph of a recurrent layer, and the onnxruntime session that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .cases import GATES
from .workload import Work

# torch stacks i f g o and r z n; ONNX wants i o f c and z r h.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
_OPS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_OPSET, _IR_VERSION = 17, 8


def build_model(work: Work) -> onnx.ModelProto:
    """Return ``work.module`` as a model from x [and lengths] to y, h_n [and c_n]."""
    case, s = work.case, work.case.shape
    nodes, constants = [], []
    states: dict[str, list[str]] = {"h_n": []} | ({"c_n": []} if case.cell == "lstm" else {})
    layer_input = "x"
    for layer in range(s.layers):
        weights = _layer_weights(work.module, layer, s.directions, case.cell)
        names = [f"{name}{layer}" for name in ("W", "R", "B")]
        constants += [
            numpy_helper.from_array(weight.numpy(), name)
            for name, weight in zip(names, weights, strict=True)
        ]
        outputs = [f"Y{layer}"] + [f"{state}{layer}" for state in states]
        for state, taken in states.items():
            taken.append(f"{state}{layer}")
        options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
        nodes.append(
            helper.make_node(
                _OPS[case.cell],
                [layer_input, *names, *(["lengths"] if case.ragged else [])],
                outputs,
                hidden_size=s.H,
                direction="bidirectional" if s.bidirectional else "forward",
                **options,
            )
        )
        layer_input = "y" if layer == s.layers - 1 else f"y{layer}"
        nodes += _join_directions(outputs[0], layer_input)
    constants.append(numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "joined_shape"))
    nodes += [helper.make_node("Concat", taken, [state], axis=0) for state, taken in states.items()]

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [s.T, s.N, s.I])]
    if case.ragged:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [s.N]))
    sizes = {name: [s.layers * s.directions, s.N, s.H] for name in states}
    sizes["y"] = [s.T, s.N, s.directions * s.H]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()
    ]
    graph = helper.make_graph(nodes, case.cell, inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    return model


def _join_directions(source: str, target: str) -> list[onnx.NodeProto]:
    """ONNX's (T, D, N, H) to torch's (T, N, D*H)."""
    swapped = f"{source}_swapped"
    return [
        helper.make_node("Transpose", [source], [swapped], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [swapped, "joined_shape"], [target]),
    ]


def _layer_weights(module: nn.Module, layer: int, directions: int, cell: str) -> list[Tensor]:
    """Return W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) of one layer, in ONNX's gate order."""

    def reordered(name: str) -> Tensor:
        weight = getattr(module, name).detach()
        gates = weight.chunk(GATES[cell])
        return torch.cat([gates[gate] for gate in _ONNX_GATES[cell]])

    suffixes = [f"l{layer}", f"l{layer}_reverse"][:directions]
    biases = [
        torch.cat([reordered(f"bias_ih_{end}"), reordered(f"bias_hh_{end}")]) for end in suffixes
    ]
    return [
        torch.stack([reordered(f"weight_ih_{end}") for end in suffixes]),
        torch.stack([reordered(f"weight_hh_{end}") for end in suffixes]),
        torch.stack(biases),
    ]


class OnnxSession:
    """A session over one case's model: its input bound once, its outputs in its own arena."""

    def __init__(self, work: Work, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Its threads would spin on for tens of milliseconds, on the cores of whoever is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = build_model(work)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._lengths = work.case.lengths if work.case.ragged else None
        self._names: Sequence[str] = [output.name for output in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("x", work.padded.detach().numpy())
        if self._lengths is not None:
            self._binding.bind_cpu_input("lengths", self._lengths.to(torch.int32).numpy())
        for name in self._names:
            self._binding.bind_output(name)

    def run(self) -> Any:
        """Run the graph once; the outputs stay with the binding."""
        self._session.run_with_iobinding(self._binding)
        return self._binding

    def named(self, binding: Any) -> dict[str, Tensor]:
        """Copy the outputs into tensors; y of a ragged batch is packed as torch.nn packs it."""
        outputs = dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))
        named = {name: torch.from_numpy(value) for name, value in outputs.items()}
        if self._lengths is not None:
            packed = pack_padded_sequence(named["y"], self._lengths, enforce_sorted=False)
            named["y"] = packed.data
        return named

"""Quantized layers in graphs: an op for each direction of a layer, and nodes of ONNX."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_rnn
from fused_rnn.backends import available_backends
from tests.backends.test_quantized import operands

T, N, I, H = 4, 2, 5, 8  # noqa: E741
OP = torch.ops.fused_rnn.quantized_forward.default
LENGTHS = torch.tensor([4, 2])


class Model(nn.Module):
    """A quantized layer in a model."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype = torch.int8) -> None:
        super().__init__()
        self.layer = fused_rnn.quantize(layer, dtype=dtype)
        self.out = nn.Linear(H * (2 if layer.bidirectional else 1), 3)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(x)[0])


def deep(dtype=torch.int8):
    return Model(nn.LSTM(I, H, 2, bidirectional=True), dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
def test_compiled_to_one_graph(dtype):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model = deep(dtype)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for shape in ((T, N, I), (T + 1, N + 1, I), (T + 2, N + 3, I)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    assert [node.target for node in graphs[-1].graph.nodes].count(OP) == 4
    assert len(graphs) <= 2  # the second is for any shape; what was compiled before may know that


@pytest.mark.parametrize(
    "call",
    [
        lambda r, x: r(x, lengths=LENGTHS)[0],
        lambda r, x: r(x, return_states=True)[2][1],
        lambda r, x: r(pack_sequence([x[:, 0], x[:2, 1]]))[0].data,
        lambda r, x: r.step(x[0])[0],
    ],
    ids=["lengths", "states", "packed", "step"],
)
def test_compiled_calls(call):
    layer = fused_rnn.quantize(nn.LSTM(I, H))
    x = torch.randn(T, N, I)
    compiled = torch.compile(lambda x: call(layer, x), backend="eager")
    torch.testing.assert_close(compiled(x), call(layer, x), rtol=0, atol=0)


def test_exported():
    model, x = deep(), torch.randn(T, N, I)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)
    assert [node.target for node in program.graph.nodes].count(OP) == 4


def test_lengths_are_not_exported():
    layer, x = fused_rnn.quantize(nn.LSTM(I, H)), torch.randn(T, N, I)
    with pytest.raises(RuntimeError, match="cannot be exported"):
        torch.export.export(layer, (x,), {"lengths": LENGTHS})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["lstm-projected", "gru"])
@pytest.mark.parametrize("every_c", [True, False], ids=["every-c", "y"])
def test_opcheck(variant, dtype, every_c):
    cell, _, projected = variant.partition("-")
    inputs, scales = operands(cell, dtype, bool(projected), steps=2)
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = inputs
    s_ih, s_hh, s_hr = scales
    weights = w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, w_hr, s_hr
    torch.library.opcheck(OP, (cell, x, h0, c0, *weights, None, True, every_c))


def test_what_the_op_refuses():
    inputs, scales = operands("lstm")
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, _ = inputs
    s_ih, s_hh, _ = scales
    good = ["lstm", x, h0, c0, w_ih, s_ih, w_hh, s_hh, b_ih, b_hh, None, None, None, False, False]
    OP(*good)
    for place, bad, match in (
        (0, "lstn", "cell should be"),
        (1, x.double(), "x should be of dtype float32"),
        (1, x[0], "x should have 3 dimensions"),
        (1, x[:0], "at least one step"),
        (2, h0[:, 1:], "h0 should have shape"),
        (3, None, "c0 should be given"),
        (4, w_ih.float(), "w_ih should be of dtype bfloat16, or that of w_hh"),
        (6, w_hh.float(), "w_hh should be of dtype int8 or bfloat16"),
        (4, w_ih[:, 1:], "w_ih should have shape"),
        (5, None, "s_ih should be given with int8 weights"),
        (5, s_ih.double(), "s_ih should have the dtype of x"),
        (6, w_hh.bfloat16(), "w_ih should be of dtype bfloat16, or that of w_hh"),
        (7, s_hh[1:], "s_hh should have shape"),
        (8, b_ih.bfloat16(), "b_ih should have the dtype of x"),
        (12, torch.tensor([3]), "x should have 2 dimensions"),
    ):
        with pytest.raises(RuntimeError, match=match):
            OP(*good[:place], bad, *good[place + 1 :])
    with pytest.raises(RuntimeError, match="left out with bfloat16 weights"):
        OP(*good[:4], w_ih.bfloat16(), s_ih, w_hh.bfloat16(), *good[7:])
    wide = torch.zeros(1, 1, (1 << 17) + 1)
    one = torch.ones(1)
    with pytest.raises(RuntimeError, match="at most 131072 features"):
        OP("rnn_tanh", wide, torch.zeros(1, 1), None, wide[0].to(torch.int8), one,
           torch.zeros(1, 1, dtype=torch.int8), one, *[None] * 5, False, False)  # fmt: skip


def test_vmap_and_autocast():
    layer = fused_rnn.quantize(nn.GRU(I, H))
    x = torch.randn(3, T, N, I)
    found = torch.func.vmap(lambda x: layer(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([layer(each)[0] for each in x]))
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = layer(x[0].bfloat16())
    assert y.dtype == torch.bfloat16


def test_explained():
    rows = fused_rnn.explain(deep(), torch.randn(T, N, I))
    assert available_backends()["native"] is None
    assert [(row.layer, row.direction) for row in rows] == [
        (k, d) for k in (0, 1) for d in ("forward", "reverse")
    ]
    level = torch.ops.fused_rnn.quantized_level(torch.int8)
    assert {(row.backend, row.how) for row in rows} == {("native", f"{level}, int8 weights")}
    narrow = fused_rnn.quantize(nn.LSTM(I, 4 * I, 2, bidirectional=True))
    of_first, of_second = (f"{level}, {names} weights" for names in ("bfloat16 and int8", "int8"))
    rows = fused_rnn.explain(narrow, torch.randn(T, N, I))
    assert [row.how for row in rows] == [of_first, of_first, of_second, of_second]
    with fused_rnn.use_backend("reference"):
        row = fused_rnn.explain(fused_rnn.quantize(nn.GRU(I, H)), torch.randn(1, N, I))[0]
    assert row.backend == "reference"


def run_in_onnx(model, x):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    names = [node.op_type for node in program.model_proto.graph.node]
    program.save(file := io.BytesIO())
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def run(x):
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])

    return names, run


def check_onnx(dtype, node, atol):
    torch.manual_seed(0)
    model = deep(dtype)
    names, run = run_in_onnx(model, torch.randn(T, N, I))
    assert names.count(node) == 2
    for shape in ((T, N, I), (T + 3, N + 2, I)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=atol)


def test_int8_in_onnx():
    check_onnx(torch.int8, "DynamicQuantizeLSTM", 0.02)


def test_bfloat16_in_onnx():
    check_onnx(torch.bfloat16, "LSTM", 1e-6)


@pytest.mark.parametrize("layer", [nn.GRU(I, H), nn.LSTM(I, H, proj_size=2)], ids=["gru", "lstm"])
def test_onnx_has_no_other_layers_in_int8(layer):
    with pytest.raises(Exception, match="int8 is an LSTM's without a projection"):
        torch.onnx.export(
            fused_rnn.quantize(layer).eval(), (torch.randn(T, N, I),), dynamo=True, verbose=False
        )


def test_onnx_has_no_narrow_inputs_beside_int8():
    with pytest.raises(Exception, match="no bfloat16 weights of a narrow input"):
        torch.onnx.export(
            fused_rnn.quantize(nn.LSTM(2, H)).eval(), (torch.randn(T, N, 2),), dynamo=True,
            verbose=False,
        )  # fmt: skip

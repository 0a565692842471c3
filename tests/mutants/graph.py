"""Faults of layers as nodes of a graph."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "py-node-saves-in-inference",
        "fused_rnn/graph/running.py",
        "fixed(saved if training else (), inputs.x)",
        "fixed((), inputs.x)",
        ("tests/graph/test_node.py", "tests/scans/test_marks.py"),
    ),
    Mutant(
        "py-node-autocast-inside",
        "fused_rnn/graph/running.py",
        "return torch.autocast(x.device.type, enabled=False) if on else nullcontext()",
        "return nullcontext()",
        ("tests/scans/test_autocast.py", "tests/graph/test_compile.py"),
    ),
    Mutant(
        "py-node-gradient-of-gradient",
        "fused_rnn/graph/node.py",
        "if torch.is_grad_enabled() or transforms.active() in _DIFFERENTIATED:",
        "if transforms.active() in _DIFFERENTIATED:",
        ("tests/graph/test_node.py", "tests/scans/test_marks.py"),
    ),
    Mutant(
        "py-node-needs-of-marks",
        "fused_rnn/graph/node.py",
        "return *operands[:8], *operands[9:11]",
        "return *operands[:8], *operands[8:10]",
        ("tests/scans/test_marks.py", "tests/graph/test_compile_options.py"),
    ),
    Mutant(
        "py-node-fake-output-width",
        "fused_rnn/graph/node.py",
        "y = x.new_empty(*x.shape[:-1], h0.shape[-1])",
        "y = x.new_empty(*x.shape[:-1], inputs.w_hh.shape[0])",
        ("tests/graph/test_compile.py",),
    ),
    Mutant(
        "py-node-backend-when-run-asks-for-c",
        "fused_rnn/graph/running.py",
        "ragged, training, None, self.every_c)",
        "ragged, training, None, False)",
        ("tests/backends/test_backends.py",),
    ),
    Mutant(
        "py-compiled-recompute-keeps",
        "fused_rnn/graph/compiled.py",
        "nodes = Nodes(keep=not recompute)",
        "nodes = Nodes(keep=True)",
        ("tests/graph/test_compile.py",),
    ),
    Mutant(
        "py-compiled-width-of-upper-layers",
        "fused_rnn/graph/compiled.py",
        "[(p or h) * stack.directions] * (stack.layers - 1)",
        "[h] * (stack.layers - 1)",
        ("tests/backends/test_backends.py",),
    ),
    Mutant(
        "py-collectors-states-side-by-side",
        "fused_rnn/graph/collectors.py",
        "return torch.stack(self.h, 1), torch.stack(self.c, 1) if self.c else None",
        "return torch.stack(self.h, 1), torch.stack(self.c[::-1], 1) if self.c else None",
        ("tests/layers/test_options.py",),
    ),
    Mutant(
        "py-collectors-marks-of-direction",
        "fused_rnn/graph/collectors.py",
        "Marked(self._marks[int(reverse)], h, c)",
        "Marked(self._marks[0], h, c)",
        ("tests/graph/test_compile_options.py", "tests/scans/test_marks.py"),
    ),
    Mutant(
        "py-collectors-state-after-reset-of-layer",
        "fused_rnn/graph/collectors.py",
        "h, c = (a if a is None else a[k, 0] for a in self._anew)",
        "h, c = (a if a is None else a[0, 0] for a in self._anew)",
        ("tests/graph/test_compile_options.py", "tests/scans/test_marks.py"),
    ),
    Mutant(
        "py-onnx-gate-order",
        "fused_rnn/graph/onnx.py",
        '"lstm": ("LSTM", (0, 3, 1, 2)),',
        '"lstm": ("LSTM", (0, 1, 3, 2)),',
        ("tests/graph/test_onnx.py",),
    ),
    Mutant(
        "py-onnx-linear-before-reset",
        "fused_rnn/graph/onnx.py",
        '"linear_before_reset": 1 if operator == "GRU" else None',
        '"linear_before_reset": None',
        ("tests/graph/test_onnx.py",),
    ),
    Mutant(
        "py-node-recomputes-forwards",
        "fused_rnn/graph/running.py",
        "saved = list(backend.forward(cell, inputs, None, reverse, True)[3])",
        "saved = backend.forward(cell, inputs, None, False, True)[3]",
        ("tests/scans/test_marks.py", "tests/graph/test_compile.py"),
    ),
    Mutant(
        "py-node-gradients-in-place-of-marks",
        "fused_rnn/graph/node.py",
        "return None, None, *found[:8], None, *found[8:], None, None, None",
        "return None, None, *found, None, None, None, None",
        ("tests/scans/test_marks.py", "tests/graph/test_compile_options.py"),
    ),
    Mutant(
        "py-node-fake-cell-state-of-projection",
        "fused_rnn/graph/node.py",
        "c_n = x.new_empty(0) if c0 is None else torch.empty_like(c0)",
        "c_n = x.new_empty(0) if c0 is None else torch.empty_like(h0)",
        ("tests/graph/test_compile.py",),
    ),
    Mutant(
        "py-compiled-onnx-drops-the-projection",
        "fused_rnn/graph/compiled.py",
        "        if not stack.proj_size:\n",
        "        if True:\n",
        ("tests/graph/test_onnx.py",),
    ),
    Mutant(
        "py-onnx-relu-of-one-direction",
        "fused_rnn/graph/onnx.py",
        '["Relu"] * d if',
        '["Relu"] if',
        ("tests/graph/test_onnx.py",),
    ),
)

"""Faults of layers with int8 and bfloat16 weights."""

from __future__ import annotations

from .mutant import Mutant

_ARITHMETIC = ("tests/backends/test_quantized.py",)
_LAYERS = ("tests/layers/test_quantized.py", "tests/test_quantize.py")
_KERNELS = ("tests/backends/native/test_quantized.py",)

PYTHON: tuple[Mutant, ...] = (
    Mutant(
        "py-quantized-rounds-up",
        "fused_rnn/backends/quantized.py",
        "(x / scale).round()",
        "(x / scale + 0.5).floor()",
        _ARITHMETIC,
    ),
    Mutant(
        "py-quantized-denormal-scale",
        "fused_rnn/backends/quantized.py",
        "(largest / LARGEST).clamp(min=_TINY)",
        "(largest / LARGEST).clamp(min=1e-45)",
        _ARITHMETIC,
    ),
    Mutant(
        "py-quantized-projection-in-float",
        "fused_rnn/backends/quantized.py",
        "linear(_rounded(h.float(), weights.w_hr), numbers.w_hr)",
        "linear(h, numbers.w_hr)",
        _ARITHMETIC,
    ),
    Mutant(
        "py-quantized-narrow-below-a-quarter",
        "fused_rnn/backends/quantized.py",
        "return 4 * i <= r",
        "return 4 * i < r",
        _ARITHMETIC,
    ),
    Mutant(
        "py-quantized-narrow-input-rounded",
        "fused_rnn/backends/quantized.py",
        "rounded = _rounded(x, weights.w_ih),",
        "rounded = _rounded(x, weights.w_hh),",
        _ARITHMETIC,
    ),
    Mutant(
        "py-quantized-narrow-on-every-layer",
        "fused_rnn/layers/stored_weights.py",
        'name.startswith("weight_ih_l0")',
        'name.startswith("weight_ih_l")',
        _LAYERS,
    ),
    Mutant(
        "py-quantized-explained-by-half",
        "fused_rnn/scans/quantized.py",
        "of_x = rows[layer * stack.directions][0].dtype",
        "of_x = rows[layer][0].dtype",
        ("tests/graph/test_quantized.py",),
    ),
    Mutant(
        "py-quantized-scales-of-the-first",
        "fused_rnn/scans/quantized.py",
        "        self._count += 1\n",
        "",
        _LAYERS,
    ),
    Mutant(
        "py-quantized-scales-follow-the-model",
        "fused_rnn/layers/stored_weights.py",
        "self._buffers[name] = before.to(after.device)",
        "self._buffers[name] = after",
        _LAYERS,
    ),
    Mutant(
        "py-quantized-gradients-pass",
        "fused_rnn/layers/quantized.py",
        "        refuse_gradients(self, x, h0, c0)\n",
        "",
        _LAYERS,
    ),
    Mutant(
        "py-quantized-step-order",
        "fused_rnn/layers/quantized.py",
        "h0s = h0.unbind(0) if batched else h0.split(1)",
        "h0s = h0.flip(0).unbind(0) if batched else h0.split(1)",
        _LAYERS,
    ),
    Mutant(
        "py-quantize-not-finite",
        "fused_rnn/quantize.py",
        "if not weight.isfinite().all():",
        "if weight.isnan().all():",
        _LAYERS,
    ),
    Mutant(
        "py-quantize-recompute-lost",
        "fused_rnn/quantize.py",
        "    if recompute is not None:\n",
        "    if recompute is None:\n",
        _LAYERS,
    ),
)

KERNELS: tuple[Mutant, ...] = (
    Mutant(
        "cpu-quantized-no-tail",
        "csrc/cpu/quantized/products.h",
        "    if (k < w.columns) {\n",
        "    if (k + D::kStep < w.columns) {\n",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-scale-not-of-the-row",
        "csrc/cpu/quantized/products.h",
        "const RowScale of = scales_.get()[n + m];",
        "const RowScale of = scales_.get()[n];",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-infinity-passes",
        "csrc/cpu/quantized/products.h",
        "const bool finite = none == 0;",
        "const bool finite = true;",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-offset",
        "csrc/cpu/quantized/dots.h",
        "kOffset = 128;",
        "kOffset = 127;",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-floats-in-order",
        "csrc/cpu/quantized/products.h",
        "out[k - place + place % 2 * kW + place / 2] = row[k];",
        "out[k] = row[k];",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-narrow-never",
        "csrc/cpu/quantized/level.inc",
        "if (a.s_ih == nullptr) {",
        "if (a.s_hh == nullptr) {",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-hidden-of-the-step-before",
        "csrc/cpu/quantized/forward.h",
        "h_rows_.prepare(n, h_[k % 2].get()",
        "h_rows_.prepare(n, h_[(k + 1) % 2].get()",
        _KERNELS,
    ),
    Mutant(
        "cpu-quantized-joins-late",
        "csrc/cpu/quantized/forward.h",
        "      store<float>(h_[1].get() + n * s_.Rp + j, h);\n",
        "",
        _KERNELS,
    ),
)

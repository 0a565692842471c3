"""Faults of variants of the cells: their equations, masks and names, and the layers that have them.

Those of the kernels are in C++, and last: they are built into a copy's module.
"""

from __future__ import annotations

from .mutant import Mutant

_HAND = ("tests/variants/test_variants.py",)
_LAYERS = ("tests/variants/test_layers.py",)
_NATIVE = ("tests/variants/test_native.py", "tests/variants/test_variants.py")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "py-variants-one-mask-for-all-steps",
        "fused_rnn/variants/philox.py",
        "[blocks + zeros, first + step + zeros,",
        "[blocks + zeros, first + zeros,",
        _HAND,
    ),
    Mutant(
        "py-variants-heads-of-each-other",
        "fused_rnn/variants/equations.py",
        '"...kr,kgur->...gku"',
        '"...kr,kgur->...gku".replace("gku", "kgu")',
        _HAND,
    ),
    Mutant(
        "py-variants-the-old-c-in-the-output-gate",
        "fused_rnn/variants/equations.py",
        "a_o = a_o + p_o * _new_c(v, LstmGates(i, f, g, a_o), state)",
        "a_o = a_o + p_o * state.c",
        _HAND,
    ),
    Mutant(
        "py-variants-a-name-without-its-value",
        "fused_rnn/variants/names.py",
        '"cell_clip": float,',
        '"cell_clip": lambda text: 1.0,',
        _HAND,
    ),
    Mutant(
        "py-variants-heads-that-do-not-divide",
        "fused_rnn/variants/options.py",
        "        if value % found.num_heads:",
        "        if False:",
        _LAYERS,
    ),
    Mutant(
        "py-variants-dropout-in-eval",
        "fused_rnn/layers/varied.py",
        "return self._variants[0 if self.training else 1]",
        "return self._variants[0]",
        _LAYERS,
    ),
    Mutant(
        "py-variants-segments-with-the-first-mask",
        "fused_rnn/scans/noise.py",
        "if whose is None or whose.first is None else whose.first",
        "if whose is None or whose.first is None else torch.zeros_like(number)",
        _HAND,
    ),
    Mutant(
        "py-variants-marks-with-the-first-mask",
        "fused_rnn/scans/marks.py",
        "draws[:, 1] + first",
        "draws[:, 1]",
        ("tests/variants/test_layers.py",),
    ),
    Mutant(
        "py-variants-gradient-of-the-gain",
        "fused_rnn/backends/native/variants.py",
        "extra=dextra,",
        "extra=dextra * 2,",
        _NATIVE,
    ),
    Mutant(
        "py-onnx-peepholes-in-torchs-order",
        "fused_rnn/graph/onnx.py",
        "torch.cat([p_i, p_o, p_f])",
        "torch.cat([p_i, p_f, p_o])",
        ("tests/graph/test_onnx.py",),
    ),
    Mutant(
        "py-importing-gates-of-onnx",
        "fused_rnn/importing/onnx.py",
        '"LSTM": (0, 2, 3, 1)',
        '"LSTM": (0, 3, 2, 1)',
        ("tests/variants/test_importing.py",),
    ),
    Mutant(
        "py-importing-gates-of-keras",
        "fused_rnn/importing/keras.py",
        '"GRU": (1, 0, 2)',
        '"GRU": (0, 1, 2)',
        ("tests/variants/test_importing.py",),
    ),
    Mutant(
        "py-importing-the-reverse-direction",
        "fused_rnn/importing/filling.py",
        'zip(weights, ("", "_reverse"), strict=False)',
        'zip(weights, ("", ""), strict=False)',
        ("tests/variants/test_importing.py",),
    ),
)

# Of C++, which a copy's module is built with.
KERNELS: tuple[Mutant, ...] = (
    Mutant(
        "cpp-variants-philox-rounds",
        "csrc/cpu/variants/philox.h",
        "round < 10",
        "round < 9",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-norm-back-without-slope",
        "csrc/cpu/variants/norms.h",
        "(g - mean - hat * slope)",
        "(g - mean)",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-zoned-c-shown",
        "csrc/cpu/variants/args.h",
        "o.lstm() && o.zoneout_c > 0 ? room(H) : c",
        "c",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-head-of-another",
        "csrc/cpu/variants/products.h",
        "(gate * heads() + head) * units_ + unit",
        "(gate * heads()) * units_ + unit",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-reset-without-its-share",
        "csrc/cpu/variants/backward_rows.h",
        "store<T>(d + j, dv * r, valid);",
        "store<T>(d + j, dv, valid);",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-clip-passes",
        "csrc/cpu/variants/rows.h",
        "d = v >= high ? Vec<T>{} : d;",
        "d = v >= high ? d : d;",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-every-c-before-zoneout",
        "csrc/cpu/variants/forward_rows.h",
        "store<T>(every_c + j, carried, valid);",
        "store<T>(every_c + j, after, valid);",
        _NATIVE,
    ),
    Mutant(
        "cpp-variants-any-option",
        "csrc/variant_options.h",
        "equals != std::string::npos &&",
        "equals == std::string::npos ||",
        _NATIVE,
    ),
)

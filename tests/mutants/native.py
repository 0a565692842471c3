"""Faults of the native backend's Python side."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "py-native-mask-of-gru",
        "fused_rnn/backends/native/__init__.py",
        'needed = needs if cell == "lstm" else (*needs[:2], *needs[3:7])',
        'needed = needs if cell == "lstm" else needs[:6]',
        ("tests/scans/test_autograd.py", "tests/backends/test_kernels.py"),
    ),
    Mutant(
        "py-native-takes-transforms",
        "fused_rnn/backends/native/__init__.py",
        "    if problem.transform not in (None, transforms.COUNTING):\n",
        '    if problem.transform == "vmap":\n',
        (
            "tests/backends/test_transforms.py",
            "tests/backends/test_backends.py",
            "tests/scans/test_autocast.py",
        ),
    ),
    Mutant(
        "py-native-both-mask",
        "fused_rnn/backends/native/__init__.py",
        "    needed = (*needs[:7], *needs[8:14])\n",
        "    needed = (*needs[:7], *needs[7:13])\n",
        ("tests/backends/native/cuda/test_both_directions.py", "tests/scans/test_autograd_both.py"),
    ),
    Mutant(
        "py-native-saved-dtype",
        "fused_rnn/backends/native/__init__.py",
        "dtype = torch.float64 if x.dtype == torch.float64 else torch.float32\n    return (x",
        "dtype = torch.float32\n    return (x",
        (
            "tests/graph/test_compile.py",
            "tests/backends/native/test_ops.py",
            "tests/scans/test_marks.py",
        ),
    ),
    Mutant(
        "py-native-marked-mask",
        "fused_rnn/backends/native/marked.py",
        "needed = (*needs[:7], *needs[8:])  # there",
        "needed = (*needs[:8], *needs[9:])  # there",
        ("tests/backends/native/cuda/test_marked.py",),
    ),
    Mutant(
        "py-native-marked-projection",
        "fused_rnn/backends/native/marked.py",
        "    if inputs.w_hr is not None:\n",
        "    if False:\n",
        ("tests/backends/native/cuda/test_marked.py",),
    ),
    Mutant(
        "py-native-fakes-c-of-marked",
        "fused_rnn/backends/native/fakes.py",
        "c = x.new_empty(y.shape if every_c else 0)",
        "c = x.new_empty(y.shape)",
        ("tests/backends/native/cuda/test_marked.py",),
    ),
    Mutant(
        "py-native-fakes-mask",
        "fused_rnn/backends/native/fakes.py",
        "operands = (*args[1:8], *args[9:11])  # without the marks",
        "operands = (*args[1:8], *args[8:10])  # without the marks",
        ("tests/backends/native/cuda/test_marked.py",),
    ),
    Mutant(
        "py-native-plan-both",
        "fused_rnn/backends/native/persistent.py",
        "both = torch.ops.fused_rnn.persistent_plan(*scan, 2)",
        "both = torch.ops.fused_rnn.persistent_plan(*scan, 1)",
        ("tests/backends/native/cuda/test_both_directions.py", "tests/test_explain.py"),
    ),
    Mutant(
        "py-native-plan-in-training",
        "fused_rnn/backends/native/persistent.py",
        "for backward in ((False, True) if training else (False,))",
        "for backward in (False,)",
        ("tests/backends/native/cuda/test_both_directions.py",),
    ),
    Mutant(
        "py-native-errors-of-memory",
        "fused_rnn/backends/native/errors.py",
        'if "aoti_torch_empty_strided" not in str(error):',
        'if "aoti_torch_empty" in str(error):',
        (
            "tests/backends/native/test_guards.py",
            "tests/backends/native/test_native.py",
            "tests/backends/native/test_ops.py",
            "tests/backends/native/cuda/test_loading.py",
        ),
    ),
    Mutant(
        "py-native-oldest-gpu",
        "fused_rnn/backends/native/__init__.py",
        "if capability < _OLDEST_GPU:",
        "if capability <= _OLDEST_GPU:",
        ("tests/backends/native/cuda/test_loading.py",),
    ),
    Mutant(
        "py-native-gpu-without-code",
        "fused_rnn/backends/native/__init__.py",
        "if facts(device).capability == 0:",
        "if facts(device).capability < 0:",
        ("tests/backends/native/cuda/test_loading.py",),
    ),
    Mutant(
        "py-native-marks-with-a-projection",
        "fused_rnn/backends/native/__init__.py",
        'return device.type == "cuda" and not projected',
        'return device.type == "cuda"',
        ("tests/scans/test_marks.py",),
    ),
    Mutant(
        "py-native-errors-of-a-gpu",
        "fused_rnn/backends/native/errors.py",
        'if device.type == "cuda":',
        'if device.type == "cpu":',
        ("tests/backends/native/cuda/test_loading.py",),
    ),
    Mutant(
        "py-native-fakes-cell-state-of-projection",
        "fused_rnn/backends/native/fakes.py",
        "return y, h_n, c0.new_empty(c0.shape), c, saved",
        "return y, h_n, c0.new_empty(h_n.shape), c, saved",
        ("tests/backends/native/test_ops.py",),
    ),
    Mutant(
        "py-native-fakes-every-cell-state",
        "fused_rnn/backends/native/fakes.py",
        "every_c = len(args) > 11 and args[11]",
        "every_c = False",
        ("tests/backends/native/test_ops.py",),
    ),
)

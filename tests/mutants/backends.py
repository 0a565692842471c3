"""Faults of the choice of a backend, and of the reference."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "py-choice-torch-at-each-step",
        "fused_rnn/backends/__init__.py",
        "and of.training and of.I > 0",
        "and of.I > 0",
        ("tests/backends/test_backends.py",),
    ),
    Mutant(
        "py-choice-environment-first",
        "fused_rnn/backends/__init__.py",
        "return _choice.get() or _environment",
        "return _environment or _choice.get()",
        ("tests/test_import.py",),
    ),
    Mutant(
        "py-choice-not-restored",
        "fused_rnn/backends/__init__.py",
        "        _choice.set(self._before)",
        "        _choice.set(None)",
        ("tests/backends/test_backends.py",),
    ),
    Mutant(
        "py-choice-reference-for-all",
        "fused_rnn/backends/__init__.py",
        "if backend is reference and not _beyond_torch(problem):",
        "if backend is reference and problem.ragged and not _beyond_torch(problem):",
        ("tests/backends/test_backends.py", "tests/test_modules.py"),
    ),
    Mutant(
        "py-base-marks-in-another-order",
        "fused_rnn/backends/base.py",
        "DEAD, GOES_ON, BEGINS, ANEW = range(4)",
        "DEAD, GOES_ON, ANEW, BEGINS = range(4)",
        ("tests/backends/native/cuda/test_marked.py", "tests/scans/test_marks.py"),
    ),
    Mutant(
        "py-transforms-jvp-is-torch-func",
        "fused_rnn/backends/transforms.py",
        "    if TransformType.Jvp in kinds:\n        return FORWARD_AD\n",
        "",
        ("tests/backends/test_transforms.py",),
    ),
    Mutant(
        "py-transforms-dispatch-mode",
        "fused_rnn/backends/transforms.py",
        '        return COUNTING if _is_only_counted() else "a TorchDispatchMode"\n',
        "        return COUNTING\n",
        (
            "tests/test_composition.py",
            "tests/backends/test_transforms.py",
            "tests/backends/test_backends.py",
        ),
    ),
    Mutant(
        "py-reference-half-in-half",
        "fused_rnn/backends/reference.py",
        "    return inputs_of([t if t is None or t.dtype not in _HALF else t.float() for t in inputs])",
        "    return inputs",
        (
            "tests/test_cells.py",
            "tests/backends/test_kernels.py",
            "tests/test_modules.py",
            "tests/scans/test_autograd.py",
        ),
    ),
    Mutant(
        "py-reference-alias",
        "fused_rnn/backends/reference.py",
        "    alias = tensor.view_as(tensor)\n",
        "    alias = tensor\n",
        ("tests/scans/test_autograd.py", "tests/backends/test_transforms.py"),
    ),
    Mutant(
        "py-reference-marked-x-past-an-end",
        "fused_rnn/backends/reference.py",
        "torch.where(live, inputs.x, 0)",
        "inputs.x",
        ("tests/scans/test_marks.py",),
    ),
    Mutant(
        "py-choice-states-by-torch",
        "fused_rnn/backends/__init__.py",
        "return problem.states or problem.transform in ONLY_REFERENCE",
        "return problem.transform in ONLY_REFERENCE",
        ("tests/layers", "tests/backends/test_backends.py"),
    ),
    Mutant(
        "py-choice-ragged-under-torch-func",
        "fused_rnn/backends/__init__.py",
        "if problem.ragged and problem.transform == TORCH_FUNC:",
        "if False:",
        (
            "tests/scans/test_segments.py",
            "tests/backends/test_transforms.py",
            "tests/backends/test_backends.py",
        ),
    ),
    Mutant(
        "py-choice-passed-over-by-torch",
        "fused_rnn/backends/__init__.py",
        "        if name != TORCH:\n            raise",
        "        if False:\n            raise",
        ("tests/backends/test_backends.py", "tests/test_module_errors.py"),
    ),
    Mutant(
        "py-choice-environment-unchecked",
        "fused_rnn/backends/__init__.py",
        '    _check_name(name.partition(" ")[0], "FUSED_RNN_BACKEND")\n    if name == TORCH:',
        "    if name == TORCH:",
        ("tests/backends/test_backends.py", "tests/test_import.py"),
    ),
    Mutant(
        "py-base-states-asked-for-by-cells",
        "fused_rnn/backends/base.py",
        "states: bool = False  #",
        "states: bool = True  #",
        ("tests/backends/test_backends.py", "tests/test_explain.py"),
    ),
    Mutant(
        "py-transforms-first-level-of-forward-ad",
        "fused_rnn/backends/transforms.py",
        "if forward_ad._current_level >= 0:",
        "if forward_ad._current_level > 0:",
        ("tests/backends/test_backends.py", "tests/backends/test_transforms.py"),
    ),
    Mutant(
        "py-reference-packed-reverse-states",
        "fused_rnn/backends/reference.py",
        "state = _join([state, _rows(first, running, n)])",
        "state = _join([state, _rows(first, 0, n - running)])",
        ("tests/test_functional.py", "tests/test_modules.py"),
    ),
    Mutant(
        "py-reference-packed-final-states",
        "fused_rnn/backends/reference.py",
        "return states, _join([state, *reversed(ended)])",
        "return states, _join([state, *ended])",
        ("tests/test_functional.py", "tests/backends/test_kernels.py"),
    ),
)

"""Faults of the choice by measurement, and of the one command for a GPU."""

from __future__ import annotations

from .mutant import Mutant

_TUNE = ("tests/test_tune.py",)
_DEFAULT = ("tests/backends/test_default.py",)
_PLANNED = ("tests/backends/native/test_planned.py", "tests/backends/native/cuda/test_planned.py")
_GPU = ("tests/benchmarks/test_gpu.py",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "py-tune-slowest",
        "fused_rnn/backends/measured.py",
        "return min(self.seconds, key=self.seconds.__getitem__)",
        "return max(self.seconds, key=self.seconds.__getitem__)",
        _TUNE,
    ),
    Mutant(
        "py-tune-of-any-machine",
        "fused_rnn/backends/measured.py",
        "if (self.here, self.kind) != (here, kind):",
        "if self.kind != kind:",
        _TUNE,
    ),
    Mutant(
        "py-tune-of-any-kind",
        "fused_rnn/backends/measured.py",
        "if (self.here, self.kind) != (here, kind):",
        "if self.here != here:",
        _TUNE,
    ),
    Mutant(
        "py-tune-single-sequences-too",
        "fused_rnn/backends/measured.py",
        "(max(2, -(-size // factor)), size * factor)",
        "(-(-size // factor), size * factor)",
        _TUNE,
    ),
    Mutant(
        "py-tune-farthest",
        "fused_rnn/backends/measured.py",
        "return abs(math.log(self.T / T)) + abs(math.log(self.N / N))",
        "return -abs(math.log(self.T / T)) - abs(math.log(self.N / N))",
        _TUNE,
    ),
    Mutant(
        "py-tune-graphs-of-one-size",
        "fused_rnn/backends/measured.py",
        "return found[0] if len({entry.way for entry in found}) == 1 else None",
        "return found[0] if found else None",
        _TUNE,
    ),
    Mutant(
        "py-tune-any-format",
        "fused_rnn/backends/measured.py",
        'if found["fused_rnn.tune"] != FORMAT:',
        "if False:",
        _TUNE,
    ),
    Mutant(
        "py-tune-wrong-is-chosen",
        "fused_rnn/trials.py",
        "if not all(error <= limit for error, limit in zip(errors, limits, strict=True)):",
        "if False:",
        _TUNE,
    ),
    Mutant(
        "py-tune-nan-is-right",
        "fused_rnn/trials.py",
        'worst = max(worst, off.nan_to_num(nan=float("inf"), posinf=float("inf")).item())',
        "worst = max(worst, off.nan_to_num(nan=0.0).item())",
        _TUNE,
    ),
    Mutant(
        "py-tune-gradients-unchecked",
        "fused_rnn/trials.py",
        "errors = Errors(*(_error(a, b) for a, b in zip(found, truth, strict=True)))",
        "errors = Errors(_error(found[0], truth[0]), 0.0)",
        _TUNE,
    ),
    Mutant(
        "py-tune-layers-apart",
        "fused_rnn/tune.py",
        "return p if p.width == 0 else p._replace(I=p.width)",
        "return p",
        _TUNE,
    ),
    Mutant(
        "py-tune-under-ddp",
        "fused_rnn/tune.py",
        "            model = model.module\n",
        "            pass\n",
        _TUNE,
        argued="of one rank, whose reducer is content with a forward that has no backward",
    ),
    Mutant(
        "py-tune-tells-of-trials",
        "fused_rnn/tune.py",
        "    with record():  # who looks on",
        "    if True:  # who looks on",
        _TUNE,
    ),
    Mutant(
        "py-tune-in-graphs",
        "fused_rnn/tune.py",
        "if _running.get() or capturing or torch.compiler.is_compiling():",
        "if _running.get() or capturing:",
        _TUNE,
    ),
    Mutant(
        "py-choice-forgets-nothing",
        "fused_rnn/backends/__init__.py",
        "    tuned.add(entries)\n    _forget()\n",
        "    tuned.add(entries)\n",
        _TUNE,
    ),
    Mutant(
        "py-choice-kernels-on-an-unmeasured-gpu",
        "fused_rnn/backends/__init__.py",
        'by_torch = problem.device.type != "cpu" and not',
        'by_torch = problem.device.type == "xpu" and not',
        _DEFAULT,
    ),
    Mutant(
        "py-choice-torch-for-what-it-has-not",
        "fused_rnn/backends/__init__.py",
        "beyond = problem.states or problem.marked or problem.cut or problem.recompute",
        "beyond = problem.states or problem.marked or problem.recompute",
        _DEFAULT,
    ),
    Mutant(
        "py-choice-graphs-break-in-spite",
        "fused_rnn/graph/compiled.py",
        "if backend is None and not transforms.may_break():",
        "if False:",
        _DEFAULT,
    ),
    Mutant(
        "py-ways-left-told",
        "fused_rnn/backends/native/planned.py",
        "            persistent.ops().persistent_way(before)\n",
        "            pass\n",
        _PLANNED,
    ),
    Mutant(
        "py-ways-of-one-pass",
        "fused_rnn/backends/native/planned.py",
        "    return None if name in seconds else name",
        "    return None",
        _PLANNED,
    ),
    Mutant(
        "gpu-run-forgets-what-it-did",
        "benchmarks/gpu/runner.py",
        "            self.done = json.loads(self._state.read_text())\n",
        "            pass\n",
        _GPU,
    ),
    Mutant(
        "gpu-run-kills-one-process",
        "benchmarks/gpu/runner.py",
        "os.killpg(process.pid, number)",
        "os.kill(process.pid, number)",
        _GPU,
    ),
    Mutant(
        "gpu-run-stops-at-a-hung-kernel",
        "benchmarks/gpu/each_kernel.py",
        "        return first + 1, bad + 1",
        "        return count, bad + 1",
        _GPU,
    ),
)

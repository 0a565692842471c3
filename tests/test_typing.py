"""What a type checker makes of a program that uses the package: right ones pass, wrong ones not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn

ROOT = Path(__file__).parents[1]

pytest.importorskip("mypy", reason="mypy is not installed")

RIGHT = """\
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import fused_rnn
from fused_rnn import functional

x, resets = torch.randn(5, 3, 4), torch.zeros(5, 3, dtype=torch.bool)
lengths, packed = torch.tensor([5, 2, 0]), pack_sequence([torch.randn(5, 4)])
Pair = tuple[Tensor, Tensor]

lstm = fused_rnn.LSTM(
    4, 6, 2, True, False, 0.1, False, 0, "cpu", torch.float32, recompute=True,
    learn_initial_state=True,
)
y, (h, c) = lstm(x)
assert_type(y, Tensor)
assert_type(c, Tensor)
assert_type(lstm(x, (h, c), lengths=lengths, resets=resets), tuple[Tensor, Pair])
assert_type(lstm(packed), tuple[PackedSequence, Pair])
assert_type(lstm(x, return_states=True), tuple[Tensor, Pair, Pair])
assert_type(
    lstm(packed, return_states=True),
    tuple[PackedSequence, Pair, tuple[PackedSequence, PackedSequence]],
)
assert_type(lstm.forward(x), tuple[Tensor, Pair])
assert_type(lstm.step(x[0]), tuple[Tensor, Pair])
assert_type(lstm.step(x[0], (h, c)), tuple[Tensor, Pair])
assert_type(lstm.gates(x, (h, c), lengths=lengths, resets=resets), dict[str, Tensor])
lstm.recompute = False
torch.serialization.add_safe_globals(list(fused_rnn.safe_globals()))

gru = fused_rnn.GRU(4, 6, 2, True, False, 0.1, False, torch.device("cpu"), torch.float32)
assert_type(gru(x, h, lengths=lengths), tuple[Tensor, Tensor])
assert_type(gru(packed), tuple[PackedSequence, Tensor])
assert_type(gru(x, return_states=True), tuple[Tensor, Tensor, Tensor])
assert_type(gru(packed, return_states=True), tuple[PackedSequence, Tensor, PackedSequence])
assert_type(gru.step(x[0], h), tuple[Tensor, Tensor])

rnn = fused_rnn.RNN(4, 6, 1, "relu", bias=False, bidirectional=True)
assert_type(rnn(x)[1], Tensor)

assert_type(fused_rnn.LSTMCell(4, 6, True, "cpu", torch.float32)(x[0], (h[0], c[0])), Pair)
assert_type(fused_rnn.GRUCell(4, 6)(x[0], h[0]), Tensor)
assert_type(fused_rnn.RNNCell(4, 6, nonlinearity="relu").forward(x[0]), Tensor)

small = fused_rnn.quantize(fused_rnn.LSTM(4, 6), dtype=torch.int8, keep=True, report=print)
assert isinstance(small, fused_rnn.QuantizedLSTM)
assert_type(small(x), tuple[Tensor, Pair])
assert not isinstance(small, (fused_rnn.QuantizedGRU, fused_rnn.QuantizedRNN))
fused_rnn.dequantize(small, report=True)


Imported = fused_rnn.LSTM | fused_rnn.GRU | fused_rnn.RNN


def imported(layer: object) -> None:
    assert_type(fused_rnn.from_onnx("model.onnx", "node"), Imported)
    assert_type(fused_rnn.from_keras(layer), Imported)



class Tagger(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer


class Own(fused_rnn.GRU):
    def __init__(self, name: str) -> None:
        super().__init__(4, 6)
        self.name = name


tagger = Tagger(Own("encoder"))
assert_type(fused_rnn.convert(tagger, report=print), Tagger)
swaps: list[fused_rnn.Swap] = []
assert_type(fused_rnn.revert(tagger, report=swaps.append), Tagger)
fused_rnn.convert(tagger, report=True)

explanation = fused_rnn.explain(gru, x, h, lengths=lengths)
assert_type(explanation, fused_rnn.Explanation)
assert_type(explanation[0], fused_rnn.Row)
assert_type([row.refusals for row in explanation], list[dict[str, str]])
assert_type(fused_rnn.available_backends(), dict[str, str | None])


def tuned(path: str) -> fused_rnn.Tuning:
    tuning = fused_rnn.tune(tagger, x, training=False)
    assert_type(tuning[0], fused_rnn.Measured)
    assert_type(tuning[0].trials, list[fused_rnn.Trial])
    fused_rnn.tune.save(path)
    fused_rnn.tune.load(path)
    return tuning


with fused_rnn.use_backend("reference"), fused_rnn.use_backend(None):
    pass
assert_type(fused_rnn.__version__, str)

weights = nn.LSTM(4, 6, 2).all_weights
assert_type(functional.lstm(x, None, weights), tuple[Tensor, Pair])
assert_type(functional.lstm(x, (h, c), weights, return_states=True), tuple[Tensor, Pair, Pair])
assert_type(functional.lstm_cell(x[0], (h[0], c[0]), *weights[0]), Pair)
weights = nn.GRU(4, 6, 2).all_weights
assert_type(functional.gru(x, h, weights, dropout=0.5, training=True), tuple[Tensor, Tensor])
assert_type(functional.gru(x, None, weights, return_states=True), tuple[Tensor, Tensor, Tensor])
assert_type(functional.gru_cell(x[0], h[0], *weights[0]), Tensor)
weights = nn.RNN(4, 6, nonlinearity="relu").all_weights
assert_type(functional.rnn(x, None, weights, "relu"), tuple[Tensor, Tensor])
assert_type(functional.rnn_cell(x[0], h[0], weights[0][0], weights[0][1]), Tensor)
"""

PREAMBLE = """\
import torch
from torch import nn
import fused_rnn
from fused_rnn import functional

x = torch.randn(5, 3, 4)
lengths = torch.tensor([5, 2, 0])
lstm, gru, rows = fused_rnn.LSTM(4, 6), fused_rnn.GRU(4, 6), nn.GRU(4, 6).all_weights
"""

# One line each, and the code and a part of what is said of it.
WRONG = {
    "fused_rnn.LSTM(4, 6, bidirectionl=True)": ("call-arg", 'argument "bidirectionl"'),
    "fused_rnn.GRU(4)": ("call-arg", '"hidden_size"'),
    "fused_rnn.GRU(4, 6, proj_size=2)": ("call-arg", '"proj_size"'),
    "fused_rnn.RNN('4', 6)": ("arg-type", "int"),
    "fused_rnn.RNN(4, 6, nonlinearity='sigmoid')": ("arg-type", "nonlinearity"),
    "fused_rnn.LSTM(4, 6, learn_initial_state='yes')": ("arg-type", "bool"),
    "fused_rnn.LSTM(4, 6, 1, True, False, 0.0, False, 0, None, None, True)": ("call-arg", "many"),
    "fused_rnn.GRUCell(4, 6, dtype='float32')": ("arg-type", "dtype"),
    "lstm(x, lengths=[5, 2, 0])": ("call-overload", "overload"),
    "lstm(x, length=lengths)": ("call-overload", "overload"),
    "lstm(x, x)": ("call-overload", "overload"),
    "gru(x, (x, x))": ("call-overload", "overload"),
    "gru(x, return_states='x')": ("call-overload", "overload"),
    "output, hidden, states = gru(x)": ("misc", "3 expected"),
    "lstm.step(x[0], x)": ("arg-type", "tuple[Tensor, Tensor]"),
    "lstm.gates(x, lengths=3)": ("arg-type", "lengths"),
    "lstm.recompute = 'yes'": ("assignment", "bool"),
    "fused_rnn.convert(x)": ("type-var", "Tensor"),
    "fused_rnn.convert(gru, report='print')": ("arg-type", "report"),
    "fused_rnn.explain(gru, x)[0].reasons": ("attr-defined", "reasons"),
    "fused_rnn.use_backend(3)": ("arg-type", "str"),
    "functional.gru(x, None, rows, bidirectionl=True)": ("call-overload", "overload"),
    "functional.gru(x, None, rows[0])": ("arg-type", "Sequence[Sequence[Tensor]]"),
    "functional.lstm(x, x, rows)": ("call-overload", "overload"),
    "functional.rnn(x, None, rows, 'sigmoid')": ("call-overload", "overload"),
    "functional.gru_cell(x[0], (x, x), x, x)": ("arg-type", "tuple[Tensor, Tensor]"),
    "fused_rnn.LTSM(4, 6)": ("attr-defined", "LTSM"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """Return what mypy says to each of the two programs, by line: in one run, for its seconds."""
    folder = tmp_path_factory.mktemp("mypy")
    programs = {"right": RIGHT, "wrong": PREAMBLE + "\n".join(WRONG) + "\n"}
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    # Under the own settings, whose cache `make lint` has filled: torch alone takes half a minute.
    command = [sys.executable, "-m", "mypy", "--no-error-summary"]
    command += ["--hide-error-context", "--no-color-output"]
    command += [str(folder / f"{name}.py") for name in programs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, dict[int, str]] = {name: {} for name in programs}
    for line in done.stdout.splitlines():
        name, number, message = re.match(r".*\b(\w+)\.py:(\d+): (.*)", line).groups()
        of_program = found[name]
        of_program[int(number)] = of_program.get(int(number), "") + message
    return found


def test_a_program_that_uses_all_there_is(said):
    assert said["right"] == {}
    unused = [name for name in fused_rnn.__all__ if f"fused_rnn.{name}" not in RIGHT]
    assert unused == ["functional"]
    functions = fused_rnn.functional.__all__
    assert [name for name in functions if f"functional.{name}(" not in RIGHT] == []


def test_the_program_runs():
    exec(compile(RIGHT, "program.py", "exec"), {"__name__": "program"})


def test_each_mistake_is_found(said):
    first = PREAMBLE.count("\n") + 1
    for number, (line, (code, part)) in enumerate(WRONG.items(), first):
        message = said["wrong"].get(number, "")
        assert f"[{code}]" in message, line
        assert part in message, line
    assert set(said["wrong"]) == set(range(first, first + len(WRONG)))

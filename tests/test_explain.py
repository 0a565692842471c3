"""explain: it names what ran, for each layer and direction, and why nothing else did."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fused_rnn
from fused_rnn import backends
from fused_rnn.backends import BACKENDS, Problem, native, reference

I, H, N, T = 3, 4, 2, 5  # noqa: E741


def refusal(problem: Problem) -> str | None:
    if problem.dtype == torch.float64:
        return "no doubles"
    return "more than 9 inputs" if problem.I > 9 else None


@pytest.fixture(autouse=True)
def three_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One backend that is missing, one that refuses some problems, and the reference."""
    picky = SimpleNamespace(
        name="picky",
        checks_operands=False,
        available=lambda: None,
        supports=refusal,
        forward=reference.forward,
        saved=reference.saved,
        backward=reference.backward,
    )
    missing = SimpleNamespace(name="missing", available=lambda: "not built", supports=refusal)
    real = dict(BACKENDS)  # put back in this order, which is that of the choice
    BACKENDS.clear()
    BACKENDS.update({backend.name: backend for backend in (missing, picky, reference)})
    monkeypatch.setattr(backends, "_environment", None)
    choices = (backends._automatic, backends._by_name)
    for choice in choices:
        choice.cache_clear()
    yield
    BACKENDS.clear()
    BACKENDS.update(real)
    for choice in choices:
        choice.cache_clear()


class Reader(nn.Module):
    """Runs a layer twice, a cell T times, and a layer that was not converted."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ModuleDict({"ways": fused_rnn.GRU(I, H, 2, bidirectional=True)})
        self.cell = fused_rnn.LSTMCell(2 * H, H)
        self.last = nn.RNN(H, H)
        self.unused = fused_rnn.RNN(I, H)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.both["ways"](x)
        y, state, hidden = y + self.both["ways"](x)[0], None, []
        for step in y:
            state = self.cell(step, state)
            hidden.append(state[0])
        return self.last(torch.stack(hidden))[0]


def test_each_layer_and_direction_of_a_model() -> None:
    rows = fused_rnn.explain(Reader(), torch.rand(T, N, I))
    assert [(r.module, r.layer, r.direction, r.backend, r.calls) for r in rows] == [
        ("both.ways", 0, "forward", "picky", 2),
        ("both.ways", 0, "reverse", "picky", 2),
        ("both.ways", 1, "forward", "picky", 2),
        ("both.ways", 1, "reverse", "picky", 2),
        ("cell", 0, "forward", "picky", T),
        ("last", None, None, "torch.nn", 1),
    ]
    assert len(rows) == 6
    assert rows[0].refusals == {"missing": "not built", "reference": "picky comes before it"}
    assert set(rows[5].refusals) == {"missing", "picky", "reference"}
    assert "fused_rnn.convert would swap it" in rows[5].refusals["picky"]


def test_table() -> None:
    x = torch.rand(T, N, I).double()
    model = nn.Sequential(fused_rnn.LSTM(I, H, bidirectional=True)).double()
    others = [
        "                                           picky: no doubles",
        "                                           reference: torch.nn's own forward is faster",
    ]
    assert str(fused_rnn.explain(model, x)).splitlines() == [
        "module  layer  direction  backend   calls  why not the others",
        "0       0      forward    torch.nn  1      missing: not built",
        *others,
        "0       0      reverse    torch.nn  1      missing: not built",
        *others,
    ]
    assert str(fused_rnn.explain(nn.Linear(3, 3), torch.rand(3))) == "No recurrent layer ran."
    assert str(fused_rnn.explain(nn.GRU(I, H), torch.rand(T, I))).splitlines() == [
        "module    layer  direction  backend   calls  why not the others",
        "(itself)  all    all        torch.nn  1      missing, picky, reference: "
        "it is torch.nn's, fused_rnn.convert would swap it",
    ]


def test_torch_runs_all_layers_or_none() -> None:
    rows = fused_rnn.explain(fused_rnn.GRU(I, 10, num_layers=2), torch.rand(T, N, I))
    assert [r.backend for r in rows] == ["torch.nn"] * 2
    assert "another one needs it" in rows[0].refusals["picky"]
    assert rows[1].refusals["picky"] == "more than 9 inputs"


@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_operands_that_no_kernel_sees(kind: str) -> None:
    class Own(Tensor):
        """Not a plain tensor."""

    module = fused_rnn.GRU(I, H) if kind == "layer" else fused_rnn.GRUCell(I, H)
    rows = fused_rnn.explain(module, torch.rand(T, I).as_subclass(Own))
    assert [(r.layer, r.direction, r.backend) for r in rows] == [(None, None, "torch.nn")]
    assert set(rows[0].refusals) == set(BACKENDS)


def test_chosen_by_name() -> None:
    layer, x = fused_rnn.RNN(I, H), torch.rand(T, N, I)
    with fused_rnn.use_backend("reference"):
        rows = fused_rnn.explain(layer, x)
    assert rows[0].backend == "reference"
    assert rows[0].refusals == {"missing": "not built", "picky": "reference was chosen by name"}
    with fused_rnn.use_backend("torch"):
        rows = fused_rnn.explain(layer, x)
    assert rows[0].backend == "torch.nn"
    assert rows[0].refusals["picky"] == "torch.nn was chosen by name"
    with fused_rnn.use_backend("picky"), pytest.raises(RuntimeError, match="no doubles"):
        fused_rnn.explain(layer.double(), x.double())


def test_packed_input_and_keywords() -> None:
    packed = pack_sequence([torch.rand(4, I), torch.rand(2, I)])
    rows = fused_rnn.explain(fused_rnn.GRU(I, H), packed, hx=torch.zeros(1, 2, H))
    assert [r.backend for r in rows] == ["picky"]


def test_modules_that_are_not_called_as_such() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = fused_rnn.LSTM(I, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer.forward(x)[0]

    rows = fused_rnn.explain(Direct(), torch.rand(T, N, I))
    assert [(r.module, r.backend) for r in rows] == [("(not called as a module)", "picky")]


def test_a_users_own_layers() -> None:
    class Louder(fused_rnn.GRU):
        def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(*args)

    class Torchs(nn.GRU):
        pass

    model = nn.ModuleList([Louder(I, H), Torchs(I, H)])
    model.forward = lambda x: [layer(x) for layer in model]
    rows = fused_rnn.explain(model, torch.rand(T, N, I))
    assert [(r.module, r.backend) for r in rows] == [("0", "picky"), ("1", "torch.nn")]
    assert "a class of its own" in rows[1].refusals["picky"]


def test_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Dropout(0.5), fused_rnn.GRU(I, H, 2, dropout=0.5))
    x, state = torch.rand(T, N, I), torch.get_rng_state()
    attributes = {key: repr(value) for key, value in vars(model[1]).items()}
    with torch.no_grad():
        fused_rnn.explain(model, x)
    with pytest.raises(RuntimeError, match=r"input\.size\(-1\)"):
        fused_rnn.explain(model, x[..., 1:])
    assert torch.equal(torch.get_rng_state(), state)
    assert {key: repr(value) for key, value in vars(model[1]).items()} == attributes
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_grad_mode_is_as_it_is() -> None:
    seen: list[tuple[bool, bool]] = []
    layer, x = fused_rnn.GRU(I, H), torch.rand(T, N, I)
    layer.register_forward_hook(
        lambda _, __, out: seen.append((torch.is_grad_enabled(), out[0].requires_grad))
    )
    fused_rnn.explain(layer, x)
    with torch.no_grad():
        fused_rnn.explain(layer, x)
    assert seen == [(True, True), (False, False)]


def test_compiled_model() -> None:
    torch.compiler.reset()
    model = Reader()
    compiled, x = torch.compile(model, backend="eager"), torch.rand(T, N, I)
    expected = model(x)
    # First before anything is compiled, then after.
    for _ in range(2):
        rows = fused_rnn.explain(compiled, x)
        assert [r.module.removeprefix("_orig_mod.") for r in list(rows)[:5:2]] == [
            "both.ways"
        ] * 2 + ["cell"]
        torch.testing.assert_close(compiled(x), expected)
        assert [r.calls for r in rows] == [2, 2, 2, 2, T, 1]


@pytest.mark.parametrize("what", [None, nn.GRU, lambda x: x])
def test_not_a_module(what: object) -> None:
    with pytest.raises(TypeError, match=r"module should be a torch\.nn\.Module, got: \w+"):
        fused_rnn.explain(what, torch.rand(T, N, I))


def test_how_the_steps_lie_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "name", "picky")  # which runs here
    layer, x = fused_rnn.GRU(3, 4), torch.randn(5, 2, 3)
    monkeypatch.setattr(native, "plan", lambda problem, _: None)
    assert fused_rnn.explain(layer, x)[0].how is None
    assert "how" not in str(fused_rnn.explain(layer, x)).splitlines()[0].split()
    monkeypatch.setattr(native, "plan", lambda problem, _: f"persistent, T = {problem.T}")
    found = fused_rnn.explain(layer, x)
    assert found[0].how == "persistent, T = 5"
    headings, line = str(found).splitlines()[:2]
    assert headings.split()[5:7] == ["how", "why"]  # not the others
    assert found[0].why is None
    assert line.index("persistent, T = 5") == headings.index("how")


def test_both_directions_may_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "name", "picky")
    monkeypatch.setattr(native, "plan", lambda _, together: "at once" if together else "alone")
    x = torch.randn(5, 2, 3)
    ways = fused_rnn.GRU(3, 4, bidirectional=True)
    assert [row.how for row in fused_rnn.explain(ways, x)] == ["at once"] * 2
    assert [row.how for row in fused_rnn.explain(fused_rnn.GRU(3, 4), x)] == ["alone"]
    kept = fused_rnn.GRU(3, 4, bidirectional=True, recompute=True)
    assert [row.how for row in fused_rnn.explain(kept, x)] == ["alone"] * 2

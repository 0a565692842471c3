"""tune: every way is checked and timed, the fastest of the right ones runs, here and elsewhere."""

import json
import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fused_rnn
from fused_rnn import backends, trials
from fused_rnn.backends import BACKENDS, NotNowError, Problem, asked_for, reference, select, tuned
from fused_rnn.backends.measured import Table, kind_of
from fused_rnn.graph.compiled import choose_in_graph
from fused_rnn.scans.checks import Stack
from fused_rnn.tune import _first_call
from tests.operands import Stub
from tests.twins import CELLS, LAYERS, example

T, N, I, H = 5, 2, 3, 4  # noqa: E741


class Kernel(Stub):
    """A kernel with a fault: none, or in what it returns, or it refuses, or fails."""

    def __init__(self, name, fault=""):
        self.name, self.fault = name, fault

    def supports(self, problem):
        return "it never does" if self.fault == "refuses" else super().supports(problem)

    def forward(self, *args):
        if self.fault == "fails":
            raise RuntimeError("it broke\nand more")
        y, *rest = super().forward(*args)
        return y + 1e-3 if self.fault == "y" else y * torch.nan if self.fault == "nan" else y, *rest

    def scan_states(self, cell, inputs, batch_sizes, reverse, training):
        with torch.no_grad():
            y, h_n, c_n, c = reference.scan_states(cell, inputs, batch_sizes, reverse)
        return y, h_n, c_n, (), c

    def backward(self, *args):
        dx, *rest = super().backward(*args)
        return dx * 1.01 if self.fault == "dx" else dx, *rest


class Odd(torch.Tensor):
    """No plain tensor: torch.nn's business."""


class ByPlans(Kernel):
    """A kernel with ways of its own, one of which is known once the others were timed."""

    def ways(self, problem, seconds):
        return ["third"] if len(seconds) == 2 else [] if seconds else ["first", "second"]

    def way(self, name):
        if name not in ("first", "second", "third"):
            raise ValueError(name)
        made = Kernel(self.name)
        made.way_name = name
        return made


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Nothing was measured before, nor will have been afterwards."""
    monkeypatch.setattr(tuned, "_measured", Table())
    monkeypatch.setattr(tuned, "_path", None)
    monkeypatch.setattr(trials, "_SECONDS", 0.0)
    backends._forget()
    yield
    monkeypatch.undo()
    backends.at_first_call(None)  # which forgets all choices
    backends._by_name.cache_clear()


@pytest.fixture
def table():
    """Return a function that puts kernels into the table, before the reference."""
    real = dict(BACKENDS)

    def put(*kernels):
        BACKENDS.clear()
        BACKENDS.update({b.name: b for b in (*kernels, reference)})
        backends._forget()
        backends._by_name.cache_clear()

    yield put
    put()
    BACKENDS.clear()
    BACKENDS.update(real)


@pytest.fixture
def clock(monkeypatch):
    """Return a dictionary of how long each way takes; a second where nothing is said."""
    seconds = {}

    def tick(call, device):
        call()
        return seconds.get(asked_for(), 1.0)

    monkeypatch.setattr(trials, "clock", tick)
    return seconds


def layer(name="LSTM", **options):
    return getattr(fused_rnn, name)(I, H, **options)


def x(steps=T, batch=N):
    return torch.randn(steps, batch, I)


def ran(module, *args, **kwargs):
    """Return what explain says of the first row: the backend, and what was measured."""
    row = fused_rnn.explain(module, *args, **kwargs)[0]
    return row.backend, row.why


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_the_ways_on_a_cpu_are_native_and_torchs(name, training, capsys):
    module = getattr(fused_rnn, name)(3, 4)
    (measured,) = fused_rnn.tune(module, example(name), training=training)
    assert [t.way for t in measured.trials] == ["torch", "native"]
    for trial in measured.trials:
        assert trial.failure is None
        assert trial.seconds > 0
        assert 0 <= trial.error < 1e-5
    assert measured.problem.training is training
    text = capsys.readouterr().out
    assert "torch.nn" in text
    assert text.count("chosen") == 1
    with torch.set_grad_enabled(training):
        backend, why = ran(module, example(name))
    assert backend == {"torch": "torch.nn"}.get(measured.chosen, measured.chosen)
    assert why.startswith("measured: ")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_both_are_right_in_every_dtype(dtype):
    (measured,) = fused_rnn.tune(layer("GRU", dtype=dtype), x().to(dtype))
    assert [t.failure for t in measured.trials] == [None, None]


def test_the_fastest_is_kept_and_runs(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"torch": 0.9, "slow": 1.2, "quick": 0.5}
    module = layer()
    assert ran(module, x()) == ("slow", None)
    (measured,) = fused_rnn.tune(module, x())
    assert measured.chosen == "quick"
    assert [measured.ratio(t) for t in measured.trials] == [1.0, 0.75, 1.8]
    assert ran(module, x()) == ("quick", "measured: 1.80x over torch.nn")
    row = fused_rnn.explain(module, x())[0]
    assert row.refusals["slow"] == "measured: 2.40x the time"
    assert "why" in str(fused_rnn.explain(module, x()))


def test_torch_is_kept_where_it_is_the_fastest(table, clock):
    table(Kernel("slow"))
    clock |= {"torch": 0.5, "slow": 1.0}
    module = layer(num_layers=2)
    fused_rnn.tune(module, x())
    rows = fused_rnn.explain(module, x())
    assert {(r.backend, r.why) for r in rows} == {("torch.nn", "measured: 2.00x over slow")}
    assert rows[0].refusals["slow"] == "measured: 2.00x the time"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("y", "WRONG: results off by"),
        ("nan", "WRONG: results off by inf"),
        ("dx", "WRONG: results off by"),
        ("refuses", "refused: it never does"),
        ("fails", "failed: RuntimeError: it broke"),
    ],
)
def test_what_is_wrong_refuses_or_fails_is_said_and_never_chosen(table, clock, capsys, fault, said):
    table(Kernel("good"), Kernel("bad", fault))
    clock |= {"torch": 0.9, "bad": 0.1, "good": 0.5}
    module = layer()
    (measured,) = fused_rnn.tune(module, x(), training=True)
    bad = next(t for t in measured.trials if t.way == "bad")
    assert bad.failure.startswith(said)
    assert bad.seconds is None
    assert said in capsys.readouterr().out
    assert measured.chosen == "good"
    assert ran(module, x()) == ("good", "measured: 1.80x over torch.nn")


def test_a_wrong_gradient_does_not_count_in_inference(table, clock):
    table(Kernel("half", "dx"))
    clock |= {"torch": 0.9, "half": 0.1}
    assert fused_rnn.tune(layer(), x(), training=False)[0].chosen == "half"


def test_torch_is_judged_too_and_where_nothing_is_right_the_default_stays(
    table, clock, monkeypatch, capsys
):
    table(Kernel("kernel"), Kernel("quick"))
    monkeypatch.setitem(trials.LIMITS, torch.float32, (0.0, 0.0))
    clock |= {"torch": 0.1, "quick": 0.5}
    (measured,) = fused_rnn.tune(layer(), x())
    assert {t.way for t in measured.trials if t.failure.startswith("WRONG")} >= {"torch", "quick"}
    assert measured.chosen is None
    assert "no way is right: the default stays" in capsys.readouterr().out
    assert len(tuned.measurements()) == 0
    assert ran(layer(), x()) == ("kernel", None)


@pytest.mark.parametrize(
    ("products", "cudnn", "way", "dtype"),
    [
        ("tf32", "ieee", "native stepwise", torch.float16),
        ("ieee", "tf32", "native stepwise", torch.float32),
        ("ieee", "tf32", "torch", torch.float16),
        ("ieee", "ieee", "torch", torch.float32),
    ],
)
def test_tf32_may_be_off_by_more(products, cudnn, way, dtype, monkeypatch):
    settings = SimpleNamespace(fp32_precision=products), SimpleNamespace(fp32_precision=cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings[0])
    monkeypatch.setattr(torch.backends.cudnn, "rnn", settings[1])
    sizes = T, N, I, H, 0
    for kind in ("cuda", "cpu"):
        device = torch.device(kind)
        problem = Problem("lstm", device, torch.float32, *sizes, False, True, None)
        expected = trials.LIMITS[dtype if kind == "cuda" else torch.float32]
        assert trials.allowed(problem, way) == expected


def test_ways_of_a_backend(table, clock):
    table(ByPlans("plans"))
    clock |= {"torch": 0.9, "plans first": 0.8, "plans second": 0.7, "plans third": 0.5}
    module = layer()
    (measured,) = fused_rnn.tune(module, x())
    assert [t.way for t in measured.trials] == [
        "torch", "plans first", "plans second", "plans third",
    ]  # fmt: skip
    assert measured.chosen == "plans third"
    assert ran(module, x()) == ("plans", "measured: 1.80x over torch.nn")
    assert select(measured.problem).backend.way_name == "third"


def test_it_holds_for_sizes_near_those_measured(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module = layer()
    fused_rnn.tune(module, x(8, 4))
    served = [(2, 4), (32, 4), (8, 2), (8, 8), (31, 7)]
    beyond = [(33, 4), (8, 1), (8, 9), (1, 4)]
    for sizes in served + beyond:
        assert ran(module, x(*sizes))[0] == ("quick" if sizes in served else "slow"), sizes
    with torch.no_grad():
        assert ran(module, x(8, 4)) == ("slow", None)
    assert ran(fused_rnn.LSTM(I, H + 1), x(8, 4)) == ("slow", None)
    assert ran(layer("GRU"), x(8, 4)) == ("slow", None)


def test_the_nearest_counts_and_a_second_measurement_replaces_the_first(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    module = layer()
    for steps, way in ((8, "quick"), (20, "torch"), (20, "slow")):
        clock.clear()
        clock[way] = 0.5
        fused_rnn.tune(module, x(steps))
    assert len(tuned.measurements()) == 2
    assert ran(module, x(10))[0] == "quick"
    assert ran(module, x(18))[0] == "slow"


def test_a_stack_is_measured_as_one(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module = layer(num_layers=2, bidirectional=True)
    (measured,) = fused_rnn.tune(module, x())
    assert (
        measured.problem[:10]
        == Problem("lstm", torch.device("cpu"), torch.float32, T, N, I, H, 0, False, True, None)[
            :10
        ]
    )
    assert (measured.problem.layers, measured.problem.directions) == (2, 2)
    assert {r.backend for r in fused_rnn.explain(module, x())} == {"quick"}
    assert ran(layer(), x()) == ("slow", None)  # of one layer nothing is known


def test_a_step_is_no_sequence_of_one(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    fused_rnn.tune(fused_rnn.LSTMCell(I, H), torch.randn(N, I))
    assert ran(fused_rnn.LSTMCell(I, H), torch.randn(N, I))[0] == "quick"
    stacked = layer(bidirectional=True)
    assert ran(stacked, x(1))[0] == "slow"


@pytest.mark.parametrize(
    ("options", "call", "by_torch"),
    [
        ({}, {"lengths": torch.tensor([5, 3])}, True),
        ({}, {"return_states": True}, False),
        ({"recompute": True}, {}, False),
    ],
    ids=["lengths", "states", "recompute"],
)
def test_options_are_problems_of_their_own(table, clock, options, call, by_torch):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"torch": 0.1, "quick": 0.5}
    module = layer(**options)
    (measured,) = fused_rnn.tune(module, x(), **call)
    assert [t.way for t in measured.trials] == ["torch"] * by_torch + ["slow", "quick"]
    assert all(t.failure is None for t in measured.trials)
    backend, why = ran(module, x(), **call)
    assert backend == ("torch.nn" if by_torch else "quick")
    assert why == ("measured: 5.00x over quick" if by_torch else "measured: 2.00x over slow")
    assert ran(layer(), x())[0] == "slow"


def test_packed_sequences(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    packed = nn.utils.rnn.pack_padded_sequence(x(), torch.tensor([5, 2]))
    (measured,) = fused_rnn.tune(layer(), packed)
    assert measured.problem.ragged
    assert [t.failure for t in measured.trials] == [None] * 3
    assert ran(layer(), packed)[0] == "quick"


def test_what_has_no_ways_is_said(capsys):
    module = fused_rnn.LSTM(I, H, dtype=torch.complex64)
    (measured,) = fused_rnn.tune(module, x().to(torch.complex64))
    assert measured.trials == []
    assert "not measured: no kernel for torch.complex64" in capsys.readouterr().out
    assert len(tuned.measurements()) == 0


def test_a_choice_by_name_comes_first(table, clock, monkeypatch):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module = layer()
    fused_rnn.tune(module, x())
    with fused_rnn.use_backend("slow"):
        assert ran(module, x()) == ("slow", None)
    monkeypatch.setattr(backends, "_environment", "torch")
    assert ran(module, x()) == ("torch.nn", None)
    with fused_rnn.use_backend("slow"):
        assert ran(module, x())[0] == "slow"


def test_nothing_is_measured_unasked(monkeypatch):
    def never(problem):
        raise AssertionError(problem)

    monkeypatch.setattr(trials, "try_all", never)
    layer()(x())
    layer().step(torch.randn(N, I))
    assert len(tuned.measurements()) == 0


def test_the_model_and_the_random_numbers_are_as_before(table):
    table(Kernel("kernel"))
    module = layer(num_layers=2, dropout=0.5)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    fused_rnn.tune(module, x())
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    x()
    assert torch.equal(drawn, torch.get_rng_state())
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_saved_and_loaded(table, clock, tmp_path):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module, path = layer(), tmp_path / "tuned.json"
    fused_rnn.tune(module, x())
    fused_rnn.tune.save(path)
    assert os.listdir(tmp_path) == ["tuned.json"]
    tuned._measured = Table()
    backends._forget()
    assert ran(module, x()) == ("slow", None)
    assert fused_rnn.tune.load(str(path)) == 1
    assert ran(module, x()) == ("quick", "measured: 2.00x over torch.nn")
    (entry,) = json.loads(path.read_text())["entries"]
    assert entry["serves"] == {"T": [2, 20], "N": [2, 4]}
    assert entry["way"] == "quick"
    assert dict(entry["versions"])["torch"] == torch.__version__


@pytest.mark.parametrize("other", ["device", "versions"])
def test_measurements_of_another_machine_do_not_count_and_are_kept(table, clock, tmp_path, other):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module, path = layer(), tmp_path / "tuned.json"
    fused_rnn.tune(module, x())
    fused_rnn.tune.save(path)
    plain = json.loads(path.read_text())
    plain["entries"][0][other] = "a GPU" if other == "device" else {"torch": "1.0"}
    path.write_text(json.dumps(plain))
    tuned._measured = Table()
    backends._forget()
    with pytest.warns(UserWarning, match=r"none of its 1 measurements is of a device that is here"):
        assert fused_rnn.tune.load(path) == 0
    assert ran(module, x()) == ("slow", None)
    fused_rnn.tune(module, x())
    fused_rnn.tune.save(path)
    assert len(json.loads(path.read_text())["entries"]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused_rnn.tune.load(path) == 1


def good():
    return {
        "device": "cpu", "versions": {}, "way": "torch", "measured": {"T": 1, "N": 1},
        "serves": {}, "seconds": {"torch": 1.0},
        "problem": kind_of(
            Problem("lstm", torch.device("cpu"), torch.float32, 1, 1, 1, 1, 0, False, False, None)
        )._asdict(),
    }  # fmt: skip


BROKEN = {
    "no-problem": {k: v for k, v in good().items() if k != "problem"},
    "another-field": {**good(), "problem": {**good()["problem"], "colour": "red"}},
    "no-dtype": {**good(), "problem": {**good()["problem"], "dtype": "nn"}},
    "no-number": {**good(), "seconds": {"torch": "soon"}},
    "below-zero": {**good(), "seconds": {"torch": -1.0}},
    "not-a-number": {**good(), "seconds": {"torch": float("nan")}},
    "no-seconds": {**good(), "seconds": {}},
    "no-steps": {**good(), "measured": {"T": 0, "N": 1}},
    "no-entry": 3,
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\x00", "is not JSON"),
        (b"T: 5", "is not JSON"),
        (b"[]", "is JSON, but not what fused_rnn.tune.save writes"),
        (b'{"cases": []}', "is JSON, but not what fused_rnn.tune.save writes"),
        (b'{"fused_rnn.tune": 7, "entries": []}', r"should be of format 1.*got: 7\. Tune again"),
        (b'{"fused_rnn.tune": 1}', "has a broken entry"),
        *(
            (json.dumps({"fused_rnn.tune": 1, "entries": [e]}).encode(), "has a broken entry")
            for e in BROKEN.values()
        ),
    ],
)
def test_another_file_is_refused_with_its_name(tmp_path, monkeypatch, text, said):
    path = tmp_path / "some.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"some\.json {said}"):
        fused_rnn.tune.load(path)
    assert len(tuned.measurements()) == 0
    monkeypatch.setattr(tuned, "_path", str(path))
    for _ in range(2):  # it does not go away by itself
        with pytest.raises(ValueError, match=rf"FUSED_RNN_TUNED: .*some\.json {said}"):
            layer()(x())


def test_a_good_entry_is_read(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"fused_rnn.tune": 1, "entries": [good()]}))
    assert len(Table.read(path)) == 1


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "none.json"
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        fused_rnn.tune.load(path)
    with pytest.raises(FileNotFoundError):
        fused_rnn.tune.save(tmp_path / "no" / "folder.json")
    monkeypatch.setattr(tuned, "_path", str(path))
    with pytest.raises(OSError, match=r"FUSED_RNN_TUNED: .*none\.json"):
        layer()(x())


def test_the_environment_names_a_file(table, clock, tmp_path, monkeypatch):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    fused_rnn.tune(layer(), x())
    fused_rnn.tune.save(tmp_path / "tuned.json")
    tuned._measured = Table()
    backends._forget()
    monkeypatch.setattr(tuned, "_path", str(tmp_path / "tuned.json"))
    assert ran(layer(), x())[0] == "quick"
    (tmp_path / "tuned.json").unlink()  # it has been read
    assert ran(layer(), x(3))[0] == "quick"


def test_a_way_that_is_gone_leaves_the_default(table, clock):
    table(Kernel("slow"), ByPlans("plans"))
    clock |= {"plans second": 0.5}
    fused_rnn.tune(layer(), x())
    table(Kernel("slow"))
    assert ran(layer(), x()) == ("slow", None)


def test_at_first_calls_where_that_is_allowed(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    backends.at_first_call(_first_call)
    module = layer()
    with torch.inference_mode():
        module(x())
    assert len(tuned.measurements()) == 1
    assert ran(module, x())[0] == "quick"
    assert len(tuned.measurements()) == 2  # a training step is another problem
    ran(module, x(T + 1))  # near enough
    fused_rnn.LSTMCell(I, H)(torch.randn(N, I))
    assert len(tuned.measurements()) == 3


def test_within_a_graph_nothing_is_measured_and_the_next_call_is_a_first(table, clock, monkeypatch):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    backends.at_first_call(_first_call)
    problem = Problem(
        "lstm", torch.device("cpu"), torch.float32, T, N, I, H, 0, False, True, None, width=I
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(NotNowError):
            _first_call(problem)
        assert select(problem).backend.name == "slow"
        assert len(tuned.measurements()) == 0
    assert select(problem).backend.name == "quick"


def stack_of(module):
    stack = module._sizes()
    assert isinstance(stack, Stack)
    weights = module._weights()
    return choose_in_graph(stack, x(), None, None, weights)


def test_graphs_take_what_was_the_fastest_for_all_sizes(table, clock):
    table(Kernel("slow"), ByPlans("plans"))
    clock |= {"plans third": 0.5}
    module = layer(num_layers=2)
    assert stack_of(module) == ["slow", "slow"]
    fused_rnn.tune(module, x())
    fused_rnn.tune(module, x(20))
    assert stack_of(module) == ["plans third", "plans third"]
    clock["plans third"] = 2.0
    clock["slow"] = 0.5
    fused_rnn.tune(module, x(40))
    assert stack_of(module) == ["slow", "slow"]  # they differ: the default


def test_a_compiled_model_is_measured_as_it_is_eager(table, clock):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    module = layer()
    fused_rnn.tune(torch.compile(module, backend="eager"), x())
    assert len(tuned.measurements()) == 1
    torch._dynamo.reset()


def test_under_ddp_the_module_itself_runs(table, clock, tmp_path):
    table(Kernel("slow"), Kernel("quick"))
    clock |= {"quick": 0.5}
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(layer())
        fused_rnn.tune(model, x())
        for _ in range(2):  # no reduction is pending
            model(x())[0].sum().backward()
        assert ran(model, x())[0] == "quick"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [True, False, None])
def test_the_kind_of_call(table, clock, training):
    table(Kernel("kernel"))
    with torch.no_grad():
        (measured,) = fused_rnn.tune(layer(), x(), training=training)
    assert measured.problem.training is bool(training)


def test_mistakes_have_words_for_them():
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got: function"):
        fused_rnn.tune(layer().forward.__func__, x())
    with pytest.raises(TypeError, match=r"training should be True, False or None, got: 'yes'"):
        fused_rnn.tune(layer(), x(), training="yes")
    with pytest.raises(ValueError, match=r"no recurrent layer of fused_rnn ran in this Linear$"):
        fused_rnn.tune(nn.Linear(I, H), x())
    with pytest.raises(ValueError, match=r"in this GRU, and 1 of torch.nn: fused_rnn.convert"):
        fused_rnn.tune(nn.GRU(I, H), x())
    with pytest.raises(ValueError, match=r"torch\.nn has to run this model's recurrent layers"):
        fused_rnn.tune(layer(), x().as_subclass(Odd))


def test_a_device_that_is_lost_is_an_error(table, monkeypatch):
    def lost(device, way):
        raise RuntimeError(f"{device} is lost")

    table(Kernel("good"), Kernel("bad", "fails"))
    monkeypatch.setattr(trials, "_check_alive", lost)
    with pytest.raises(RuntimeError, match="cpu is lost"):
        fused_rnn.tune(layer(), x())
    assert len(tuned.measurements()) == 0

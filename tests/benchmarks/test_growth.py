"""The growth page: series, passes, what is left out, and the picture."""

import json

import pytest
import torch

from benchmarks import growth, growth_plot, tables
from benchmarks.__main__ import main
from benchmarks.cases import Shape
from benchmarks.growth import Axis, Point, Series
from benchmarks.peers import BASELINE, OURS, Settings
from benchmarks.text import Paint
from benchmarks.timing import Timing

SETTINGS = Settings(torch.device("cpu"), threads=1)
TINY = Axis("N-H8", "sequences of a batch, N", "N", (2, 3, 4), lambda n: Shape(2, n, 8, 8))


def point(value, rates, of="backward", axis="N-H512", dtype="fp32"):
    """Return a point at rates of GFLOP/s: ours, torch.nn's."""
    seconds = {peer: 1.0 / rate for peer, rate in zip((OURS, BASELINE), rates, strict=True)}
    timings = {peer: Timing(s, s, s, s, 5, 1) for peer, s in seconds.items()}
    return Point(
        f"lstm-{dtype}-{axis}", "lstm", dtype, axis, value, of, Shape(4, value, 512, 512),
        10**9, "amx", timings,
    )  # fmt: skip


def test_axes_grow_one_size_over_the_range_that_is_asked_for():
    ranges = {"N": (16, 8192), "I": (1, 8192), "H": (64, 4096), "T": (1, 8192)}
    assert {axis.size for axis in growth.AXES} == set(ranges)
    for axis in growth.AXES:
        assert (axis.values[0], axis.values[-1]) == ranges[axis.size]
        assert all(getattr(axis.shape(value), axis.size) == value for value in axis.values)
        assert f"{axis.size} =" not in axis.fixed or axis.fixed.endswith("I = H")
    assert next(axis for axis in growth.AXES if axis.size == "H").fixed == "T = 8, N = 64, I = H"


def test_series_are_chosen_by_their_ids():
    every = growth.choose(None)
    assert len({one.id for one in every}) == len(every) == 2 * 2 * len(growth.AXES)
    assert {one.cell for one in growth.choose("^gru")} == {"gru"}
    assert [one.id for one in growth.choose("lstm-bf16-N-H512")] == ["lstm-bf16-N-H512"]
    assert {one.dtype for one in growth.choose(None, quick=True)} == {"fp32"}
    assert growth.choose("nothing") == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_pass_of_every_value_is_timed_for_both(cell, dtype):
    points = list(growth.measure(Series(cell, dtype, TINY), SETTINGS, 0.0))
    assert [(p.value, p.pass_) for p in points] == [
        (v, o) for v in (2, 3, 4) for o in growth.PASSES
    ]
    for found in points:
        assert set(found.timings) == {OURS, BASELINE}
        assert found.level
        assert found.speedup > 0
        assert found.row_ns(OURS) == pytest.approx(
            found.timings[OURS].median_s * 1e9 / (2 * found.value)
        )
    gates = {"lstm": 4, "gru": 3}[cell]
    forward = 2 * 2 * 2 * gates * 8 * 16
    assert [p.flops for p in points[:3]] == [forward, forward, 2 * forward]


def test_a_series_ends_where_a_call_takes_too_long(monkeypatch):
    monkeypatch.setattr(growth, "_PATIENCE", 0.0)
    points = list(growth.measure(Series("lstm", "fp32", TINY), SETTINGS, 0.0))
    assert [p.skipped is None for p in points] == [True] * 3 + [False] * 6
    assert "of the size before took" in points[-1].skipped
    assert "not measured" in "\n".join(growth._line(p, Paint(False)) for p in points if p.skipped)


def test_throughput_at_large_batches_is_compared_with_that_of_256():
    points = [point(256, (200, 240)), point(8192, (150, 240)), point(8192, (9, 9), axis="T")]
    assert growth.held(points) == [("lstm-fp32-N-H512 backward", 0.75, 1.0)]
    assert growth.held(points[:1]) == []


def test_the_report_has_a_table_for_each_series_and_pass():
    points = [point(256, (200, 100)), point(8192, (100, 200)), point(256, (50, 50), "forward")]
    points += [point(256, (10, 10), "training forward")]
    text = "\n".join(growth.render(points, Paint(False)))
    assert "lstm float32, backward: sequences of a batch, N (T = 4, I = 512, H = 512)" in text
    assert "2.00x" in text
    assert "0.500x<" in text
    assert "Throughput at N = 8192" in text
    assert " 50%" in text


def test_the_command_measures_writes_and_draws(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    monkeypatch.setattr(growth, "AXES", (TINY,))
    path, picture = tmp_path / "new" / "growth.json", tmp_path / "pictures" / "growth.png"
    asked = ["--growth", "--threads", "1", "--seconds", "0.001", "--filter", "lstm-fp32"]
    assert main([*asked, "--json", str(path), "--plot", str(picture)]) == 0
    document = json.loads(path.read_text())
    again = growth.read(document)
    assert growth.as_json(again) == growth.as_json(growth.read(json.loads(path.read_text())))
    assert len(again) == 9
    assert "lstm-fp32-N-H8" in capsys.readouterr().err
    assert picture.read_bytes().startswith(b"\x89PNG")
    growth_plot.main([str(path), str(tmp_path / "again.png")])
    assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")
    shown = "\n".join(tables.growth(document))
    assert "| 4 |" in shown


def test_the_picture_has_a_panel_for_each_pass_and_size():
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    points = [
        point(value, (100, 90), of, axis, dtype)
        for value in (256, 8192)
        for of in growth.PASSES
        for axis in ("N-H128", "N-H512")
        for dtype in ("fp32", "bf16")
    ]
    document = {
        "machine": {"cpu": "a cpu", "torch_simd": "AVX512"},
        "versions": {"torch": "2"},
        "settings": {"threads": 2},
    }
    figure = growth_plot.draw(points, document)
    assert len(figure.axes) == 3 * 2 * 2
    assert all(len(panel.lines) == 2 for panel in figure.axes)
    assert all("GFLOP/s" in figure.axes[row * 2].get_ylabel() for row in range(6))
    assert growth_plot.draw([], document) is not None


def test_another_file_is_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit):
        growth_plot.main([str(tmp_path / "other.json"), "x.png"])
    assert "no result of --growth" in capsys.readouterr().err

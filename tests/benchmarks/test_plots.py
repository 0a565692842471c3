"""Pictures of runs: drawn from result files, with nothing on top of a figure."""

import json
from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.report import read_json, write_json

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RUNS = sorted(path for path in RESULTS.glob("*.json") if path.with_suffix(".png").exists())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_that_is_read_is_the_run_that_was_written(path, tmp_path):
    write_json(read_json(path), tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(path.read_text())


def test_a_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="no run of schema"):
        read_json(tmp_path / "run.json")


def test_no_marker_and_no_bar_lies_on_a_figure():
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    figure = plots.draw(read_json(RUNS[0]))
    figure.draw_without_rendering()
    reach = 3 * figure.dpi / 72  # of a marker: three points around its place
    seen = 0
    for axis in figure.axes:
        markers = [
            axis.transData.transform(place)
            for collection in axis.collections
            for place in collection.get_offsets()
        ]
        bars = [bar.get_window_extent() for bar in axis.patches]
        for text in axis.texts:
            box = text.get_window_extent()
            around = box.padded(reach)
            assert not any(around.contains(*place) for place in markers), text.get_text()
            assert not any(box.overlaps(bar) for bar in bars), text.get_text()
            assert box.x1 <= axis.get_window_extent().x1 + 1, text.get_text()
            seen += 1
    assert seen == sum(r.speedup() is not None for r in read_json(RUNS[0]).results)


def test_names_of_ticks_do_not_touch():
    assert plots._spaced([0.5, 0.7, 1, 1.5, 2, 3, 20], 1.45) == [0.5, 1, 1.5, 3, 20]


def test_a_command_draws_a_result_file_again(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    document = json.loads(RUNS[0].read_text())
    document["cases"] = document["cases"][:2]
    (tmp_path / "run.json").write_text(json.dumps(document))
    picture = tmp_path / "new" / "run.png"
    plots.main([str(tmp_path / "run.json"), str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")

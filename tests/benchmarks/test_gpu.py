"""The one command for a GPU: its whole flow on a stand-in, and jobs that go wrong."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cases import choose
from benchmarks.cases_cpu import cpu_cases
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import each_kernel, parts, summary
from benchmarks.gpu.runner import RESULT, Runner
from benchmarks.gpu.stages import Job, Setting, Stage, stages

STAND_IN = "tests.stand_in"


def job(name, code, seconds=60.0):
    return Job(name, [sys.executable, "-c", code], seconds)


def stage(*jobs, name="one", seconds=100.0, missing=None):
    return Stage(name, "a title", seconds, list(jobs), missing)


def runner(folder, seconds=float("inf")):
    said = []
    return Runner(folder, seconds, said.append), said


def test_jobs_run_in_order_and_their_results_are_kept(tmp_path):
    made, said = runner(tmp_path)
    code = f"print('hello'); print('{RESULT}' + '{{\"a\": 1}}')"
    assert made.run([stage(job("first", code), job("second", "raise SystemExit('no way')"))])
    first, second = made.done["one/first"], made.done["one/second"]
    assert (first["code"], first["results"]) == (0, [{"a": 1}])
    assert "failure" not in first
    assert second["failure"] == "exit status 1: no way"
    assert said[0] == "=== one: a title"
    assert "hello" in (tmp_path / "logs" / "one-first.txt").read_text()
    assert "=== one/second" in (tmp_path / "log.txt").read_text()


def test_it_goes_on_where_it_was(tmp_path):
    code = "open('ran', 'a').write('x')"
    ran = tmp_path / "ran"
    here = code.replace("'ran'", repr(str(ran)))
    for _ in range(2):
        assert runner(tmp_path)[0].run([stage(job("first", here))])
    assert ran.read_text() == "x"
    again = runner(tmp_path)[0]
    again.forget("one")
    again.run([stage(job("first", here))])
    assert ran.read_text() == "xx"


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w').write(str(p.pid))\n"
        f"print('{RESULT}' + '{{\"a\": 1}}', flush=True); time.sleep(600)"
    )
    made, _ = runner(tmp_path)
    begin = time.monotonic()
    assert made.run([stage(job("hangs", code, 8.0), job("next", "pass"))])
    assert time.monotonic() - begin < 120
    found = made.done["one/hangs"]
    assert found["failure"] == "killed after 8 s"
    assert found["results"] == [{"a": 1}]
    assert "failure" not in made.done["one/next"]
    assert is_gone(int(child.read_text()))


def is_gone(pid):
    """Return whether a process has ended, or does so within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_stage_has_a_limit_of_its_own(tmp_path):
    made, _ = runner(tmp_path)
    sleep = "import time; time.sleep(600)"
    jobs = job("long", sleep, 60.0), job("late", "pass", 60.0)
    assert made.run([stage(*jobs, seconds=16.0), stage(job("other", "pass"), name="two")])
    assert made.done["one/long"]["failure"] == "killed after 16 s"
    assert made.done["one/late"]["failure"] == "no time was left for it in its stage"
    assert "failure" not in made.done["two/other"]


def test_when_time_is_up_the_rest_is_for_the_next_call(tmp_path):
    made, said = runner(tmp_path, 3.0)
    cut = job("cut", "import time; time.sleep(600)", 2.9)
    assert not made.run([stage(cut._replace(seconds=60.0), job("later", "pass", 60.0))])
    assert made.done == {}
    assert "the same command goes on from here" in said[-1]


def test_what_is_missing_is_said(tmp_path):
    made, said = runner(tmp_path)
    assert made.run([stage(missing="there is no tool")])
    assert said == ["=== one: left out, there is no tool"]
    none = Job("none", [str(tmp_path / "nothing")], 60.0)
    assert made.run([stage(none)])
    assert made.done["one/none"]["failure"].startswith("exit status 127")


def test_the_stages_begin_with_the_most_telling(tmp_path):
    names = [s.name for s in stages(Setting(tmp_path))]
    assert names[:5] == ["facts", "smoke", "anchor", "floor", "kernels"]
    assert names[5:] == ["tests", "tune", "bench", "tools"]
    every = {s.name: s for s in stages(Setting(tmp_path))}
    assert all(j.seconds <= every[s].seconds for s in every for j in every[s].jobs)
    anchor = [j.name for j in every["anchor"].jobs]
    for dtype in ("bf16", "fp16"):
        for way in ("torch", "native stepwise", "native persistent", "triton"):
            assert f"lstm {dtype} 1024 16 768 1, {way}" in anchor


def test_every_part_is_called_as_it_takes_it(tmp_path):
    for made in stages(Setting(tmp_path)):
        for found in made.jobs:
            if "benchmarks.gpu.parts" in found.command:
                at = found.command.index("benchmarks.gpu.parts")
                options = parts._parser().parse_args(found.command[at + 1 :])
                assert options.part in parts._PARTS
                assert options.device == "cuda"


def test_every_file_of_tests_is_there(tmp_path):
    (tests,) = [s for s in stages(Setting(tmp_path)) if s.name == "tests"]
    for found in tests.jobs:
        for path in found.command[found.command.index("--core") + 1 :]:
            assert (command.Path(__file__).parents[2] / path).exists(), path


def test_the_stand_ins_benchmark_has_a_case(tmp_path):
    (bench,) = [s for s in stages(Setting(tmp_path, "cpu", STAND_IN, True)) if s.name == "bench"]
    (found,) = bench.jobs
    pattern = found.command[found.command.index("--filter") + 1]
    assert len(choose(cpu_cases(), pattern, True, False)) == 1


def test_the_suite_has_the_anchor_and_all_kinds():
    cases = list(parts.suite(small=False))
    assert "lstm-training-T1024-N16-H768-bf16" in {c.id for c in cases}
    problems = [parts.of_case(c, "cuda") for c in cases]
    assert {p.width == 0 for p in problems} == {True, False}
    assert any(p.ragged for p in problems)
    assert {p.layers for p in problems} == {1, 2}
    assert len(problems) == len(set(problems))


@pytest.mark.parametrize("minutes", ["0", "-1"])
def test_mistakes_are_said(minutes, capsys):
    for arguments in (["--only", "dreams"], ["--again", "dreams"], ["--minutes", minutes]):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2
    assert "there is no stage 'dreams'; choose from facts, smoke" in capsys.readouterr().err


def test_the_list(capsys, tmp_path):
    assert command.main(["--list", "--folder", str(tmp_path)]) == 0
    assert "anchor   LSTM, H = I = 768" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def anchor(way, ms, kind="inference", failure=None):
    return {
        "case": "lstm bf16 T1024 N16 H768 directions 1", "kind": kind, "way": way, "ms": ms,
        "plan": "persistent, 2 groups" if "persistent" in way else None, "failure": failure,
    }  # fmt: skip


def test_the_summary_says_what_was_seen(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tests-gpu.txt").write_text("F\n3 failed, 40 passed in 9.87s\n")
    done = {
        "facts/facts": {"results": [{"gpu": {"name": "a GPU"}, "facts": "132 SMs", "cuda": "13"}]},
        "anchor/all": {
            "results": [
                anchor("torch", 2.0),
                anchor("native persistent", 1.25),
                anchor("triton", 0.1, failure="WRONG"),
            ]
        },
        "kernels/every": {
            "results": [
                {"kernel": "good", "failure": None},
                {"kernel": "bad", "failure": "hung: killed after 40 s"},
            ],
            "failure": "exit status 1",
        },
        "tests/gpu": {"failure": "exit status 1"},
        "tune/suite": {"results": [{"case": "x", "chosen": "torch", "ways": {}}]},
    }
    done = {k: {"ended": f"2026-01-0{i + 1}", **v} for i, (k, v) in enumerate(done.items())}
    for _ in range(2):
        text = summary.summarize(tmp_path, done)
    assert "anchor, inference in bf16, ms: native persistent 1.25, torch 2.00 (bar 1.5 ms)" in text
    assert "persistent, 2 groups" in text
    assert "kernels: 1 right, 1 not\n  bad: hung: killed after 40 s" in text
    assert "tests, gpu: 3 failed, 40 passed in 9.87s" in text
    assert "tuned: torch in 1" in text
    assert "FAILED kernels/every: exit status 1" in text
    *head, line = (tmp_path / "LOG.md").read_text().splitlines()
    assert len(head) == 2  # one line for one run
    assert line.startswith("| 2026-01-01 | a GPU | ")
    assert "anchor bf16 inference 1.25 ms by native persistent, torch.nn 2.00" in line
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kernels"]["bad"][0]["kernel"] == "bad"
    assert result["anchor"][1]["plan"] == "persistent, 2 groups"


class Workers:
    """Stands in for each_kernel's process: one for each call, which says these lines and ends."""

    def __init__(self, *scripts):
        self.scripts, self.firsts = list(scripts), []

    def __call__(self, command, **options):
        self.firsts.append(int(command[command.index("--first") + 1]))
        return PROCESS([sys.executable, "-u", "-c", self.scripts.pop(0)], **options)


PROCESS = each_kernel.subprocess.Popen


def test_a_kernel_that_hangs_or_dies_is_said_and_the_next_one_runs(tmp_path, monkeypatch):
    def right(name):
        return f'print(\'{RESULT}\' + \'{{"kernel": "{name}", "failure": null}}\')\n'

    workers = Workers(
        right("a") + "print('begins: b')\nimport time; time.sleep(600)",
        right("c") + "print('begins: d')\nraise SystemExit('the device is lost')",
        right("e"),
    )
    monkeypatch.setattr(each_kernel.subprocess, "Popen", workers)
    monkeypatch.setattr(each_kernel, "_SECONDS", 10.0)
    monkeypatch.setattr(each_kernel, "table", lambda *_: [{"kernel": name} for name in "abcde"])
    options = parts._parser().parse_args(["kernels", "--folder", str(tmp_path)])
    found = []
    with pytest.raises(SystemExit, match="2 of 5 kernels are wrong, failed or hung"):
        each_kernel.drive(options, found.append)
    assert workers.firsts == [0, 2, 4]
    assert [f["failure"] for f in found] == [
        None, "hung: killed after 10 s", None, "its process ended: the device is lost", None,
    ]  # fmt: skip
    assert [f["kernel"] for f in found] == list("abcde")


def test_without_a_gpu_a_part_says_so(capsys):
    assert parts.main(["facts"]) == 2 or parts.torch.cuda.is_available()


def on_a_stand_in(folder, *names):
    """Return a call of stages as on a GPU, by processes: the CUDA paths on the host bench."""
    where = ["--folder", str(folder), "--device", "cpu", "--stand-in", STAND_IN]
    return [*where, "--only", *names]


def test_the_most_telling_on_a_stand_in(tmp_path, capsys):
    code = command.main(on_a_stand_in(tmp_path, "facts", "anchor", "kernels"))
    text = capsys.readouterr().out
    assert code == 0, text + (tmp_path / "log.txt").read_text()[-5000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["failures"], result["kernels"]["right"]) == ({}, 2)
    assert {a["way"] for a in result["anchor"]} == {"native stepwise", "native persistent"}


def test_all_of_it_on_a_stand_in(tmp_path, capsys):
    every = "facts", "smoke", "anchor", "floor", "kernels", "tests", "tune", "bench"
    arguments = on_a_stand_in(tmp_path, *every)
    code = command.main(arguments)
    text = capsys.readouterr().out
    assert code == 0, text + (tmp_path / "log.txt").read_text()[-5000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failures"] == {}
    assert {a["way"] for a in result["anchor"]} == {"native stepwise", "native persistent"}
    persistent = [a for a in result["anchor"] if a["way"] == "native persistent"]
    assert all(a["bit_equal"] and "persistent, " in a["plan"] for a in persistent)
    assert result["kernels"]["right"] == 2
    assert len(result["floor"]) == 1
    assert result["tuned"]
    assert (tmp_path / "tuned.json").exists()
    assert (tmp_path / "bench.json").exists()
    assert command.main(arguments) == 0
    assert "=== kernels: was run before" in capsys.readouterr().out

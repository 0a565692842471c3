"""Runs stages: each job in a process group that is killed at its limit; goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .stages import Job, Stage

__all__ = ["Runner"]

#: What a part's line of JSON begins with.
RESULT = "RESULT "
_ROOT = Path(__file__).resolve().parents[2]
_LEAST = 15.0  # seconds that a job is begun for
_GRACE = 5.0


class Runner:
    """Runs stages into a folder.

    Args:
        folder: where all goes: state.json, log.txt, and an output for each job
        seconds: for all of it; what is left is for the next time
        say: gets each line of progress
    """

    def __init__(
        self, folder: Path, seconds: float = float("inf"), say: Callable[[str], None] = print
    ) -> None:
        self._folder, self._say = folder, say
        self._end = time.monotonic() + seconds
        self._state = folder / "state.json"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, Any]] = {}
        if self._state.exists():
            self.done = json.loads(self._state.read_text())

    def forget(self, stage: str) -> None:
        """Have a stage run again."""
        self.done = {k: v for k, v in self.done.items() if k.partition("/")[0] != stage}
        self._keep()

    def run(self, stages: Iterable[Stage]) -> bool:
        """Run what has not run yet; return whether there was time for all."""
        for stage in stages:
            if stage.missing is not None:
                self._say(f"=== {stage.name}: left out, {stage.missing}")
                continue
            left = [job for job in stage.jobs if f"{stage.name}/{job.name}" not in self.done]
            if not left:
                self._say(f"=== {stage.name}: was run before")
                continue
            self._say(f"=== {stage.name}: {stage.title}")
            stage_end = time.monotonic() + stage.seconds
            for job in left:
                if self._end - time.monotonic() < min(_LEAST, job.seconds):
                    self._say("Time is up; the same command goes on from here.")
                    return False
                limit = min(job.seconds, stage_end - time.monotonic())
                if limit < min(_LEAST, job.seconds):
                    self._note(stage, job, {"failure": "no time was left for it in its stage"})
                else:
                    self._run(stage, job, limit)
        return True

    def _run(self, stage: Stage, job: Job, limit: float) -> None:
        given = self._end - time.monotonic()
        cut = given < limit
        output = self._folder / "logs" / f"{_file_name(f'{stage.name}-{job.name}')}.txt"
        start = time.monotonic()
        code, timed_out = _process(job, min(limit, given), output)
        text = output.read_text(errors="replace")
        with (self._folder / "log.txt").open("a") as log:
            log.write(f"=== {stage.name}/{job.name}\n$ {' '.join(job.command)}\n{text}\n")
        entry: dict[str, Any] = {
            "code": code,
            "seconds": round(time.monotonic() - start, 1),
            "results": list(_results(text)),
        }
        if timed_out:
            entry["failure"] = f"killed after {min(limit, given):.0f} s"
        elif code != 0:
            last = [line for line in text.splitlines() if line.strip()][-1:] or ["nothing was said"]
            entry["failure"] = f"exit status {code}: {last[0][:300]}"
        if timed_out and cut:
            self._say(f"  {job.name}: was cut short, and is for the next time")
            return
        self._note(stage, job, entry)

    def _note(self, stage: Stage, job: Job, entry: dict[str, Any]) -> None:
        ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.done[f"{stage.name}/{job.name}"] = {**entry, "ended": ended}
        self._keep()
        how = entry.get("failure") or f"{entry['seconds']:.0f} s"
        self._say(f"  {job.name}: {how}")

    def _keep(self) -> None:
        unfinished = self._state.with_suffix(".part")
        unfinished.write_text(json.dumps(self.done, indent=1) + "\n")
        unfinished.replace(self._state)


def _process(job: Job, seconds: float, output: Path) -> tuple[int, bool]:
    """Run a job's process; return its exit status, and whether it was killed at its limit."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"} | job.env
    with output.open("w") as file:
        try:
            process = subprocess.Popen(
                job.command, cwd=_ROOT, env=env, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n")
            return 127, False
        try:
            return process.wait(seconds), False
        except subprocess.TimeoutExpired:
            _kill(process)
            return process.returncode, True
        except BaseException:  # an interrupt: nothing stays behind
            _kill(process)
            raise


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _results(text: str) -> Sequence[Any]:
    return [
        json.loads(line.removeprefix(RESULT))
        for line in text.splitlines()
        if line.startswith(RESULT) and line.endswith("}")
    ]


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)

"""Each compiled persistent kernel once: a worker goes down the list, and is killed where it hangs.

A process for every kernel would take most of its time to begin. So one runs them all, says which it
is about to launch, and where one hangs or takes the device down, another goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from fused_rnn.backends.native import persistent
from fused_rnn.trials import Workload, check, truth_of

from ..machine_cuda import matmul_precision
from .runner import RESULT

__all__ = ["drive", "table", "work"]

_SECONDS = 40.0  # of one kernel; of a worker's first also what it takes to begin
_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
_WAY = "native persistent"
_SMALL = 2


def table(device: str, small: bool) -> list[dict[str, Any]]:
    """Return a problem for every kernel that the device's plans ever take."""
    from tests.native import every_kernel

    with every_kernel.asking(persistent.ops(), device) as ask:
        if small:  # the whole table asks for tens of thousands of plans
            few = islice(every_kernel.problems(), 60)
            found = {(str(way), p.cell): p for _, p in few if (way := ask(p)) is not None}
            chosen = {" ".join(key): p for key, p in [*found.items()][:_SMALL]}
        else:
            chosen = every_kernel.for_backward_any_cell(every_kernel.table(ask))
    return [{"kernel": name, **p._asdict()} for name, p in chosen.items()]


def drive(options: argparse.Namespace, say: Callable[[dict[str, Any]], None]) -> None:
    """Have workers run every kernel; say of each what came of it."""
    file = Path(options.folder) / "kernels.json"
    todo = table(options.device, options.small)
    file.write_text(json.dumps(todo, indent=1))
    print(f"{len(todo)} kernels", flush=True)
    first, bad = 0, 0
    while first < len(todo):
        first, lost = _one_worker(options, first, len(todo), say)
        bad += lost
    if bad:
        raise SystemExit(f"{bad} of {len(todo)} kernels are wrong, failed or hung")


def _one_worker(
    options: argparse.Namespace, first: int, count: int, say: Callable[[dict[str, Any]], None]
) -> tuple[int, int]:
    """Run a worker from a kernel on; return the first that is left, and how many were bad."""
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.parts", "--device", options.device]
    command += ["--prelude", options.prelude] if options.prelude else []
    command += ["kernel-worker", "--folder", options.folder, "--first", str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    seconds = _SECONDS * (20 if options.small else 1)
    bad, last, why = 0, "", ""
    while True:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            why = f"hung: killed after {seconds:.0f} s"
            break
        if line is None:
            why = f"its process ended: {last.strip()[:200]}"
            break
        last = line if line.strip() else last
        if line.startswith(RESULT):
            found = json.loads(line.removeprefix(RESULT))
            say(found)
            bad += found["failure"] is not None
            first += 1
        else:
            print(line, end="", flush=True)
    process.kill()
    process.wait()
    if first < count:  # the one that was running is lost, and with it this process
        todo = json.loads((Path(options.folder) / "kernels.json").read_text())
        say({"kernel": todo[first]["kernel"], "failure": why})
        return first + 1, bad + 1
    return first, bad


def work(options: argparse.Namespace, say: Callable[[dict[str, Any]], None]) -> None:
    """Run the kernels of the list, from one on."""
    from .parts import plan_of, problem_of

    todo = json.loads((Path(options.folder) / "kernels.json").read_text())
    for one in todo[options.first :]:
        tf32 = "tf32" if one["tf32"] else "fp32"
        dtype = _DTYPES.get(one["dtype"], tf32)
        sizes = one["T"], one["N"], one["H"], one["directions"]
        problem = problem_of(one["cell"], dtype, *sizes, True, options.device)
        with matmul_precision(dtype):
            print(f"begins: {one['kernel']}: {plan_of(problem, _WAY)}", flush=True)
            workload = Workload(problem)
            trial, errors = check(workload, _WAY, truth_of(workload))
        say({"kernel": one["kernel"], "error": errors, "failure": trial.failure})

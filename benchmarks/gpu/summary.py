"""What a run on a GPU came to: result.json, a picture, a line for a log, a summary in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import machine

__all__ = ["summarize"]

_SCHEMA = 1
_COLOURS = {"torch": "#30323d", "native stepwise": "#edae49", "native persistent": "#2a7f8e",
            "triton": "#d1495b"}  # fmt: skip
# The anchor's bar, milliseconds of a call in bfloat16.
_BAR = {"inference": 1.5, "training": 4.0}


def summarize(folder: Path, done: dict[str, dict[str, Any]]) -> str:
    """Write what there is so far, and return the summary."""
    result = _result(folder, done)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    drawn = _picture(result, folder / "anchor.png")
    line = _log_line(result)
    log = folder / "LOG.md"
    head = "| when | GPU | torch | commit | what was seen |\n|---|---|---|---|---|\n"
    before = log.read_text().splitlines(keepends=True) if log.exists() else [head]
    # A run that goes on has one line, the last.
    same = [text for text in before if not text.startswith(_begin(result))]
    log.write_text("".join(same) + line + "\n")
    return "\n".join([*_words(result), "", f"picture: {drawn}", f"all of it: {folder}"])


def _of(done: dict[str, dict[str, Any]], stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, entry in done.items():
        name, _, job = key.partition("/")
        if name == stage:
            yield job, entry


def _found(done: dict[str, dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [found for _, entry in _of(done, stage) for found in entry.get("results", [])]


def _result(folder: Path, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = next(iter(_found(done, "facts")), {})
    kernels = _found(done, "kernels")
    return {
        "schema": _SCHEMA,
        "begun": min((entry["ended"] for entry in done.values()), default=None),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe() | {"gpu": facts.get("gpu"), "facts": facts.get("facts")},
        "versions": machine.versions() | {"cuda": facts.get("cuda"), "triton": _triton()},
        "anchor": _found(done, "anchor"),
        "smoke": _found(done, "smoke"),
        "floor": _found(done, "floor"),
        "kernels": {
            "right": sum(k["failure"] is None for k in kernels),
            "bad": [k for k in kernels if k["failure"] is not None],
        },
        "tests": {job: _tests(folder, job) for job, _ in _of(done, "tests")},
        "tuned": _found(done, "tune"),
        "failures": {key: e["failure"] for key, e in done.items() if "failure" in e},
        "seconds": {key: e.get("seconds", 0.0) for key, e in done.items()},
    }


def _triton() -> str:
    from importlib import metadata

    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed"


def _tests(folder: Path, job: str) -> str:
    """Return pytest's last line."""
    output = folder / "logs" / f"tests-{job}.txt"
    lines = output.read_text(errors="replace").splitlines() if output.exists() else []
    return next((line for line in reversed(lines) if re.search(r"\d+ \w+.* in \d", line)), "")


def _anchors(result: dict[str, Any], kind: str, dtype: str) -> dict[str, float]:
    """Return milliseconds by way, of those that are right."""
    return {
        found["way"]: found["ms"]
        for found in result["anchor"]
        if found["kind"] == kind and dtype in found["case"].split() and "ms" in found
        and found["failure"] is None
    }  # fmt: skip


def _words(result: dict[str, Any]) -> list[str]:
    gpu = (result["machine"]["gpu"] or {}).get("name", "no GPU")
    lines = ["", f"{gpu}; torch {result['versions']['torch']}; {result['machine']['facts']}"]
    for kind, bar in _BAR.items():
        for dtype in ("bf16", "fp16"):
            ways = _anchors(result, kind, dtype)
            if ways:
                told = ", ".join(f"{w} {ms:.2f}" for w, ms in sorted(ways.items(), key=_second))
                note = f" (bar {bar} ms)" if dtype == "bf16" else ""
                lines.append(f"anchor, {kind} in {dtype}, ms: {told}{note}")
    for found in (f for f in result["anchor"] if f["plan"]):
        lines.append(f"  {found['way']}, {found['kind']}, {found['case']}: {found['plan']}")
    lines += [
        f"floor, {r['cell']} H {r['H']} N {r['N']}, us a step: exchange {r['exchange']:.2f}, "
        f"products {r['products']:.2f}, both {r['both']:.2f}, scan {r['scan']:.2f}"
        for r in result["floor"]
    ]
    kernels = result["kernels"]
    lines.append(f"kernels: {kernels['right']} right, {len(kernels['bad'])} not")
    lines += [f"  {k['kernel']}: {k['failure']}" for k in kernels["bad"]]
    lines += [
        f"tests, {job}: {said or 'nothing was said'}" for job, said in result["tests"].items()
    ]
    chosen = [found["chosen"] for found in result["tuned"]]
    counts = {way: chosen.count(way) for way in dict.fromkeys(chosen)}
    if counts:
        lines.append("tuned: " + ", ".join(f"{way} in {n}" for way, n in counts.items()))
    lines += [f"FAILED {key}: {why}" for key, why in result["failures"].items()]
    return lines


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _begin(result: dict[str, Any]) -> str:
    return f"| {result['begun']} |"


def _log_line(result: dict[str, Any]) -> str:
    """Return a row of a table in Markdown."""
    seen = []
    for kind in _BAR:
        ways = _anchors(result, kind, "bf16")
        ours = {way: ms for way, ms in ways.items() if way != "torch"}
        if ours:
            best = min(ours, key=ours.__getitem__)
            beside = f", torch.nn {ways['torch']:.2f}" if "torch" in ways else ""
            seen.append(f"anchor bf16 {kind} {ours[best]:.2f} ms by {best}{beside}")
    kernels = result["kernels"]
    seen.append(f"{kernels['right']} kernels right, {len(kernels['bad'])} not")
    seen.append(f"{len(result['failures'])} jobs failed")
    gpu = (result["machine"]["gpu"] or {}).get("name", "none")
    commit = str(result["commit"])[:9]
    cells = gpu, result["versions"]["torch"], commit, "; ".join(seen)
    return _begin(result) + " " + " | ".join(cells) + " |"


def _picture(result: dict[str, Any], path: Path) -> str:
    """Draw the anchor by each way; return where, or why there is none."""
    if not find_spec("matplotlib"):
        return "matplotlib is not installed"
    groups = [(kind, dtype) for kind in _BAR for dtype in ("bf16", "fp16")]
    found = {group: ways for group in groups if (ways := _anchors(result, *group))}
    if not found:
        return "the anchor was not measured"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(way for ways in found.values() for way in ways))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        places = [i + (k - (len(names) - 1) / 2) * width for i in range(len(found))]
        heights = [ways.get(name, 0.0) for ways in found.values()]
        label = "torch.nn (cuDNN)" if name == "torch" else name
        bars = axes.bar(places, heights, width * 0.92, label=label, color=_COLOURS.get(name))
        axes.bar_label(bars, [f"{h:.2f}" if h else "" for h in heights], fontsize=8)
    axes.set_xticks(range(len(found)), [f"{kind}\n{dtype}" for kind, dtype in found])
    axes.set_ylabel("milliseconds of a call")
    gpu = (result["machine"]["gpu"] or {}).get("name", "a stand-in for a GPU")
    cases = sorted({f["case"].replace("bf16 ", "").replace("fp16 ", "") for f in result["anchor"]})
    axes.set_title(f"{'; '.join(cases)}; {gpu}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)
    return str(path)

"""Markdown tables of committed runs: what README.md and the documentation show of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import growth as growth_page
from . import sampler
from .cases import DTYPE_TITLES
from .peers import BASELINE, OURS
from .report import Run, read_json
from .text import duration, figure
from .verdicts import geometric_mean

RESULTS = Path(__file__).parent / "results"


def full_runs() -> dict[str, Run]:
    """Return every committed run of the cases by its file's name, the newest first."""
    runs = {path.name: read_json(path) for path in _files("cases")}
    return dict(sorted(runs.items(), key=lambda item: item[1].created, reverse=True))


def option_runs() -> dict[str, dict[str, Any]]:
    """Return every committed run of ``--options`` by its file's name, the newest first."""
    return _documents("rows")


def growth_runs() -> dict[str, dict[str, Any]]:
    """Return every committed run of ``--growth`` by its file's name, the newest first."""
    return _documents("growth")


def sample_runs() -> dict[str, dict[str, Any]]:
    """Return every committed run of ``--sample`` by its file's name, the newest first."""
    return _documents("samples")


def _documents(key: str) -> dict[str, dict[str, Any]]:
    runs = {path.name: json.loads(path.read_text()) for path in _files(key)}
    return dict(sorted(runs.items(), key=lambda item: item[1]["created"], reverse=True))


def _files(key: str) -> list[Path]:
    return [path for path in RESULTS.glob("*.json") if key in json.loads(path.read_text())]


def machine(document: dict[str, Any]) -> str:
    """Return on what a run was measured, from its ``machine``, ``versions`` and ``settings``."""
    found, versions = document["machine"], document["versions"]
    where = found["gpu"]["name"] if "gpu" in found else f"{found['cpu']} ({found['torch_simd']})"
    peer = f", onnxruntime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    return (
        f"{where}, {document['settings']['threads']} threads, torch {versions['torch']}{peer}, "
        f"{document['created'][:10]}"
    )


def summary(run: Run) -> list[str]:
    """Return the bar's rows that were measured: mean, worst figure, and whose that is."""
    lines = ["| | cases | geometric mean | worst | where |", "|---|---|---|---|---|"]
    for v in run.verdicts:
        if v.cases:
            lines.append(
                f"| {v.title} | {v.cases} | {figure(v.geomean, v.unit)} | "
                f"{figure(v.worst, v.unit)} | `{v.worst_case}` |"
            )
    return lines


def losses(run: Run) -> list[str]:
    """Return every case that is slower than a peer, the worst first."""
    peers = sorted({name for result in run.results for name in result.peers} - {OURS})
    found = [
        (value, result.case.id, peer)
        for result in run.results
        for peer in peers
        if (value := result.speedup(peer)) is not None and value < 1
    ]
    lines = ["| case | slower than | speed-up |", "|---|---|---|"]
    return lines + [
        f"| `{case}` | {peer} | {figure(value, 'x')} |" for value, case, peer in sorted(found)
    ]


def cases(run: Run) -> list[str]:
    """Return every case, a table for each kind of call, dtype and number of threads."""
    lines = []
    for title, group in run.groups:
        named = dict.fromkeys(name for result in group for name in result.peers)
        peers = [name for name in named if name not in (OURS, BASELINE)]
        peers = [name for name in peers if any(r.speedup(name) for r in group)] or peers[:1]
        levels = any(result.level for result in group)
        heads = ["case", BASELINE, "spread", OURS, "spread", "speed-up"]
        heads += [f"over {name}" for name in peers] + ["level", "of its unit"] * levels
        lines += [f"### {title[0].upper()}{title[1:]}", "", _row(heads), _row(["---"] * len(heads))]
        for result in group:
            label = f"`{result.case.cell} {result.case.label}`"
            if result.failure:
                lines.append(_row([label, f"failed: {result.failure}"] + [""] * (len(heads) - 2)))
                continue
            cells = [label]
            for name in (BASELINE, OURS):
                timing = result.peers[name].timing
                cells += ["-", ""] if timing is None else _timed(timing.median_s, timing.spread)
            cells += [figure(result.speedup(name), "x") for name in (BASELINE, *peers)]
            if levels:
                cells += [result.level or "-", figure(run.unit_fraction(result), "%")]
            lines.append(_row(cells))
        lines.append("")
    return lines


def wrong(run: Run) -> list[str]:
    """Return the cases in which torch.nn itself computes something wrong, and what."""
    found = [
        (result.case.id, result.peers[BASELINE].notes["wrong"])
        for result in run.ordered
        if BASELINE in result.peers and "wrong" in result.peers[BASELINE].notes
    ]
    lines = ["| case | torch.nn, against float64 |", "|---|---|"]
    return lines + [f"| `{case}` | {what} |" for case, what in found]


def options(document: dict[str, Any]) -> list[str]:
    """Return what ``--options`` compared: seconds, speed-ups, and memory kept where it counts."""
    lines = []
    for row in document["rows"]:
        lines += [f"**{row['name']}**", ""]
        heads = ["", "median", "fused_rnn's speed-up", "kept for the backward"]
        width = 4 if row["kept_bytes"] else 3
        lines += [_row(heads[:width]), _row(["---"] * width)]
        for peer, timing in row["timings"].items():
            kept = row["kept_bytes"].get(peer)
            cells = [peer, duration(timing["median_s"]), figure(row["speedup"].get(peer), "x")]
            cells.append("-" if kept is None else f"{kept / 2**20:.1f} MiB")
            lines.append(_row(cells[:width]))
        lines.append("")
    return lines


def growth(document: dict[str, Any]) -> list[str]:
    """Return what ``--growth`` measured: a table for each size, dtype and pass."""
    lines = []
    points = growth_page.read(document)
    for series, of in dict.fromkeys((point.series, point.pass_) for point in points):
        group = [p for p in points if (p.series, p.pass_) == (series, of)]
        axis = next((a for a in growth_page.AXES if a.name == group[0].axis), None)
        size, fixed = (axis.size, axis.fixed) if axis else (group[0].axis, "")
        title = f"{group[0].cell.upper()} in {DTYPE_TITLES[group[0].dtype]}, {of}, by {size}"
        heads = [size, f"{OURS}, ns per row of a step", "GFLOP/s",
                 f"{BASELINE}, ns per row of a step", "GFLOP/s", "speed-up"]  # fmt: skip
        lines += [f"**{title}**{f' ({fixed})' if fixed else ''}", ""]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for point in group:
            if point.skipped:
                lines.append(_row([str(point.value), point.skipped] + [""] * (len(heads) - 2)))
                continue
            cells = [str(point.value)]
            for peer in (OURS, BASELINE):
                cells += [f"{point.row_ns(peer):.1f}", f"{point.gflops(peer):.1f}"]
            lines.append(_row([*cells, figure(point.speedup, "x")]))
        lines.append("")
    return lines


def samples(document: dict[str, Any]) -> list[str]:
    """Return what ``--sample`` found: mean and shares, and every problem that is slow."""
    found = sampler.read(document)
    heads = ["", "samples", "geometric mean", "worst", "of which below 0.97x", "below 0.9x"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for name, chosen in (
        ("all", found),
        ("inference", [sample for sample in found if not sample.draw.training]),
        ("training step", [sample for sample in found if sample.draw.training]),
    ):
        if chosen:
            values = [sample.speedup for sample in chosen]
            cells = [name, str(len(chosen)), figure(geometric_mean(values), "x")]
            cells += [figure(min(values), "x")]
            cells += [figure(sampler.share(chosen, below), "%") for below in (0.97, 0.9)]
            lines.append(_row(cells))
    slow = sorted((s.speedup, s.draw.label) for s in found if s.speedup < 1)
    lines += ["", "| slower than torch.nn | speed-up |", "|---|---|"]
    return lines + [f"| {label} | {figure(value, 'x')} |" for value, label in slow] + [""]


def _timed(seconds: float, spread: float) -> list[str]:
    return [duration(seconds), f"{spread:.0%}"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

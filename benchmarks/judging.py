"""Result files held against the bar as it stands now, losses included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from . import sampler
from .bar import has_tiles, judge
from .peers import BASELINE, OURS
from .report import read_json
from .text import BOLD, RED, Paint, bar_table
from .verdicts import Verdict


def judge_files(paths: Sequence[Path], colour: bool = False) -> list[Verdict]:
    """Print, and return, which rows of the bar the files reach: runs of cases, and samples.

    Raises:
        ValueError: if a file is neither.
    """
    paint, verdicts, lost = Paint(colour), [], []
    samples: list[sampler.Sample] = []
    for path in paths:
        document = json.loads(path.read_text())
        if "samples" in document:
            samples += sampler.read(document)
        elif "cases" in document and "gpu" not in document["machine"]:
            run = read_json(path)
            verdicts += judge(run.results, run.sgemm_gflops, has_tiles(run.machine))
            lost += [
                (speedup, f"{result.case.id} against {peer}")
                for result in run.results
                for peer in result.peers
                if peer != OURS and (speedup := result.speedup(peer)) is not None and speedup < 1
            ]
        else:
            raise ValueError(f"{path.name} has neither cases of a CPU nor samples")
    verdicts += sampler.judge(samples)
    lost += [
        (sample.speedup, f"{sample.draw.label} against {BASELINE}")
        for sample in samples
        if sample.speedup < 1
    ]
    print("\n".join([*bar_table(verdicts, paint), "", *_summary(verdicts, paint), ""]))
    print("\n".join([paint(f"Losses: {len(lost)}", BOLD)]))
    print("\n".join(f"  {value:#.3g}x  {what}" for value, what in sorted(lost)))
    return verdicts


def _summary(verdicts: Sequence[Verdict], paint: Paint) -> list[str]:
    asked = [verdict for verdict in verdicts if verdict.met is not None]
    missed = [verdict for verdict in asked if not verdict.met]
    lines = [f"{len(asked) - len(missed)} of {len(asked)} rows are reached"]
    return lines + [paint(f"  missed: {verdict.title}", RED) for verdict in missed]

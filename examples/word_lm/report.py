"""What the demonstration prints."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence

import torch

import fused_rnn

from . import data
from .compare import Difference
from .data import Corpus
from .result import Result
from .speed import Speed
from .train import Run


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set text in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *others = cells
        columns = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        return "  ".join([name.ljust(widths[0]), *columns]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, line(heading), rule, *map(line, rows), rule])


def headline(run: Run, corpus: Corpus) -> str:
    """Return what is being trained, on what, with what."""
    rnn = run.model.rnn
    unknown = (corpus.train == corpus.unknown).float().mean().item()
    size = f"{len(corpus.words):,}"
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return (
        f"text   the Python language reference: {len(corpus.train):,} words to train on, "
        f"{len(corpus.validation):,} held out,\n"
        f"       a vocabulary of {size} ({unknown:.1%} of the text is {data.UNKNOWN})\n"
        f"model  embedding, {rnn}, tied decoder: {parameters / 1e6:.2f} million parameters\n"
        f"with   fused_rnn {fused_rnn.__version__}, torch {torch.__version__}, "
        f"threads: {torch.get_num_threads()}\n"
    )


def equality(differences: Sequence[Difference]) -> str:
    """Return the table of what the swap changes in the model's results."""
    heading = ("the swap changes", "dtype", "at most by", "relative", "tolerance", "verdict")
    rows = [
        (
            row.what,
            str(row.dtype).removeprefix("torch."),
            f"{row.largest:.1e}",
            f"{row.relative:.1e}",
            f"{row.tolerance:.0e}",
            "equal" if row.within else "DIFFERENT",
        )
        for row in differences
    ]
    return table(heading, rows)


def summary(result: Result) -> str:
    """Return sample text, and the tables of the second half."""
    before, after, end = result.samples
    same = "word for word the same." if before == after else "not the same:"
    return "\n".join(
        [
            _sample("At the swap, torch.nn writes:", before),
            f"fused_rnn, from the same weights and seed: {same}",
            *([_sample("", after)] if before != after else []),
            _sample("At the end, fused_rnn writes:", end),
            "",
            _curves(result),
            "",
            speeds(result.speeds),
        ]
    )


def _sample(title: str, text: str) -> str:
    body = textwrap.fill(text, 90, initial_indent="    ", subsequent_indent="    ")
    return f"{title}\n{body}" if title else body


def _curves(result: Result) -> str:
    plain, fused, since, drift = result.plain, result.fused, result.swap, result.drift
    last = len(plain.losses)
    losses = [statistics.mean(run.losses[since:]) for run in (plain, fused)]
    ends = [run.validation[last] for run in (plain, fused)]
    rows = [
        ("training loss, mean", *(f"{loss:.5f}" for loss in losses), f"{drift.training:.1e}"),
        ("validation loss, last", *(f"{end:.5f}" for end in ends), f"{drift.validation:.1e}"),
        (
            "validation perplexity, last",
            *(f"{math.exp(end):.3f}" for end in ends),
            f"{drift.perplexity:.1e}",
        ),
    ]
    title = f"updates {since + 1} to {last}"
    verdict = "the same curve" if drift.within else "NOT the same curve"
    note = f"{verdict}: no loss may differ by more than {drift.tolerance:.0e}"
    return table((title, "torch.nn", "fused_rnn", "largest difference"), rows) + f"\n{note}"


def speeds(measured: Sequence[Speed]) -> str:
    """Return the table of tokens per second."""
    note = "speed-up: median and quartiles over rounds that each measured both, one after the other"
    heading = ("tokens per second, median", "torch.nn", "fused_rnn", "speed-up", "quartiles")
    rows = [
        (
            row.job,
            f"{statistics.median(row.plain):,.0f}",
            f"{statistics.median(row.fused):,.0f}",
            f"{row.gain:.2f}x" + ("" if row.gain >= 1 else " slower"),
            "{:.2f} to {:.2f}".format(*row.spread),
        )
        for row in measured
    ]
    return table(heading, rows) + f"\n{note}"

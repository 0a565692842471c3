"""Train a word-level language model on torch.nn, swap in fused_rnn half-way, and train on.

The first half trains on plain torch.nn. Then the run is forked: one fork stays on torch.nn, the
other is converted and goes on with the same optimiser, weights, dropout masks and place in the
text. They take turns, so that their loss curves and their speeds can be laid side by side.

    python examples/language_model.py --cell lstm --out demo.png
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from word_lm import data, report, speed
from word_lm.compare import Drift, compare
from word_lm.data import Corpus
from word_lm.model import CELLS, LanguageModel, generate
from word_lm.progress import Progress, clock
from word_lm.result import Result
from word_lm.train import Recipe, Run

import fused_rnn

_LEARNING_RATES = {"lstm": 4e-3, "gru": 2e-3, "rnn": 2e-3}
_BLOCK = 5  # updates a fork does before the other's turn
_VALIDATIONS = 20  # along the whole training
_SPEED_SHARE = 0.1  # of all the work, as the progress line reckons it


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="the recurrent layer")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture")
    sizes = {
        "updates": (800, "updates of the weights in all, half of them before the swap"),
        "embedding": (256, "size of a word's vector"),
        "hidden": (512, "size of the recurrent layer"),
        "layers": (1, "recurrent layers"),
        "batch": (20, "texts side by side"),
        "steps": (35, "words between two updates, of each text"),
        "rounds": (25, "rounds of each speed measurement"),
        "words": (60, "words of sample text"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=_positive, default=default, help=text)
    parser.add_argument("--dropout", type=float, default=0.65, help="small text, much dropout")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--threads", type=_positive, help="default: what torch takes")
    options = parser.parse_args(arguments)
    if options.updates < 6 * _BLOCK or options.rounds < 2:
        parser.error(f"fewer than {6 * _BLOCK} updates or 2 rounds can't be measured")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def begin(options: argparse.Namespace, corpus: Corpus) -> Run:
    """Build the model and its optimiser, as a user of torch.nn does."""
    model = LanguageModel(
        options.cell,
        len(corpus.words),
        options.embedding,
        options.hidden,
        options.layers,
        options.dropout,
    )
    rate = _LEARNING_RATES[options.cell]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    recipe = Recipe(options.steps, options.updates, rate)
    text = data.columns(corpus.train, options.batch)
    return Run(model, optimizer, recipe, text, torch.get_rng_state())


def train(runs: dict[str, Run], until: int, held_out: torch.Tensor, progress: Progress) -> None:
    """Train runs in turn up to update `until`, with a validation now and then."""
    first = next(iter(runs.values()))
    every = first.recipe.updates // _VALIDATIONS
    while (done := len(first.losses)) < until:
        count = min(_BLOCK, until - done)
        # Who goes first alternates, as in every measurement of speed.
        for run in list(runs.values())[:: -1 if done // _BLOCK % 2 else 1]:
            run.advance(count)
        losses = [f"{name} {run.losses[-1]:.3f}" for name, run in runs.items()]
        text = f"update {done + count}, loss " + ", ".join(losses)
        if (done + count) // every > done // every or done + count == until:
            perplexity = [math.exp(run.validate(held_out)) for run in runs.values()][-1]
            text += f", validation perplexity {perplexity:.1f}"
        progress.add(count * len(runs), text)


def write(model: LanguageModel, corpus: Corpus, options: argparse.Namespace) -> str:
    """Let a model write sample text."""
    prompt = [corpus.words.index(word) for word in (data.END, "the")]
    ids = generate(model, prompt, options.words, banned=corpus.unknown, seed=options.seed)
    return data.readable([corpus.words[index] for index in ids[1:]])


def swap_in(run: Run, held_out: torch.Tensor) -> None:
    """Convert the run's model, and say which backend its layers run on from now on."""
    fused_rnn.convert(run.model, report=lambda swap: print(f"  {swap}"))
    run.model.train()
    print(textwrap.indent(str(fused_rnn.explain(run.model, held_out)), "  "), flush=True)


def main(arguments: Sequence[str] | None = None) -> Result:
    """Run the demonstration from the command line's arguments."""
    started = time.monotonic()
    options = parse(arguments)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    corpus = data.load()
    held_out = data.columns(corpus.validation, 10)
    run = begin(options, corpus)
    swap = options.updates // 2
    progress = Progress((swap + 2 * (options.updates - swap)) / (1 - _SPEED_SHARE))
    print(report.headline(run, corpus), flush=True)
    train({"torch.nn": run}, swap, held_out, progress)

    progress.clear()
    print(f"\nAfter update {swap}, fused_rnn.convert(model); the optimiser stays as it is.")
    plain, fused = copy.deepcopy(run), run
    swap_in(fused, held_out)
    differences = compare(plain, fused, held_out)
    print("\n" + report.equality(differences) + "\n")
    samples = [write(run.model, corpus, options) for run in (plain, fused)]

    train({"torch.nn": plain, "fused_rnn": fused}, options.updates, held_out, progress)
    work = progress.total * _SPEED_SHARE / (3 * (options.rounds + 1))
    speeds = [
        speed.of_training(plain, fused, swap, _BLOCK),
        *speed.of_models(
            plain,
            fused,
            options.rounds,
            options.words,
            lambda job: progress.add(work, f"measuring {job}"),
        ),
    ]
    progress.clear()
    samples.append(write(fused.model, corpus, options))
    drift = Drift.between(plain, fused, swap)
    result = Result(plain, fused, swap, differences, drift, speeds, samples)
    print(f"\n{report.summary(result)}\n")
    picture(result, options)
    print(f"{clock(time.monotonic() - started)} in all")
    return result


def picture(result: Result, options: argparse.Namespace) -> None:
    """Write the picture, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from word_lm import plot

    plot.plot(result, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    if problem := main().problem:
        sys.exit(problem)

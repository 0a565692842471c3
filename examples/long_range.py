"""Predict words that depend on a word far back: the plain RNN forgets it, LSTM and GRU do not.

Sentences of a made-up grammar: "the keys near the box behind the old lamps are lost". Whether the
verb is "is" or "are" depends on the first noun alone, and any number of other nouns stand between.
Every model reads batches of such sentences, padded, with their lengths, and predicts the next word.

    python examples/long_range.py --out long_range.png
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import fused_rnn

_NOUNS = [("key", "keys"), ("box", "boxes"), ("lamp", "lamps"), ("door", "doors"), ("cup", "cups")]
_WORDS = ["the", "near", "behind", "under", "is", "are", "lost", "found", "."]
VOCABULARY = [*_WORDS, *(form for noun in _NOUNS for form in noun)]
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}
CELLS = {"RNN": fused_rnn.RNN, "GRU": fused_rnn.GRU, "LSTM": fused_rnn.LSTM}


def sentence(phrases: int, rng: random.Random) -> list[str]:
    """Return a sentence with this many phrases between its subject and its verb."""
    plural = rng.randrange(2)
    words = ["the", rng.choice(_NOUNS)[plural]]
    for _ in range(phrases):
        noun = rng.choice(_NOUNS)[rng.randrange(2)]
        words += [rng.choice(("near", "behind", "under")), "the", noun]
    return [*words, ("is", "are")[plural], rng.choice(("lost", "found")), "."]


def batch(sentences: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Return words as numbers (T, N), padded with zeros, and the lengths (N,)."""
    lengths = torch.tensor([len(words) for words in sentences])
    numbers = torch.zeros(int(lengths.max()), len(sentences), dtype=torch.int64)
    for n, words in enumerate(sentences):
        numbers[: len(words), n] = torch.tensor([_NUMBERS[word] for word in words])
    return numbers, lengths


class Predictor(nn.Module):
    """Predicts the next word from all words so far."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), hidden)
        self.rnn = CELLS[cell](hidden, hidden)
        self.decoder = nn.Linear(hidden, len(VOCABULARY))

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Return scores (T, N, words) of the word after each."""
        output, _ = self.rnn(self.embedding(words), lengths=lengths)
        return self.decoder(output)


def train(model: Predictor, options: argparse.Namespace) -> float:
    """Train on random sentences; return the last loss."""
    rng = random.Random(options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(options.updates):
        longest = options.phrases
        sentences = [sentence(rng.randint(0, longest), rng) for _ in range(options.batch)]
        words, lengths = batch(sentences)
        scores = model(words[:-1], lengths - 1)
        # What is past a sentence's end is no word to predict.
        ended = torch.arange(len(words) - 1).unsqueeze(1) >= lengths - 1
        targets = words[1:].masked_fill(ended, -100)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: Predictor, phrases: int, count: int, seed: int) -> float:
    """Return how often the right verb is preferred, this many phrases after its subject."""
    rng = random.Random(seed)
    words, lengths = batch([sentence(phrases, rng) for _ in range(count)])
    verb = len(words) - 3
    scores = model(words[:verb], torch.full_like(lengths, verb))[-1]
    singular, plural = _NUMBERS["is"], _NUMBERS["are"]
    preferred = torch.where(scores[:, singular] > scores[:, plural], singular, plural)
    return (preferred == words[verb]).float().mean().item()


def draw(table: dict[str, dict[int, float]], path: Path) -> None:
    """Draw accuracy over distance."""
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="words between the subject and its verb",
        ylabel="share of right verbs, of new sentences",
        title="Who remembers the subject?",
        ylim=(0.4, 1.02),
    )
    for width, (cell, row) in zip((2, 6, 2), table.items(), strict=True):  # one may hide another
        distances = [3 * phrases for phrases in row]
        axes.plot(distances, list(row.values()), marker="o", linewidth=width, label=cell)
    axes.axhline(0.5, color="grey", linestyle=":", label="guessing")
    axes.legend()
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[int, float]]:
    """Train a model of each cell; return accuracies by cell and phrases in between."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sizes = {"updates": 600, "batch": 64, "hidden": 64, "phrases": 12, "tests": 500, "seed": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("long_range.png"), help="the picture")
    options = parser.parse_args(arguments)

    distances = sorted({0, 1, 2, 4, 8, options.phrases} - set(range(options.phrases + 1, 9)))
    print("right verb, by words between  " + "".join(f"{3 * d:>7}" for d in distances))
    table = {}
    for cell in CELLS:
        torch.manual_seed(options.seed)
        model = Predictor(cell, options.hidden)
        loss = train(model, options)
        table[cell] = {d: accuracy(model, d, options.tests, options.seed + 1) for d in distances}
        row = "".join(f"{value:7.0%}" for value in table[cell].values())
        print(f"  {cell:<6}(loss {loss:.3f})        {row}", flush=True)
    draw(table, options.out)
    return table


if __name__ == "__main__":
    main()

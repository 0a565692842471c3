"""Look at what a language model remembers and forgets: its forget gates over real words.

A small LSTM learns to predict the words of the Python language reference. Then ``layer.gates``
tells what its gates did at each word of a text that it has not seen. A unit whose forget gate is
near one keeps what it has stored; near zero, it drops it. The heatmap shows the units whose gates
move most.

    python examples/gate_heatmap.py --out gate_heatmap.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from word_lm import data
from word_lm.model import LanguageModel, detach

import fused_rnn


class Look(NamedTuple):
    """The gates of the units that were picked, at each word."""

    words: list[str]
    forget: Tensor  # (T, units)
    input: Tensor  # (T, units)


def train(model: LanguageModel, text: Tensor, updates: int, steps: int) -> None:
    """Train on a text (T, N), from its beginning again where it ends."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    state, begin = None, 0
    for update in range(1, updates + 1):
        if begin + steps >= len(text):
            state, begin = None, 0
        window = text[begin : begin + steps + 1]
        scores, state = model(window[:-1], state)
        state, begin = detach(state), begin + steps
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), window[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % max(1, updates // 5) == 0:
            print(f"update {update}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def look(model: LanguageModel, corpus: data.Corpus, count: int, units: int) -> Look:
    """Return the gates over the first words of the text held out."""
    ids = corpus.validation[:count]
    model.eval()
    gates = model.rnn.gates(model.embedding(ids))
    forget, entered = (gates[name][:, 0] for name in ("forget", "input"))
    moving = forget.std(0).topk(min(units, forget.shape[1])).indices
    moving = moving[forget[:, moving].mean(0).argsort()]
    return Look([corpus.words[i] for i in ids], forget[:, moving], entered[:, moving])


def table(seen: Look) -> str:
    """Return each word with how much the units keep there and take in."""
    rows = zip(seen.words, seen.forget.mean(1).tolist(), seen.input.mean(1).tolist(), strict=True)
    lines = [f"{'word':<16}  keeps  takes in"]
    lines += [f"{word:<16}  {'#' * round(10 * f):<10} {f:.2f}  {i:.2f}" for word, f, i in rows]
    return "\n".join(lines)


def draw(seen: Look, path: Path) -> None:
    """Draw the heatmap, a row for each unit and a column for each word."""
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.32 * len(seen.words)), 6), layout="constrained")
    axes = figure.add_subplot(
        title="What the units of an LSTM keep and forget, word by word",
        xlabel="the text, word by word",
        ylabel="units, those that keep most at the bottom",
    )
    shown = axes.imshow(seen.forget.t().numpy(), cmap="magma", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(seen.words)), seen.words, rotation=90)
    figure.colorbar(shown, label="forget gate: 0 forgets, 1 keeps")
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> Look:
    """Train, look, and show what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sizes = {
        "updates": (300, "of the weights"),
        "hidden": (128, "size of the layer and of a word's vector"),
        "batch": (20, "texts side by side"),
        "steps": (35, "words between two updates, of each text"),
        "words": (40, "words to look at"),
        "units": (32, "units to show"),
        "seed": (1, "of all that is random"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--out", type=Path, default=Path("gate_heatmap.png"), help="the picture")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    corpus = data.load()
    model = LanguageModel("lstm", len(corpus.words), options.hidden, options.hidden, 1, 0.3)
    fused_rnn.convert(model)
    train(model, data.columns(corpus.train, options.batch), options.updates, options.steps)
    seen = look(model, corpus, options.words, options.units)
    print(table(seen))
    draw(seen, options.out)
    return seen


if __name__ == "__main__":
    main()

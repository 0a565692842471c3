"""Learn from little text: layer norm learns fast, by heart too, and zoneout holds it back.

The same small language model is trained on a few pages of the Python language reference four times:
with a plain LSTM, and with layer norm, zoneout or both. The picture shows how well each predicts
text that it has not seen, update by update. With layer norm it comes to more than the plain layer
does, in half of the updates, and then gets worse; with zoneout as well it stays.

    python examples/less_overfitting.py --out less_overfitting.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from word_lm import data

import fused_rnn

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zoneout=0.3": {"zoneout": 0.3},
    "layer_norm=True": {"layer_norm": True},
    "both": {"layer_norm": True, "zoneout": 0.3},
}


class Curve(NamedTuple):
    """Losses per word in the course of training."""

    updates: list[int]
    seen: list[float]  # of the text that is learned, in the mean since the last entry
    unseen: list[float]  # of the text held out


class Model(nn.Module):
    """An embedding, an LSTM with some options, and scores for the next word."""

    def __init__(self, words: int, hidden: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.rnn = fused_rnn.LSTM(hidden, hidden, **options)
        self.decoder = nn.Linear(hidden, words)

    def forward(self, words: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Score the next word: (T, N) to (T, N, words)."""
        features, state = self.rnn(self.embedding(words), state)
        return self.decoder(features), state


def loss_of(model: Model, window: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Return the mean loss of predicting each next word of a window (T + 1, N)."""
    scores, state = model(window[:-1], state)
    return nn.functional.cross_entropy(scores.flatten(0, 1), window[1:].flatten()), state


@torch.no_grad()
def held_out(model: Model, text: Tensor) -> float:
    """Return the mean loss of a text (T, N)."""
    model.eval()
    loss, _ = loss_of(model, text, None)
    model.train()
    return loss.item()


def train(model: Model, text: Tensor, unseen: Tensor, updates: int, steps: int) -> Curve:
    """Train on a text (T, N), again from its beginning where it ends."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    curve, state, begin, losses = Curve([], [], []), None, 0, []
    every = max(1, updates // 12)
    for update in range(1, updates + 1):
        if begin + steps >= len(text):
            state, begin = None, 0
        loss, state = loss_of(model, text[begin : begin + steps + 1], state)
        state, begin = tuple(s.detach() for s in state), begin + steps
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if update % every == 0:
            curve.updates.append(update)
            curve.seen.append(sum(losses) / len(losses))
            curve.unseen.append(held_out(model, unseen))
            losses.clear()
    return curve


def table(curves: dict[str, Curve]) -> str:
    """Return what each layer came to: perplexities, of text that it has not seen at its best."""
    lines = [f"{'perplexity':<24}{'best, unseen':>14}{'last, unseen':>14}{'last, seen':>14}"]
    for name, curve in curves.items():
        values = min(curve.unseen), curve.unseen[-1], curve.seen[-1]
        shown = "".join(f"{torch.tensor(v).exp().item():>14.1f}" for v in values)
        lines.append(f"{name:<24}{shown}")
    return "\n".join(lines)


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw the losses of both texts."""
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    figure.suptitle("The same small LSTM learns from little text, with options or none")
    unseen = figure.add_subplot(121, title="text that it has not seen")
    seen = figure.add_subplot(122, title="text that it learns", sharex=unseen)
    for name, curve in curves.items():
        unseen.plot(curve.updates, curve.unseen, label=name)
        seen.plot(curve.updates, curve.seen, label=name)
    for axes in (unseen, seen):
        axes.set(xlabel="updates", ylabel="loss per word")
        axes.grid(alpha=0.3)
    unseen.set_ylim(top=max(c.unseen[-1] for c in curves.values()) + 0.3)
    seen.legend()
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Curve]:
    """Train with each option, and show how they fare."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sizes = {
        "words": (8000, "of the text that is learned"),
        "updates": (156, "of the weights, with each option"),
        "hidden": (96, "size of the layer and of a word's vector"),
        "batch": (20, "texts side by side"),
        "steps": (35, "words between two updates, of each text"),
        "seed": (1, "of all that is random"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--out", type=Path, default=Path("less_overfitting.png"))
    options = parser.parse_args(arguments)

    corpus = data.load()
    text = data.columns(corpus.train[: options.words], options.batch)
    unseen = data.columns(corpus.validation[:3000], 4)
    curves = {}
    for name, of_layer in OPTIONS.items():
        torch.manual_seed(options.seed)
        model = Model(len(corpus.words), options.hidden, of_layer)
        curves[name] = train(model, text, unseen, options.updates, options.steps)
        print(f"{name}: trained", flush=True)
    print(table(curves))
    draw(curves, options.out)
    return curves


if __name__ == "__main__":
    main()

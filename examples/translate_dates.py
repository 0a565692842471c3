"""Translate dates from words to digits, with an encoder, a decoder and attention between them.

"on march the third two thousand four" becomes "2004-03-03". The encoder reads the words in both
directions, up to each sentence's own end; the decoder writes one sign after the other and looks
back at the words that it needs. Training runs the decoder over all signs at once; translating takes
them one by one, by the same weights, with ``step``.

    python examples/translate_dates.py --out translate_dates.png
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

_ONES = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
_ORDINALS = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth",
    "seventeenth", "eighteenth", "nineteenth", "twentieth",
]  # fmt: skip
_MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
]  # fmt: skip
_REST = ["on", "the", "of", "in", "thousand", "hundred", "and", "thirtieth"]
WORDS = [*_ONES, *_TENS, *_ORDINALS, *_MONTHS, *_REST]
SIGNS = [*"0123456789-", "<start>"]  # ten of them make a date, so that no end is needed
_START = len(SIGNS) - 1


def number(n: int) -> list[str]:
    """Return a number below a hundred in words."""
    if n < 20:
        return _ONES[n - 1 : n] if n else []
    return [_TENS[n // 10 - 2], *number(n % 10)]


def date(rng: random.Random) -> tuple[list[str], str]:
    """Return a date in words, said in one of several ways, and in digits."""
    year, month, day = rng.randint(1900, 2049), rng.randint(1, 12), rng.randint(1, 30)
    tens = ["thirtieth"] if day == 30 else ["twenty", _ORDINALS[day - 21]]
    spoken = [_ORDINALS[day - 1]] if day <= 20 else tens
    short = number(year % 100)
    if year >= 2000:
        years = ["two", "thousand", *rng.choice([["and"], []] if short else [[]]), *short]
    else:
        years = ["nineteen", *(short if short and year % 100 > 9 else ["hundred", *short])]
    said = rng.choice(
        [
            ["the", *spoken, "of", _MONTHS[month - 1], *years],
            ["on", _MONTHS[month - 1], "the", *spoken, *years],
            ["in", *years, "on", "the", *spoken, "of", _MONTHS[month - 1]],
        ]
    )
    return said, f"{year}-{month:02}-{day:02}"


def batch(dates: Sequence[tuple[Sequence[str], str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return words (T, N) padded with zeros, their lengths (N,), and signs (S, N)."""
    lengths = torch.tensor([len(said) for said, _ in dates])
    words = torch.zeros(int(lengths.max()), len(dates), dtype=torch.int64)
    for n, (said, _) in enumerate(dates):
        words[: len(said), n] = torch.tensor([WORDS.index(word) for word in said])
    signs = torch.tensor([[SIGNS.index(sign) for sign in written] for _, written in dates])
    return words, lengths, signs.t()


class Translator(nn.Module):
    """An encoder and a decoder, with the attention of Luong et al. 2015 (arXiv:1508.04025)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), hidden)
        self.signs = nn.Embedding(len(SIGNS), hidden)
        self.encoder = fused_rnn.GRU(hidden, hidden // 2, bidirectional=True)
        self.decoder = fused_rnn.GRU(hidden, hidden, learn_initial_state=True)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, len(SIGNS))
        )

    def encode(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is to be known of each word (T, N, H), and where no word is (T, N)."""
        memory, _ = self.encoder(self.words(words), lengths=lengths)
        return memory, torch.arange(len(words)).unsqueeze(1) >= lengths

    def attend(self, states: Tensor, memory: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (S, N, signs) of the next sign, and the attention (S, N, T)."""
        fit = torch.einsum("snh,tnh->snt", self.query(states), memory)
        attention = fit.masked_fill(ended.t(), -torch.inf).softmax(-1)
        seen = torch.einsum("snt,tnh->snh", attention, memory)
        return self.out(torch.cat([states, seen], -1)), attention

    def forward(self, words: Tensor, lengths: Tensor, signs: Tensor) -> Tensor:
        """Return scores (S, N, signs) of each sign, given those before it."""
        before = torch.cat([torch.full_like(signs[:1], _START), signs[:-1]])
        states, _ = self.decoder(self.signs(before))
        return self.attend(states, *self.encode(words, lengths))[0]

    @torch.no_grad()
    def translate(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signs (10, N) and the attention (10, N, T) paid to the words for each."""
        memory, ended = self.encode(words, lengths)
        sign, state = torch.full_like(words[0], _START), None
        written, looks = [], []
        for _ in range(10):
            output, state = self.decoder.step(self.signs(sign), state)
            scores, attention = self.attend(output.unsqueeze(0), memory, ended)
            sign = scores[0].argmax(-1)
            written.append(sign)
            looks.append(attention[0])
        return torch.stack(written), torch.stack(looks)


def train(model: Translator, options: argparse.Namespace) -> list[float]:
    """Train on random dates; return the losses."""
    rng, losses = random.Random(options.seed), []
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for update in range(1, options.updates + 1):
        words, lengths, signs = batch([date(rng) for _ in range(options.batch)])
        scores = model(words, lengths, signs)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), signs.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if update % max(1, options.updates // 5) == 0:
            print(f"update {update}: loss {losses[-1]:.4f}", flush=True)
    return losses


def draw(said: Sequence[str], written: str, attention: Tensor, path: Path) -> None:
    """Draw how the attention of each sign that was written is shared among the words."""
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture", file=sys.stderr)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.5 * len(said) + 1.6), layout="constrained")
    axes = figure.add_subplot(
        title="Which words the decoder looks at as it writes each sign",
        xlabel="signs written, from left to right",
        ylabel="words read",
    )
    shares = attention[:, : len(said)].t().numpy()
    shown = axes.imshow(shares, cmap="magma", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(written)), list(written))
    axes.set_yticks(range(len(said)), said)
    figure.colorbar(shown, label="share of a sign's attention")
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, show translations of new dates, and return the share that is right."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sizes = {"updates": 400, "batch": 64, "hidden": 96, "tests": 500, "seed": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("translate_dates.png"), help="the picture")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    model = Translator(options.hidden)
    train(model, options)

    rng = random.Random(options.seed + 1)
    dates = [date(rng) for _ in range(options.tests)]
    words, lengths, signs = batch(dates)
    written, attention = model.translate(words, lengths)
    right = (written == signs).all(0)
    texts = ["".join(SIGNS[s] for s in column) for column in written.t().tolist()]
    for (said, _), text, good in list(zip(dates, texts, right.tolist(), strict=True))[:8]:
        print(f"  {' '.join(said):<48} {text}  {'right' if good else 'wrong'}")
    share = right.float().mean().item()
    print(f"{share:.1%} of {len(dates)} new dates are right")
    draw(dates[0][0], texts[0], attention[:, 0], options.out)
    return share


if __name__ == "__main__":
    main()
